"""Ties have an order, a flipped target is carried forward, and a diverged retrain does not count.

Arms are compared target by target, and a target flips by more than half of its retrains.
"""

from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from attribution.evidence import counterfactual
from attribution.evidence.stats import interval
from attribution.evidence.store import Result
from attribution.evidence.study import Study
from attribution.evidence.verdict import outcome
from attribution.files import Refused
from attribution.show.tables import counterfactual_notes


def test_ties_are_broken_by_row_number():
    assert counterfactual.most_helpful(
        np.array([1.0, 3.0, 3.0, -2.0, 1.0], np.float32)
    ).tolist() == [1, 2, 0, 4, 3]


class Rows:
    """Nine training rows, or two queries, of one class."""

    def __init__(self, count: int) -> None:
        self.labels = np.zeros(count, int)

    def __len__(self) -> int:
        return len(self.labels)

    def digests(self) -> np.ndarray:
        return np.arange(len(self) * 16, dtype=np.uint8).reshape(-1, 16)


BASE = np.array([[1.0, 2.0], [3.0, 1.0]])  # (targets, seeds), nothing removed
SEEDS = [7, 8]
ARMS = {"a": [np.arange(4)], "random": [np.arange(3), np.arange(1, 4)]}  # draws of each arm


class Trainer:
    """Retrains whose margins and correctness are `outcome(rows, seed)`; it counts its calls."""

    device = torch.device("cpu")
    recipe = None

    def __init__(self, outcome) -> None:
        self.outcome = outcome
        self.train = Rows(9)
        self.digests = Rows(2).digests()
        self.calls: list[tuple[tuple, int]] = []

    def fingerprint(self) -> dict:
        return {}

    def __call__(self, rows: np.ndarray, seed: int) -> Result:
        self.calls.append((tuple(rows.tolist()), seed))
        margins, correct = np.ones(2), np.full(2, self.direction == "helpful")  # base seeds
        if seed in SEEDS:
            margins = BASE[:, SEEDS.index(seed)]
            correct = margins > 0
            if len(rows) < 9:
                margins, correct = self.outcome(rows, SEEDS.index(seed))
        margins = np.asarray(margins, np.float32)
        return Result(self.digests, margins, np.asarray(correct), margins * np.nan)


def study_of(
    folder,
    outcome,
    carry_forward: bool = True,
    direction: str = "helpful",
    base_seeds: range = range(1),
):
    """(result, trainer) of a study of two arms, two targets and two removals."""
    trainer = Trainer(outcome)
    trainer.direction = direction
    study = Study(
        SimpleNamespace(folder=folder, training_seconds=0.0, retraining_seconds=None, recipe={}),
        trainer,
        Rows(2),
        workers=1,
    )
    removals = counterfactual.Removals(
        counts=[1, 2],
        num_targets=2,
        base_seeds=base_seeds,
        retrain_seeds=range(7, 9),
        carry_forward=carry_forward,
        direction=direction,
    )
    arms = {name: lambda query, draws=draws: draws for name, draws in ARMS.items()}
    return counterfactual.run_study(study, removals, arms, dry_run=False), trainer


def states_of(result: dict, name: str, direction: str = "helpful"):
    """`states` of one arm of a result."""
    base = [np.array(result[f"base_{key}"], float) for key in ("margins", "correct")]
    arm = [np.array(result[key][name], float) for key in ("margins", "correct")]
    return counterfactual.states(tuple(base), tuple(arm), direction)


def flips_target_0(rows: np.ndarray, repeat: int):
    """Without row 0 target 0 flips; without two rows every margin is 1."""
    if len(rows) == 7:
        return np.ones(2), np.ones(2, bool)
    margins = np.array([[-1.0, 2.0], [-2.0, -1.0]])[repeat]
    return (margins, margins > 0) if rows[0] == 1 else (np.full(2, (2.0, -1.0)[repeat]),) * 2


@pytest.mark.parametrize("carry_forward", [True, False])
def test_a_flipped_target_is_carried_forward_and_not_retrained(tmp_path, capsys, carry_forward):
    result, _ = study_of(tmp_path, flips_target_0, carry_forward)
    # Arm `a` and the first draw of `random` remove row 0 first: target 0 of both flips.
    spared = 4 if carry_forward else 0
    out = capsys.readouterr().out
    assert "removing 1: 12 retrains, 0 spared by carry-forward" in out
    assert f"removing 2: {12 - spared} retrains, {spared} spared by carry-forward" in out
    again = result["margins"]["a"][0][0][1]
    assert again == ([None, None] if carry_forward else [1.0, 1.0])
    flipped, change = states_of(result, "a")
    assert flipped[:, 0].tolist() == [[False, True, carry_forward], [False, False, False]]
    assert change[0, 0].tolist() == [0.0, -3.0, -3.0 if carry_forward else -0.5]
    assert change[1, 0, 2] == pytest.approx(-1.0)


@pytest.mark.parametrize("direction", ["helpful", "harmful"])
def test_a_retrain_that_diverged_does_not_count(tmp_path, direction):
    def diverges(rows: np.ndarray, repeat: int):
        if len(rows) == 8 and repeat == 1:
            return np.full(2, 5.0), np.ones(2, bool)
        return np.full(2, np.nan), np.zeros(2, bool)

    result, _ = study_of(tmp_path, diverges, carry_forward=False, direction=direction)
    flipped, change = states_of(result, "a", direction)
    mended = direction == "harmful"
    assert (flipped[:, 0, 1:] == mended).all(), (
        "the seed that is left decides, and all diverged changes nothing"
    )
    assert change[:, 0, 1].tolist() == [3.0, 4.0], "from the same seed with nothing removed"
    assert np.array_equal(change[:, 0, 2], change[:, 0, 1]) and result["diverged"] == 6 + 12
    one = np.array([[np.nan, 2.0], [3.0, 1.0]])
    correct = np.where(np.isnan(one), np.nan, one > 0)
    result |= {"base_margins": one, "base_correct": correct}
    change = states_of(result, "a")[1]
    assert np.isfinite(change).all() and change[0, 0, 1] == 3.0


def test_all_jobs_are_paired_by_seed(tmp_path):
    result, trainer = study_of(tmp_path, lambda rows, _: (np.ones(2), np.ones(2, bool)))
    removed = {
        rows: {seed for kept, seed in trainer.calls if kept == rows} for rows, _ in trainer.calls
    }
    everything = removed.pop(tuple(range(9)))
    assert everything == {0, 7, 8}
    # Both targets and two of the three draws remove the same rows, which are retrained once.
    assert len(removed) == 2 * 2 and all(seeds == {7, 8} for seeds in removed.values())
    assert tuple(range(1, 9)) in removed
    for name, draws in ARMS.items():
        assert np.shape(result["margins"][name]) == (2, len(draws), 2, 2)


def test_harmful_rows_are_the_lowest_and_random_ones_have_their_classes_at_every_removal():
    scores, labels = np.array([[0.5, -2.0, 1.0, -1.0, 0.0, -3.0]]), np.array([0, 1, 1, 0, 0, 1])
    arm = counterfactual.by_score(scores, "harmful")
    (order,) = arm(0)
    assert order.tolist() == [5, 1, 3, 4, 0, 2]
    train = type("Rows", (), {"labels": labels})
    first, second = counterfactual.by_classes(train, arm, 0, 2)(0)
    for rows in (first, second):
        assert (labels[rows] == labels[order]).all() and sorted(rows) == list(range(6))
    assert first.tolist() != second.tolist()


# --- results ---


def test_half_of_the_retrains_correct_is_not_flipped():
    correct = np.array([[1.0, 0.0], [0.0, 0.0], [np.nan, np.nan]])
    assert counterfactual.turned(correct, "helpful").tolist() == [False, True, False]


@pytest.mark.parametrize("direction", ["helpful", "harmful"])
@pytest.mark.parametrize("right", [0, 1, 2, 3, 4])
def test_verdict_and_study_have_one_definition_of_flipped_and_mended(direction, right):
    after = np.array([1.0] * right + [0.0] * (4 - right))
    turned = bool(counterfactual.turned(after, direction))
    usual = float(direction == "helpful")
    for before in (np.full(4, usual), np.array([1.0, 0.0, 1.0, 0.0])):  # also where half are right
        fate = outcome(before, after, direction)
        assert (fate in ("flipped", "mended")) == turned, fate


@pytest.mark.parametrize("direction", ["helpful", "harmful"])
def test_a_base_seed_that_diverged_is_left_out_and_that_is_said(tmp_path, direction, monkeypatch):
    calls = Trainer.__call__

    def diverges(self, rows, seed):
        result = calls(self, rows, seed)
        return replace(result, margins=result.margins * np.nan) if seed in lost else result

    monkeypatch.setattr(Trainer, "__call__", diverges)
    lost = {1}
    settled = (lambda rows, _: (np.ones(2), np.ones(2, bool)), True, direction, range(3))
    result, _ = study_of(tmp_path / "one", *settled)
    assert result["targets"] == [0, 1] and result["base_seeds"] == [0, 2]
    assert np.shape(result["base_run_margins"]) == (2, 2)
    about = {"dataset": "demo", "rows": 9}
    assert "base seeds 1 diverged and are left out" in counterfactual_notes(result | about)
    lost |= {0, 2}
    with pytest.raises(Refused, match="all base seeds diverged"):
        study_of(tmp_path / "all", *settled)


def test_where_harmful_rows_go_a_target_is_mended_by_more_than_half_of_the_retrains():
    correct = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0], [np.nan, np.nan]])
    assert counterfactual.turned(correct, "harmful").tolist() == [True, False, False, False]
    base = np.array([[-1.0, -2.0]]), np.array([[0.0, 0.0]])
    arm = np.array([[[[1.0, 2.0], [np.nan, np.nan]]]])
    mended, change = counterfactual.states(
        base, (arm, np.where(np.isnan(arm), np.nan, arm > 0)), "harmful"
    )
    assert mended.tolist() == [[[False, True, True]]] and change.tolist() == [[[0.0, 3.0, 3.0]]]


@pytest.fixture
def result() -> dict:
    """A result as run_counterfactual.py writes it: nine targets, three arms of which one has two
    draws.
    """
    generator = np.random.default_rng(5)
    base = 3 + generator.normal(size=(9, 2))
    margins = {
        name: generator.normal(size=(9, draws, 2, 2))
        for name, draws in (("b", 1), ("random", 2), ("a", 1))
    }
    margins["b"][0, 0, 0] = -1.0  # flips at the first removal and is not retrained
    margins["b"][0, 0, 1] = np.nan
    return {
        "direction": "helpful",
        "strategies": ["b", "a", "random"],
        "base_margins": counterfactual.listed(base),
        "base_correct": counterfactual.listed(np.ones_like(base)),
        "margins": {name: counterfactual.listed(margins[name]) for name in sorted(margins)},
        "correct": {
            name: counterfactual.listed(
                np.where(np.isnan(margins[name]), np.nan, margins[name] > 0)
            )
            for name in sorted(margins)
        },
    }


def test_draws_of_an_arm_are_averaged_before_targets_are():
    base, arm = [[1.0, 2.0], [3.0, 1.0]], [[[[-1.0, -1.0]], [[1.0, 1.0]]]] * 2
    right = [[[[0.0, 0.0]], [[1.0, 1.0]]]] * 2
    result = {
        "direction": "helpful",
        "base_margins": base,
        "base_correct": [[1, 1]] * 2,
        "margins": {"a": arm},
        "correct": {"a": right},
    }
    curve = counterfactual.curves(result)["a"]
    assert curve["flipped"] == [0, 0.5] and curve["margin_change"] == [
        0,
        np.mean([-2.5, -0.5, -3, -1]),
    ]
    low, high = curve["flipped_interval"][1]
    assert 0 < low < 0.5 < high < 1


def test_every_arm_is_compared_with_every_arm_before_it_target_by_target(result):
    found, values = counterfactual.differences(result), counterfactual.per_target(result)
    assert list(found) == [(name, before) for before, name in combinations(result["strategies"], 2)]
    picks = np.random.default_rng(0).integers(9, size=(counterfactual.NUM_BOOTSTRAP, 9))
    for (name, before), pair in found.items():
        for key in ("flipped", "margin_change"):
            for level in range(3):
                apart = [
                    float(values[name][key][s, level]) - float(values[before][key][s, level])
                    for s in range(9)
                ]
                assert pair[key][level] == pytest.approx(sum(apart) / 9)
                means = [np.mean([apart[s] for s in pick]) for pick in picks]
                assert pair[f"{key}_interval"][level] == pytest.approx(interval(np.array(means)))


def test_a_target_that_was_not_retrained_again_counts_with_its_last_change(result):
    flipped, change = counterfactual.per_target(result)["b"].values()
    assert flipped[0].tolist() == [0, 1, 1] and change[0, 1] == change[0, 2] < 0
