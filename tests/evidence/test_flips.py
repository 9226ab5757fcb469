"""Arms are compared target by target, and a target flips by more than half of its retrains."""

from itertools import combinations

import numpy as np
import pytest

from attribution.evidence import counterfactual
from attribution.evidence.stats import interval


def test_half_of_the_retrains_correct_is_not_flipped():
    correct = np.array([[1.0, 0.0], [0.0, 0.0], [np.nan, np.nan]])
    assert counterfactual.turned(correct, "helpful").tolist() == [False, True, False]


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
        "strategies": ["b", "a", "random"],
        "base_margins": counterfactual.listed(base),
        "base_correct": counterfactual.listed(np.ones_like(base)),
        "margins": {name: counterfactual.listed(margins[name]) for name in sorted(margins)},
        "correct": {
            name: counterfactual.listed(counterfactual.converged(margins[name], margins[name] > 0))
            for name in sorted(margins)
        },
    }


def test_draws_of_an_arm_are_averaged_before_targets_are():
    base, arm = [[1.0, 2.0], [3.0, 1.0]], [[[[-1.0, -1.0]], [[1.0, 1.0]]]] * 2
    right = [[[[0.0, 0.0]], [[1.0, 1.0]]]] * 2
    result = {
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
