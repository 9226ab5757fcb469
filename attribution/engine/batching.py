"""Batches of rows of like length, groups of batches, parts, and their progress.

Symbols: T tokens of a row. Lengths are an array with T of every row of the data set, or of a part
of it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from attribution.data.dataset import GlueDataset
from attribution.progress import steps

PADDING = 256  # tokens of padding that are worth a batch less


def order_by_length(lengths: np.ndarray) -> np.ndarray:
    """Positions from the longest to the shortest row, ties in the order of rows.

    The longest come first, so that memory runs out at once where it does.
    """
    return np.argsort(-np.asarray(lengths), kind="stable")


def batches_within(lengths: np.ndarray, budget: int) -> list[list[int]]:
    """Positions cut into batches, longest rows first.

    A batch has at most `budget` tokens with padding, but at least one row; it ends where more than
    a tenth of it, and more than PADDING tokens, would be padding.
    """
    batches: list[list[int]] = [[]]
    real = 0
    for row in order_by_length(lengths).tolist():
        batch = batches[-1]
        length = int(lengths[row])
        padded = (len(batch) + 1) * int(lengths[batch[0]]) if batch else length
        if batch and (padded > budget or padded - real - length > max(PADDING, padded // 10)):
            batches.append([])
            real = 0
        batches[-1].append(row)
        real += length
    return batches


def padded_sizes(lengths: np.ndarray, batches: list[list[int]]) -> np.ndarray:
    """Tokens of each batch, with padding."""
    return np.array([len(batch) * int(lengths[batch].max()) for batch in batches])


def runs_within(lengths: np.ndarray, budget: int, max_rows: int) -> list[list[int]]:
    """Positions in their order, cut into batches of at most max_rows rows, and of `budget` tokens
    with padding.
    """
    batches: list[list[int]] = [[]]
    longest = 0
    for i, length in enumerate(lengths):
        batch = batches[-1]
        longest = max(longest, int(length))
        if batch and (len(batch) == max_rows or (len(batch) + 1) * longest > budget):
            batches.append([])
            longest = int(length)
        batches[-1].append(i)
    return batches


def group_ends(batches: list[list[int]], lengths: np.ndarray, budget: int) -> list[bool]:
    """Whether a batch is the last of its group.

    Groups are of like size, and of `budget` tokens with padding, or less.
    """
    sizes = padded_sizes(lengths, batches)
    most = sizes.sum() / -(-sizes.sum() // budget)  # were batches divisible
    ends: list[bool] = []
    tokens = 0
    for size, following in zip(sizes, [*sizes[1:], budget], strict=True):
        tokens += size
        ends.append(bool(tokens + following / 2 > most or tokens + following > budget))
        tokens = 0 if ends[-1] else tokens
    return [*ends[:-1], True]


@dataclass(frozen=True)
class Part:
    """Whole groups of batches."""

    batches: list[list[int]]  # of row numbers, longest rows first
    ends: list[bool]  # whether a batch is the last of its group

    @property
    def rows(self) -> list[int]:
        """Row numbers in the order of the batches."""
        return [row for batch in self.batches for row in batch]

    def passes(self, columns: int) -> Iterator[tuple[int, list[int], bool]]:
        """Yields (column, batch, whether it ends its group): every group once for each column."""
        start = 0
        for i in (i for i, end in enumerate(self.ends) if end):
            for column in range(columns):
                for k in range(start, i + 1):
                    yield column, self.batches[k], self.ends[k]
            start = i + 1

    def within(self, lengths: np.ndarray, budget: int) -> "Part":
        """The same rows in the same order, in smaller batches: for a process that has run out of
        memory.

        lengths: tokens of every row of the data set. budget: tokens of a batch with padding.
        """
        rows = self.rows
        batches = batches_within(lengths[rows], budget)
        ends = group_ends(batches, lengths[rows], budget)
        return Part([[rows[i] for i in batch] for batch in batches], ends)


def divide(lengths: np.ndarray, budget: int, count: int, group: int | None = None) -> list[Part]:
    """The rows with these lengths (N,) in about `count` parts of like many tokens, never more than
    there are groups.

    budget: tokens of a batch with padding; group: those of a group (as many as a batch).
    """
    batches = batches_within(lengths, budget)
    ends = group_ends(batches, lengths, group or budget)
    tokens = [int(lengths[batch].sum()) for batch in batches]
    total = sum(tokens)
    done = 0
    start = 0
    parts: list[Part] = []
    for i, end in enumerate(ends):
        done += tokens[i]
        if end and (i == len(ends) - 1 or done * count >= total * (len(parts) + 1)):
            parts.append(Part(batches[start : i + 1], ends[start : i + 1]))
            start = i + 1
    return parts


@dataclass(frozen=True)
class Batches:
    """Batches of rows of one phase, as kronfluence iterates over a loader.

    before(i) is called before batch i is handed out, after() once the last one has been used. Only
    the main process of a launch shows the progress. part: begin and end of these batches among all
    of the phase.
    """

    dataset: GlueDataset
    batches: list[list[int]]
    phase: str
    shown: bool
    before: Callable[[int], None]
    after: Callable[[], None]
    part: tuple[float, float] = (0.0, 1.0)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        batches = steps(self.batches, self.phase, part=self.part, shown=self.shown)
        for i, rows in enumerate(batches):
            self.before(i)
            yield self.dataset.batch(rows)
        self.after()
