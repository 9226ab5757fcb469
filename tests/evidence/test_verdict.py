"""A verdict is paired by seed, and its control removes as many random rows of the same classes."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_rel

from attribution.evidence.arguments import MIN_SEEDS
from attribution.evidence.counterfactual import Removals
from attribution.evidence.kept_verdicts import share_right
from attribution.evidence.stats import t_interval
from attribution.evidence.verdict import (
    CONTROL,
    MOST_SEEDS,
    Check,
    Target,
    outcome,
    removed_rows,
    word_of,
)

LABELS = np.repeat([0, 1, 2], [50, 30, 20])


def data(labels, regression=False):
    return SimpleNamespace(labels=np.asarray(labels), task=SimpleNamespace(regression=regression))


def check(direction: str) -> Check:
    removals = Removals(
        counts=[5, 12],
        num_targets=1,
        base_seeds=range(1),
        retrain_seeds=range(100, 105),
        carry_forward=False,
        direction=direction,
    )
    return Check("ekfac", removals, 2, 0)


@pytest.mark.parametrize("direction", ["helpful", "harmful"])
def test_the_top_goes_and_random_rows_have_the_same_classes(direction):
    scores = np.random.default_rng(0).standard_normal(100)
    arms = removed_rows(data(LABELS), Target(3, scores, {}), check(direction))
    order = np.argsort(-scores if direction == "helpful" else scores)
    for level, count in enumerate((5, 12)):
        top = arms["ekfac", level, 0]
        assert ("ekfac", level, 1) not in arms and (CONTROL[False], level, 2) not in arms
        assert top.tolist() == order[:count].tolist()
        drawn = [arms[CONTROL[False], level, draw] for draw in range(2)]
        assert not np.array_equal(*drawn)
        for rows in drawn:
            assert len(set(rows)) == count
            assert np.array_equal(
                np.bincount(LABELS[rows], minlength=3), np.bincount(LABELS[top], minlength=3)
            )


def test_of_a_regression_the_same_tenths_of_the_label_go():
    labels = np.random.default_rng(1).normal(size=200)
    tenths = np.argsort(np.argsort(labels)) // 20
    arms = removed_rows(data(labels, regression=True), Target(3, labels, {}), check("helpful"))
    assert np.unique(tenths[arms["ekfac", 1, 0]]).tolist() == [9]  # the highest labels go
    for draw in range(2):
        rows = arms[CONTROL[True], 1, draw]
        assert tenths[rows].tolist() == [9] * 12
        assert set(rows) != set(arms["ekfac", 1, 0])


def test_the_interval_is_students_of_differences_paired_by_seed():
    generator = np.random.default_rng(2)
    before = generator.normal(size=6)
    after = before + generator.normal(-1, 0.1, size=6)
    mean, interval = t_interval(after - before)
    expected = ttest_rel(after, before).confidence_interval(0.95)
    assert (
        interval == pytest.approx([expected.low, expected.high])
        and interval[0] < mean < interval[1]
    )
    assert t_interval(np.array([1.0, np.nan])) == (1.0, None)  # one retrain diverged


def test_flipped_and_mended_are_about_half_of_the_retrains():
    right, wrong, half = (
        np.array([1, 1, 1, 0.0]),
        np.array([0, 0, 1, 0.0]),
        np.array([1, 0, 1, 0.0]),
    )
    assert outcome(right, wrong) == "flipped" and outcome(wrong, right) == "mended"
    assert outcome(right, half) == "stays right" and outcome(half, wrong) == "flipped"
    assert outcome(wrong, wrong) == outcome(wrong, half) == "stays wrong"
    nothing = np.full(4, np.nan)
    assert (
        outcome(right, nothing).startswith("not known")
        and outcome(np.array([np.nan, 1.0]), right) == "stays right"
    )
    assert share_right(nothing) is None and share_right(np.array([np.nan, 1.0, 0.0])) == 0.5


# --- verdict in a word ----------------------------------------------------------------------------


def sample(mean: float, spread: float, count: int) -> np.ndarray:
    """Changes (count,) with exactly this mean and standard deviation."""
    values = np.random.default_rng(3).normal(size=count)
    return mean + spread * (values - values.mean()) / values.std(ddof=1)


def level_of(change: np.ndarray, difference: np.ndarray) -> dict:
    """A removal of a verdict: changes of the margin (R,), and how much more than without random
    rows.
    """
    found = {}
    found["change"], found["interval"] = t_interval(change)
    found["difference"], found["difference_interval"] = t_interval(difference)
    return found


def tells(mean: float, spread: float, count: int) -> bool:
    """Whether SciPy's interval of so many changes of this mean and spread leaves out 0."""
    found = ttest_1samp(sample(mean, spread, count), 0).confidence_interval(0.95)
    return found.low * found.high > 0


@pytest.mark.parametrize(("direction", "sign"), [("helpful", -1), ("harmful", 1)])
def test_confirmed_is_a_change_on_the_scores_side_beyond_random_rows(direction, sign):
    clear, noisy = sign * sample(1.0, 0.3, 5), sign * sample(0.3, 1.0, 5)
    assert word_of(level_of(clear, clear), direction, 5) == ("confirmed", None)
    for one in (level_of(clear, noisy), level_of(noisy, clear)):
        assert word_of(one, direction, 5)[0] != "confirmed"
    for one in (level_of(-clear, clear), level_of(clear, -clear), level_of(-noisy, -noisy)):
        assert word_of(one, direction, 5) == ("not confirmed", None)


@pytest.mark.parametrize("seeds", [2, 3, 5, 12])
@pytest.mark.parametrize("ratio", [0.3, 0.45, 0.6, 0.8, 1.1, 1.8])
def test_the_seeds_that_are_named_are_the_fewest_that_would_tell(seeds, ratio):
    changes = -sample(ratio, 1.0, seeds)
    word, needed = word_of(level_of(changes, changes), "helpful", seeds)
    if word == "confirmed":
        assert needed is None and tells(ratio, 1.0, seeds)
        return
    assert word == "cannot tell" and seeds < needed <= MOST_SEEDS
    assert tells(ratio, 1.0, needed) and not tells(ratio, 1.0, needed - 1)


@pytest.mark.parametrize("seeds", [2, 5])
def test_a_change_that_fifty_seeds_would_not_show_is_not_confirmed(seeds):
    changes = -sample(0.2, 1.0, seeds)
    assert word_of(level_of(changes, changes), "helpful", seeds) == ("not confirmed", None)
    assert not tells(0.2, 1.0, MOST_SEEDS)


def test_the_seeds_are_those_that_both_intervals_need():
    clear, noisy = -sample(1.0, 0.3, 5), -sample(0.6, 1.0, 5)
    alone = word_of(level_of(noisy, noisy), "helpful", 5)
    assert word_of(level_of(clear, noisy), "helpful", 5) == alone
    assert word_of(level_of(noisy, clear), "helpful", 5) == alone


def test_without_intervals_nothing_is_told_and_the_usual_seeds_are_named():
    clear = -sample(1.0, 0.3, 5)
    one = level_of(clear, np.array([-1.0]))
    assert word_of(one, "helpful", 2) == ("cannot tell", MIN_SEEDS)
    assert word_of(one, "helpful", 5) == ("cannot tell", None)  # more are not the remedy
    diverged = level_of(np.full(5, np.nan), clear)
    assert word_of(diverged, "helpful", 5) == ("cannot tell", None)
