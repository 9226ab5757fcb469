"""Ties have an order, a flipped target is carried forward, and what diverged does not count."""

import numpy as np
import pytest

from attribution.evidence import counterfactual


def test_ties_are_broken_by_row_number():
    assert counterfactual.most_helpful(
        np.array([1.0, 3.0, 3.0, -2.0, 1.0], np.float32)
    ).tolist() == [1, 2, 0, 4, 3]


class Orders:
    """Two arms, two targets; target 0 of arm `a` flips at the first removal."""

    base = np.array([[1.0, 2.0], [3.0, 1.0]])
    orders = {
        "a": [[np.arange(4)], [np.arange(4)]],
        "random": [[np.arange(3), np.arange(1, 4)]] * 2,
    }

    def plan(self):
        return counterfactual.Plan(self.orders, [1, 2], np.arange(9), [7, 8])


def test_a_flipped_target_is_carried_forward_and_not_retrained():
    plan = Orders().plan()
    for place in plan.jobs(0, True):
        margins = np.array([-1.0, -2.0]) if place[:2] == ("a", 0) else np.array([2.0, -1.0])
        plan.record(place, 0, margins, margins > 0)
    assert (
        ("a", 0, 0) not in plan.jobs(1, True)
        and len(plan.jobs(1, True)) == 5
        and len(plan.jobs(1, False)) == 6
    )
    assert plan.spared(1, True) == 2 and plan.spared(1, False) == 0
    for place in plan.jobs(1, True):
        plan.record(place, 1, np.array([1.0, 1.0]), np.array([True, True]))
    base = Orders.base, Orders.base > 0
    flipped, change = counterfactual.states(base, (plan.margins["a"], plan.correct["a"]))
    assert flipped[:, 0].tolist() == [[False, True, True], [False, False, False]]
    assert change[0, 0].tolist() == [0.0, -3.0, -3.0] and change[1, 0, 2] == pytest.approx(-1.0)
    assert counterfactual.listed(plan.margins["a"])[0][0][1] == [None, None]


@pytest.mark.parametrize("direction", ["helpful", "harmful"])
def test_a_retrain_that_diverged_says_nothing(direction):
    plan, nan = Orders().plan(), np.array([np.nan, np.nan])
    plan.direction = direction
    for place in plan.jobs(0, True):
        plan.record(place, 0, np.array([np.nan, 5.0]), np.array([False, True]))
    for place in plan.jobs(1, False):
        plan.record(place, 1, nan, np.array([False, False]))
    base = Orders.base, Orders.base > 0
    flipped, change = counterfactual.states(base, (plan.margins["a"], plan.correct["a"]), direction)
    mended = direction == "harmful"
    assert (flipped[:, 0, 1:] == mended).all(), (
        "the seed that is left decides, and all diverged changes nothing"
    )
    assert change[:, 0, 1].tolist() == [3.0, 4.0], "from the same seed with nothing removed"
    assert np.array_equal(change[:, 0, 2], change[:, 0, 1]) and plan.diverged == 6 + 12
    one = np.array([[np.nan, 2.0], [3.0, 1.0]])
    change = counterfactual.states(
        (one, counterfactual.converged(one, one > 0)), (plan.margins["a"], plan.correct["a"])
    )[1]
    assert np.isfinite(change).all() and change[0, 0, 1] == 3.0


def test_all_jobs_are_paired_by_seed():
    jobs = Orders().plan().all_jobs()
    assert len(jobs) == 6 * 2 * 2 and {job.seed for job in jobs} == {7, 8}
    assert jobs[0].rows.tolist() == list(range(1, 9))


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
