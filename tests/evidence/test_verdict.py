"""A verdict is paired by seed, and its control removes as many random rows of the same classes."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import ttest_rel

from attribution.evidence.counterfactual import Removals
from attribution.evidence.stats import t_interval
from attribution.evidence.verdict import (
    CONTROL,
    Check,
    Target,
    outcome,
    removed_rows,
    share_right,
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
