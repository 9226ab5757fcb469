"""What one task asks of its data, and its tokenized rows.

Symbols: N rows, B examples of a batch, T tokens.
"""

from dataclasses import dataclass, field

import datasets
import numpy as np
import torch

from attribution.files import fingerprint_of_tensors


@dataclass(frozen=True)
class GlueTask:
    """What one data set asks of the scripts; everything else follows from this."""

    columns: tuple[str, ...]  # the text columns, in the order in which BERT reads them
    num_labels: int  # 1 for regression
    metrics: tuple[str, ...] = ("accuracy",)
    validation: tuple[str, ...] = ("validation",)
    max_train_samples: int | None = None
    recipe: dict = field(default_factory=dict)  # training arguments that differ from train.py's defaults

    @property
    def regression(self) -> bool:
        """Whether labels are numbers instead of classes."""
        return self.num_labels == 1


class GlueDataset(torch.utils.data.Dataset):
    """Tokenized rows in memory, and the table that they came from.

    An item is (this data set, row number): what `collate` needs, whatever order batches are formed in.
    """

    def __init__(self, table: datasets.Dataset, task: GlueTask, encoded: dict[str, list]) -> None:
        self.table = table  # datasets.Dataset: text columns, `label`, and on the demo the recorded truth
        self.task = task
        self.lengths = np.array([len(ids) for ids in encoded["input_ids"]], dtype=np.int64)
        self.labels = np.asarray(table["label"], dtype=np.float32 if task.regression else np.int64)
        self.inputs = {}  # name -> int32 tensor (N, longest row), padded with 0, which the mask hides
        for name, values in encoded.items():
            padded = torch.zeros(len(values), int(self.lengths.max()), dtype=torch.int32)
            for i, value in enumerate(values):
                padded[i, : len(value)] = torch.tensor(value, dtype=torch.int32)
            self.inputs[name] = padded

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> tuple["GlueDataset", int]:
        return self, int(index)

    def batch(self, rows, pad_to: int | None = None) -> dict[str, torch.Tensor]:
        """Row numbers -> batch: `input_ids`, `attention_mask`, `token_type_ids` (B, T), `labels`, `row` (B,).

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
        return [" | ".join(parts) for parts in zip(*(self.table[column] for column in self.task.columns), strict=True)]

    def label_name(self, index: int) -> str:
        """The class name as the data set declares it, or the similarity for regression."""
        label = self.table[int(index)]["label"]
        if self.task.regression:
            return f"{label:.2f}"
        feature = self.table.features["label"]
        return feature.int2str(label) if isinstance(feature, datasets.ClassLabel) else str(label)

    def fingerprint(self) -> str:
        """SHA-256 over token numbers, segment numbers, lengths, labels and order."""
        tensors = {"labels": torch.from_numpy(self.labels), "lengths": torch.from_numpy(self.lengths)}
        return fingerprint_of_tensors(tensors | self.inputs)


def collate(items: list[tuple[GlueDataset, int]], pad_to: int | None = None) -> dict[str, torch.Tensor]:
    """Items of one data set -> `GlueDataset.batch` of their rows."""
    return items[0][0].batch([row for _, row in items], pad_to)
