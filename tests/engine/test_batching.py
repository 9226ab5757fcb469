"""Batches keep their budget and the order of rows comes back; the bar's steps are the work of the
batches.
"""

import numpy as np
import torch

from attribution.engine import batching
from attribution.engine.batching import (
    WeighedLoader,
    batches_within,
    group_ends,
    order_by_length,
    restore_order,
)


def test_batches_hold_their_budget_longest_first_and_the_order_is_restored():
    lengths = np.array([3, 9, 1, 9, 4, 2, 20])
    batches = batches_within(lengths, 18)
    assert sorted(sum(batches, [])) == list(range(7)) and batches[0] == [6]
    assert all(len(batch) * lengths[batch].max() <= 18 or len(batch) == 1 for batch in batches)
    values = torch.arange(7.0)[torch.from_numpy(order_by_length(lengths))]
    assert restore_order(values, lengths, 0).tolist() == list(range(7))


def test_a_batch_ends_where_padding_would_be_more_than_a_tenth_or_worth_a_batch():
    lengths = np.array([100] * 3 + [90] * 40 + [10] * 200)
    batches = batches_within(lengths, 10_000)
    assert [len(batch) for batch in batches] == [43, 200]
    assert [len(batch) for batch in batches_within(lengths, 10_000, max_rows=100)] == [100, 100, 43]


def test_groups_of_batches_are_of_like_size_and_hold_their_budget():
    lengths = np.array(
        [40] * 3 + [20] * 6 + [10] * 10 + [5] * 16
    )  # batches of 120, 120, 100 and 80 tokens
    batches = [list(range(3)), list(range(3, 9)), list(range(9, 19)), list(range(19, 35))]
    assert group_ends(batches, lengths, 1000) == [False, False, False, True]
    assert group_ends(batches, lengths, 300) == [False, True, False, True]
    assert group_ends(batches, lengths, 100) == [True] * 4


def test_the_bar_moves_by_the_work_of_each_batch_once_it_is_done(monkeypatch):
    steps, batches = [], [[0], [1, 2]]

    class Bar:
        def __init__(self, total, **_):
            steps.append(("total", total))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, weight):
            steps.append(("done", weight))

    monkeypatch.setattr(batching, "tqdm", Bar)
    loader = WeighedLoader(
        [10, 11, 12], batches, list, "rows", [5.0, 1.0], lambda i: steps.append(("next", i))
    )
    assert list(loader) == [[10], [11, 12]]
    assert steps == [("total", 6.0), ("next", 0), ("done", 5.0), ("next", 1), ("done", 1.0)]
