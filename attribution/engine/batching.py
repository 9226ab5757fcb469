"""Batches of rows of like length, groups of batches, and a bar that knows how much is left.

Symbols: T tokens of a row. Lengths are an array with T of every row of the data set, or of a part
of it.
"""

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

PADDING = 256  # tokens of padding that are worth a batch less


def order_by_length(lengths: np.ndarray) -> np.ndarray:
    """Positions from the longest to the shortest row, ties in their own order.

    The longest come first, so that memory runs out at once where it does.
    """
    return np.argsort(-np.asarray(lengths), kind="stable")


def restore_order(values: torch.Tensor, lengths: np.ndarray, dim: int) -> torch.Tensor:
    """Values along `dim`, computed in `order_by_length(lengths)`, put back into the order of the
    rows.
    """
    return values.index_select(
        dim, torch.from_numpy(np.argsort(order_by_length(lengths), kind="stable"))
    )


def batches_within(
    lengths: np.ndarray, budget: int, max_rows: int | None = None
) -> list[list[int]]:
    """Positions cut into batches, longest rows first.

    With max_rows: batches of so many rows. Without: at most `budget` tokens with padding, but at
    least one row; and a batch ends where more than a tenth of it, and more than PADDING tokens,
    would be padding.
    """
    order = order_by_length(lengths).tolist()
    if max_rows:
        return [order[start : start + max_rows] for start in range(0, len(order), max_rows)]
    batches: list[list[int]] = [[]]
    real = 0
    for row in order:
        batch, length = batches[-1], int(lengths[row])
        padded = (len(batch) + 1) * int(lengths[batch[0]]) if batch else length
        if batch and (padded > budget or padded - real - length > max(PADDING, padded // 10)):
            batches.append([])
            real = 0
        batches[-1].append(row)
        real += length
    return batches


def runs_within(lengths: np.ndarray, budget: int, max_rows: int) -> list[list[int]]:
    """Positions in their order, cut into batches of at most max_rows rows, and of `budget` tokens
    with padding.
    """
    batches: list[list[int]] = [[]]
    longest = 0
    for i, length in enumerate(lengths):
        batch, longest = batches[-1], max(longest, int(length))
        if batch and (len(batch) == max_rows or (len(batch) + 1) * longest > budget):
            batches.append([])
            longest = int(length)
        batches[-1].append(i)
    return batches


def group_ends(batches: list[list[int]], lengths: np.ndarray, budget: int) -> list[bool]:
    """Whether a batch is the last of its group.

    Groups are of like size, and of `budget` tokens with padding, or less.
    """
    sizes = np.array([len(batch) * int(lengths[batch].max()) for batch in batches])
    most = sizes.sum() / -(-sizes.sum() // budget)  # were batches divisible
    ends, tokens = [], 0
    for size, following in zip(sizes, [*sizes[1:], budget], strict=True):
        tokens += size
        ends.append(bool(tokens + following / 2 > most or tokens + following > budget))
        tokens = 0 if ends[-1] else tokens
    return [*ends[:-1], True]


class WeighedLoader(DataLoader):
    """A DataLoader over given batches whose progress bar weighs them by their work, so that the
    time left is true.

    before(i) is called before batch i is handed out, after() once the last one has been used. Only
    the main process of a launch shows the bar.
    """

    def __init__(
        self,
        dataset,
        batches: list,
        collate,
        description: str,
        weights: list[float],
        before=None,
        after=None,
        shown: bool = True,
    ) -> None:
        super().__init__(dataset, batch_sampler=batches, collate_fn=collate)
        self.description, self.weights, self.before, self.after = (
            description,
            weights,
            before,
            after,
        )
        self.shown = shown

    def __iter__(self):
        layout = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"
        total = sum(self.weights)
        with tqdm(
            total=total,
            desc=self.description,
            bar_format=layout,
            leave=False,
            disable=not self.shown,
        ) as bar:
            for i, batch in enumerate(super().__iter__()):
                if self.before:
                    self.before(i)
                yield batch
                bar.update(self.weights[i])
        if self.after:
            self.after()
