"""Batches, groups and parts keep their budget and lose no row; the bar's steps are batches."""

import numpy as np
import pytest

from attribution.engine import batching
from attribution.engine.batching import (
    Batches,
    batches_within,
    divide,
    group_ends,
    order_by_length,
    runs_within,
)

LENGTHS = np.random.default_rng(0).integers(3, 30, 200)


def test_batches_hold_their_budget_longest_first():
    lengths = np.array([3, 9, 1, 9, 4, 2, 20])
    batches = batches_within(lengths, 18)
    assert sorted(sum(batches, [])) == list(range(7)) and batches[0] == [6]
    assert all(len(batch) * lengths[batch].max() <= 18 or len(batch) == 1 for batch in batches)
    assert order_by_length(lengths).tolist() == [6, 1, 3, 4, 0, 5, 2]


def test_a_batch_ends_where_padding_would_be_more_than_a_tenth_or_worth_a_batch():
    lengths = np.array([100] * 3 + [90] * 40 + [10] * 200)
    batches = batches_within(lengths, 10_000)
    assert [len(batch) for batch in batches] == [43, 200]


def test_groups_of_batches_are_of_like_size_and_hold_their_budget():
    lengths = np.array(
        [40] * 3 + [20] * 6 + [10] * 10 + [5] * 16
    )  # batches of 120, 120, 100 and 80 tokens
    batches = [list(range(3)), list(range(3, 9)), list(range(9, 19)), list(range(19, 35))]
    assert group_ends(batches, lengths, 1000) == [False, False, False, True]
    assert group_ends(batches, lengths, 300) == [False, True, False, True]
    assert group_ends(batches, lengths, 100) == [True] * 4


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_parts_are_whole_groups_of_the_same_batches_whatever_their_number(count):
    batches = batches_within(LENGTHS, 100)
    ends = group_ends(batches, LENGTHS, 100)
    found = divide(LENGTHS, 100, count)
    assert [batch for part in found for batch in part.batches] == batches
    assert [end for part in found for end in part.ends] == ends
    assert all(part.ends[-1] for part in found)
    assert len(found) == min(count, sum(ends))
    tokens = [LENGTHS[part.rows].sum() for part in found]
    assert max(tokens) <= sum(tokens) / len(found) + 2 * 100


def test_smaller_batches_of_a_part_keep_its_rows_and_their_order():
    for part in divide(LENGTHS, 300, 3):
        smaller = part.within(LENGTHS, 40)
        assert smaller.rows == part.rows and smaller.ends[-1]
        assert len(smaller.batches) > len(part.batches)
        assert all(len(batch) * LENGTHS[batch].max() <= 40 for batch in smaller.batches)


def test_query_batches_are_bounded_by_rows_and_by_tokens():
    lengths = np.array([30, 20, 10, 10, 10, 5])
    assert runs_within(lengths, 40, 2) == [[0], [1, 2], [3, 4], [5]]
    assert runs_within(lengths, 4, 9) == [[i] for i in range(6)]


def test_the_bar_moves_by_a_batch_once_it_is_done(monkeypatch):
    moves: list = []

    def steps(batches, *_, **__):
        for batch in batches:
            yield batch
            moves.append(("done", batch))

    class Rows:
        batch = staticmethod(lambda rows: {"row": rows})

    monkeypatch.setattr(batching, "steps", steps)
    loader = Batches(
        Rows(),
        [[0], [1, 2]],
        "rows",
        True,
        before=lambda i: moves.append(("next", i)),
        after=lambda: moves.append(("end",)),
    )
    assert len(loader) == 2 and list(loader) == [{"row": [0]}, {"row": [1, 2]}]
    assert moves == [("next", 0), ("done", [0]), ("next", 1), ("done", [1, 2]), ("end",)]
