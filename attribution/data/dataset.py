"""Tokenized rows, and the batches that are made of them.

Symbols: N rows, B examples of a batch, T tokens.
"""

import copy
import hashlib

import datasets
import numpy as np
import torch

from attribution.data.task import GlueTask
from attribution.files import Refused, fingerprint_of_tensors


class GlueDataset(torch.utils.data.Dataset):
    """Tokenized rows in memory, and the table that they came from.

    An item is (this data set, row number): what `collate` needs, whatever order batches are formed
    in.
    """

    file_rows: np.ndarray | None = (
        None  # (N,) rows of the file, from 0 on, where others of it are validation rows
    )

    def __init__(
        self, table: datasets.Dataset, task: GlueTask, labels: np.ndarray, encoded: dict[str, tuple]
    ) -> None:
        self.table = (
            table  # datasets.Dataset: text columns, `label`, and on the demo the recorded truth
        )
        self.task = task
        self.labels = labels  # (N,), as `raw.labels_of` returns them
        self.lengths = encoded["input_ids"][1]
        # name -> int32 tensor (N, longest row), padded with 0, which the mask hides; encoded: as
        # `tokenize` returns it
        self.inputs = {name: pad(*values) for name, values in encoded.items()}

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> tuple["GlueDataset", int]:
        return self, int(index)

    def batch(self, rows, pad_to: int | None = None) -> dict[str, torch.Tensor]:
        """Row numbers -> batch: `input_ids`, `attention_mask`, `token_type_ids` (B, T), `labels`,
        `row` (B,).

        T is the longest of these rows, or pad_to.
        """
        rows = torch.as_tensor(rows, dtype=torch.long)
        lengths = torch.from_numpy(self.lengths)[rows]
        longest = int(lengths.max())
        extra = (pad_to or longest) - longest
        batch = {
            name: torch.nn.functional.pad(values[rows, :longest].long(), (0, extra))
            for name, values in self.inputs.items()
        }
        batch["attention_mask"] = (torch.arange(longest + extra) < lengths[:, None]).long()
        return batch | {"labels": torch.from_numpy(self.labels)[rows], "row": rows}

    def text(self, index: int) -> str:
        """The row's text columns, joined by ' | '."""
        row = self.table[int(index)]
        return " | ".join(row[column] for column in self.task.columns)

    def texts(self) -> list[str]:
        """`text` of every row."""
        return [
            " | ".join(parts)
            for parts in zip(*(self.table[column] for column in self.task.columns), strict=True)
        ]

    def label_name(self, index: int) -> str:
        """The task's name of the row's class, or the similarity for regression."""
        if self.task.regression and np.isnan(self.labels[index]):
            return "output"
        if self.task.regression:
            return f"{self.labels[index]:.2f}"
        label = int(self.labels[index])
        return self.task.class_names[label] if self.task.class_names else str(label)

    def digests(self) -> np.ndarray:
        """(N, 16) uint8: for each row the first half of a SHA-256 over its token and segment
        numbers and its label.
        """
        names, labels = sorted(self.inputs), self.labels.astype("<f8")
        inputs = {name: self.inputs[name].numpy().astype("<i4") for name in names}
        out = np.empty((len(self), 16), np.uint8)
        for row, length in enumerate(self.lengths):
            digest = hashlib.sha256(labels[row].tobytes())
            for name in names:
                digest.update(f"|{name}|".encode() + inputs[name][row, :length].tobytes())
            out[row] = np.frombuffer(digest.digest()[:16], np.uint8)
        return out

    def file_row(self, index: int) -> int | None:
        """The row's number in the file, where the file numbers its rows otherwise."""
        return None if self.file_rows is None else int(self.file_rows[index])

    def first(self, count: int) -> "GlueDataset":
        """The first so many rows."""
        return self if count >= len(self) else self.subset(list(range(count)))

    def window(self, start: int, count: int) -> "GlueDataset":
        """So many rows from this one on. Raises Refused where there are none."""
        if start >= len(self):
            raise Refused(f"--first_query {start} is not among the {len(self):,} validation rows")
        return (
            self.subset(list(range(start, min(start + count, len(self)))))
            if start
            else self.first(count)
        )

    def subset(self, rows: list[int]) -> "GlueDataset":
        """These rows, in this order."""
        part = copy.copy(self)
        part.table, part.labels, part.lengths = (
            self.table.select(rows),
            self.labels[rows],
            self.lengths[rows],
        )
        part.file_rows = None if self.file_rows is None else self.file_rows[rows]
        longest = int(part.lengths.max())
        part.inputs = {
            name: values[rows, :longest].contiguous() for name, values in self.inputs.items()
        }
        return part

    def fingerprint(self) -> str:
        """SHA-256 over token numbers, segment numbers, lengths, labels and order."""
        tensors = {
            "labels": torch.from_numpy(self.labels),
            "lengths": torch.from_numpy(self.lengths),
        }
        return fingerprint_of_tensors(tensors | self.inputs)


def collate(
    items: list[tuple[GlueDataset, int]], pad_to: int | None = None
) -> dict[str, torch.Tensor]:
    """Items of one data set -> `GlueDataset.batch` of their rows."""
    return items[0][0].batch([row for _, row in items], pad_to)


def pad(flat: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
    """int32 (N, longest row), filled with 0 behind the end of each row."""
    padded = torch.zeros(len(lengths), int(lengths.max()), dtype=torch.int32)
    padded.numpy()[np.arange(padded.shape[1]) < lengths[:, None]] = flat
    return padded
