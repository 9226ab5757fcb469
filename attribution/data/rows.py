"""Rows as people see them: texts, labels and numbers, without tokens.

They are kept in a file when they are scored, so that an answer about stored scores opens neither
data set nor tokenizer. Symbols: N rows.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from attribution.data.tasks import GlueTask
from attribution.files import Refused, sha256_of, write_bytes

DIGITS = 16  # of the SHA-256 of kept rows, in the name of their file


class Rows:
    """Texts, labels and numbers of rows."""

    task: GlueTask
    labels: np.ndarray  # (N,)
    # (N,) numbers of these rows in their file, from 0 on, if it holds the validation rows too
    file_rows: np.ndarray | None = None
    first_number = 0  # of the first of these rows among the validation rows
    # (N,) bool: which labels are known to be wrong; recorded of the embedded demo only
    truth: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def wrong(self) -> np.ndarray | None:
        """(N,) bool: which labels are wrong; None if that is not recorded, or none or all are."""
        truth = self.truth
        return truth if truth is not None and 0 < truth.sum() < len(truth) else None

    def columns_of(self, index: int) -> list[str]:
        """Text columns of the row."""
        raise NotImplementedError

    def text(self, index: int) -> str:
        """Text columns of the row, joined by ' | '."""
        return " | ".join(self.columns_of(index))

    def label_name(self, index: int) -> str:
        """Name of the row's class; for a regression the number, or `output` for none (NaN)."""
        label = self.labels[index]
        if self.task.regression:
            return "output" if np.isnan(label) else f"{label:.2f}"
        return self.task.name_of(label)

    def exact_label(self, index: int) -> str:
        """The same with as many digits as it takes to read the same label again."""
        label = self.labels[index]
        if self.task.regression and np.isfinite(label):
            return np.format_float_positional(label, min_digits=2)
        return self.label_name(index)

    def file_row(self, index: int) -> int | None:
        """Number of the row in the file from which validation rows were drawn; None: none were."""
        return None if self.file_rows is None else int(self.file_rows[index])

    def place_of(self, number: int, flag: str) -> int:
        """Place of a validation row among these rows, by its number.

        flag: the argument that named it. Raises Refused if it is not among them.
        """
        first = self.first_number
        if not first <= number < first + len(self):
            raise Refused(f"--{flag} must be from {first} to {first + len(self) - 1}, not {number}")
        return number - first


class KeptRows(Rows):
    """Rows of a file that `keep_rows` wrote, which stays on the disk until they are asked for."""

    def __init__(self, path: Path, task: GlueTask) -> None:
        """Raises OSError or pyarrow's errors for a file that is missing or not of rows."""
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        about = json.loads(table.schema.metadata[b"rows"])
        self.task = task
        self.table = table
        self.labels = table["label"].to_numpy()
        self.first_number = about["first_number"]
        for name in about["more"]:
            setattr(self, name, table[name].to_numpy())

    def columns_of(self, index: int) -> list[str]:
        """Text columns of the row."""
        columns = range(len(self.task.columns))
        return [self.table[f"text {place}"][int(index)].as_py() for place in columns]


def keep_rows(rows: Rows, texts: list[list[str]], folder: Path) -> str:
    """Name of the file in the folder that keeps these rows; it is written unless it exists.

    texts: their text columns, each of N texts.
    """
    columns: dict = {f"text {place}": pa.array(column) for place, column in enumerate(texts)}
    more = {name: getattr(rows, name) for name in ("file_rows", "truth")}
    more = {name: values for name, values in more.items() if values is not None}
    table = pa.table(columns | {"label": rows.labels} | more)
    about = json.dumps({"first_number": rows.first_number, "more": [*more]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema.with_metadata({"rows": about})) as writer:
        writer.write_table(table)
    content = sink.getvalue().to_pybytes()
    name = f"{hashlib.sha256(content).hexdigest()[:DIGITS]}.arrow"
    if not is_kept(folder / name):
        write_bytes(folder / name, content)
    return name


def is_kept(path: Path) -> bool:
    """Whether the file has the rows of its name, undamaged."""
    return path.is_file() and sha256_of(path).startswith(path.stem)
