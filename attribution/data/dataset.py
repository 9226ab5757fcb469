"""Tokenized rows: tokens made once (cached on the disk for large tables), data sets and batches.

Symbols: N rows, B examples of a batch, T tokens.
"""

import copy
import hashlib
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import torch

from attribution.data.rows import Rows
from attribution.data.tasks import GlueTask
from attribution.files import Refused, exclusive, read_json, write_json
from attribution.processes import num_cores
from attribution.tensors import fingerprint_of_tensors


class GlueDataset(Rows, torch.utils.data.Dataset):
    """Tokenized rows in memory, and their table.

    An item is (this data set, row number), from which `collate` makes batches in any order.
    """

    def __init__(
        self, table: datasets.Dataset, task: GlueTask, labels: np.ndarray, encoded: dict[str, tuple]
    ) -> None:
        """labels: (N,), from `tables.labels_of`. encoded: from `tokenize`."""
        self.table = table  # text columns and `label`
        self.task = task
        self.labels = labels
        self.lengths = encoded["input_ids"][1]
        # name -> int32 tensor (N, longest row), padded with 0, which the mask hides
        self.inputs = {name: pad(*values) for name, values in encoded.items()}

    def __getitem__(self, index: int) -> tuple["GlueDataset", int]:
        return self, int(index)

    def batch(self, rows, pad_to: int | None = None) -> dict[str, torch.Tensor]:
        """Batch of row numbers: `input_ids`, `attention_mask`, `token_type_ids` (B, T), `labels`,
        `row` (B,).

        T is the length of the longest of these rows, or pad_to.
        """
        rows = torch.as_tensor(rows, dtype=torch.long)
        lengths = torch.from_numpy(self.lengths)[rows]
        longest = int(lengths.max())
        width = pad_to or longest
        batch = {
            name: torch.nn.functional.pad(values[rows, :longest].long(), (0, width - longest))
            for name, values in self.inputs.items()
        }
        batch["attention_mask"] = (torch.arange(width) < lengths[:, None]).long()
        return batch | {"labels": torch.from_numpy(self.labels)[rows], "row": rows}

    def columns_of(self, index: int) -> list[str]:
        """Text columns of the row."""
        row = self.table[int(index)]
        return [row[column] for column in self.task.columns]

    def texts(self) -> list[str]:
        """`text` of every row."""
        return [" | ".join(parts) for parts in zip(*self.columns(), strict=True)]

    def columns(self) -> list[list[str]]:
        """Text columns, each of all rows."""
        return [list(self.table[column]) for column in self.task.columns]

    def digests(self) -> np.ndarray:
        """(N, 16) uint8: for each row the first 16 bytes of a SHA-256 over its token and segment
        numbers and its label.
        """
        labels = self.labels.astype("<f8")
        inputs = {name: self.inputs[name].numpy().astype("<i4") for name in sorted(self.inputs)}
        out = np.empty((len(self), 16), np.uint8)
        for row, length in enumerate(self.lengths):
            digest = hashlib.sha256(labels[row].tobytes())
            for name, values in inputs.items():
                digest.update(f"|{name}|".encode() + values[row, :length].tobytes())
            out[row] = np.frombuffer(digest.digest()[:16], np.uint8)
        return out

    def first(self, count: int) -> "GlueDataset":
        """Data set of the first `count` rows."""
        return self.window(0, count)

    def window(self, start: int, count: int) -> "GlueDataset":
        """Data set of at most `count` rows from `start` on. Raises Refused if there are none."""
        if start >= len(self):
            raise Refused(f"--first_query {start} is not among the {len(self):,} validation rows")
        rows = range(len(self))[start : start + count]
        if len(rows) == len(self):
            return self
        part = self.subset(list(rows))
        part.first_number = self.first_number + start
        return part

    def subset(self, rows: list[int]) -> "GlueDataset":
        """Data set of the given rows, in this order."""
        part = copy.copy(self)
        part.table = self.table.select(rows)
        part.labels = self.labels[rows]
        part.lengths = self.lengths[rows]
        part.file_rows = None if self.file_rows is None else self.file_rows[rows]
        part.truth = None if self.truth is None else self.truth[rows]
        longest = int(part.lengths.max())
        part.inputs = {
            name: values[rows, :longest].contiguous() for name, values in self.inputs.items()
        }
        return part

    def relabelled(self, labels: np.ndarray) -> "GlueDataset":
        """The same rows with other labels (N,)."""
        changed = copy.copy(self)
        changed.labels = labels
        return changed

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
    """Batch (`GlueDataset.batch`) of items of one data set."""
    return items[0][0].batch([row for _, row in items], pad_to)


def pad(flat: np.ndarray, lengths: np.ndarray) -> torch.Tensor:
    """int32 (N, longest row), filled with 0 after the end of each row."""
    padded = torch.zeros(len(lengths), int(lengths.max()), dtype=torch.int32)
    padded.numpy()[np.arange(padded.shape[1]) < lengths[:, None]] = flat
    return padded


# --- tokens -------------------------------------------------------------------------------------

CACHED_ROWS = 10_000  # least rows whose tokens are cached; those of fewer take a second
ROWS_A_PROCESS = 50_000  # at least, if several processes tokenize


def tokenize(
    table: datasets.Dataset,
    columns: tuple[str, ...],
    tokenizer,
    max_length: int,
    cache: bool = True,
) -> dict[str, tuple]:
    """Output of the tokenizer for the text columns, cut to max_length tokens: name -> (flat (T,),
    lengths (N,)).

    It is cached below the cache of the datasets library, under a fingerprint of table, tokenizer
    and length; of several processes one tokenizes, and the rest wait. cache: False for texts that
    must not be stored there.
    """

    def encode(batch: dict) -> dict:
        texts = [list(batch[column]) for column in columns]
        return dict(
            tokenizer(*texts, truncation=True, max_length=max_length, return_attention_mask=False)
        )

    if len(table) < CACHED_ROWS or not cache:
        return {name: flatten(values) for name, values in encode(table).items()}
    # A tokenizer keeps the length of its last call, which would change the library's fingerprint.
    encode({column: [""] for column in columns})
    parts = f"{table._fingerprint}|{fingerprint_of_tokenizer(tokenizer)}|{max_length}|{columns}"
    name = hashlib.sha256(parts.encode()).hexdigest()[:32]
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "attribution_tokens"

    def make() -> dict[str, tuple]:
        made = table.select_columns(list(columns)).map(
            encode,
            batched=True,
            remove_columns=list(columns),
            new_fingerprint=name,
            cache_file_name=str(folder / f"{name}.arrow"),
            desc="tokens",
            num_proc=min(num_cores(), len(table) // ROWS_A_PROCESS) or None,
        )
        return {column: flat_column(made, column) for column in made.column_names}

    with exclusive(folder, f".lock_{name}", wait_for="tokens"):
        return checked(folder, name, make)


def checked(folder: Path, name: str, make: Callable[[], dict[str, tuple]]) -> dict[str, tuple]:
    """Tokens of make(), which reads or writes <name>*.arrow in the folder; damaged files are made
    again.
    """
    record = folder / f"{name}.json"
    known = read_json(record)
    try:
        found = make()
        content = {"content": digest_of(found)}
        if known is None:
            write_json(record, content)
        if known in (None, content):
            return found
    except (OSError, ValueError, pa.ArrowException) as error:
        if getattr(error, "errno", None) is not None:  # of the disk, not of the content of a file
            raise
    print(f"the tokens in {folder / name}.arrow are damaged and are made again", file=sys.stderr)
    for path in folder.glob(f"{name}*"):
        path.unlink()
    found = make()
    write_json(record, {"content": digest_of(found)})
    return found


def digest_of(tokens: dict[str, tuple]) -> str:
    """SHA-256 of all tokens and lengths."""
    digest = hashlib.sha256()
    for name in sorted(tokens):
        for array in tokens[name]:
            digest.update(f"|{name}|".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def flat_column(made: datasets.Dataset, column: str) -> tuple[np.ndarray, np.ndarray]:
    """(flat (T,), lengths (N,)) of a column of lists of numbers."""
    lists = made.with_format("arrow")[:][column]
    lengths = pa.compute.list_value_length(lists).to_numpy()
    return pa.compute.list_flatten(lists).to_numpy(), lengths.astype(np.int64)


def flatten(values: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """(flat (T,), lengths (N,)) of lists of numbers."""
    lengths = np.array([len(value) for value in values], dtype=np.int64)
    numbers = itertools.chain.from_iterable(values)
    return np.fromiter(numbers, np.int32, int(lengths.sum())), lengths


def fingerprint_of_tokenizer(tokenizer) -> str:
    """SHA-256 over everything that turns a text into token numbers."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for part in ("truncation", "padding"):  # of the last call
        state.pop(part, None)
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
