"""Custom queries: their texts, labels (given or predicted), and files.

The texts are stored only below the run's folder: they are read without the caches of the datasets
library. Symbols: Q queries, C classes.
"""

import csv
import hashlib
import io
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch

from attribution.data.custom import name_of_label
from attribution.data.dataset import GlueDataset
from attribution.data.tables import GlueTask, number_of
from attribution.files import Refused, printable, write_json
from attribution.processes import choose_device
from attribution.training.fit import predict
from attribution.training.run import Run
from pipeline import get_glue_dataset

TARGETS = ("label", "predicted", "output")  # of a query; "output": of a regression


@dataclass(frozen=True)
class Questions:
    """Custom queries with their targets."""

    data: GlueDataset  # a regression's label is NaN if the target is the output itself
    targets: list[str]  # (Q,) of TARGETS
    logits: np.ndarray  # (Q, C) of the run's model

    @property
    def suffix(self) -> str:
        """End of the name of their scores: 12 digits of a SHA-256 over texts and labels."""
        rows = [[*self.texts(i), self.data.label_name(i)] for i in range(len(self.data))]
        return f"_queries-{hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12]}"

    def texts(self, index: int) -> list[str]:
        """Text columns of one query."""
        return [self.data.table[index][column] for column in self.data.task.columns]

    def save(self, folder: Path) -> None:
        """Writes texts, labels and targets next to their scores, as queries.json."""
        rows = [
            {"texts": self.texts(i), "label": self.data.label_name(i), "target": target}
            for i, target in enumerate(self.targets)
        ]
        write_json(folder / "queries.json", {"queries": rows})


def ask(run: Run, texts: list[list[str]], labels: list) -> Questions:
    """Queries as the run's model reads them.

    texts: text columns of each query. labels: class name or number of each; None for the class
    that the model predicts, and for the output of a regression. Raises Refused for empty texts, a
    wrong number of texts, and labels that the task does not know.
    """
    task = run.task
    count = len(task.columns)
    for i, parts in enumerate(texts):
        if len(parts) != count:
            wanted = f"{count} text{'s' * (count > 1)} ({', '.join(task.columns)})"
            raise Refused(f"a query of {run.dataset_name} takes {wanted}, not {len(parts)}")
        if not all(isinstance(part, str) and part.strip() for part in parts):
            raise Refused(f"query {i} has an empty text")
    given = [None if label is None else read_label(label, task) for label in labels]
    unlabelled = [i for i, label in enumerate(given) if label is None]
    features = {name: datasets.Value("string") for name in task.columns}
    features["label"] = datasets.Value("float64" if task.regression else "int64")
    rows = [[*parts, label or 0] for parts, label in zip(texts, given, strict=True)]
    columns = dict(zip(features, map(list, zip(*rows, strict=True)), strict=True))
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    tables = datasets.DatasetDict({task.validation[0]: table})
    data = get_glue_dataset(run.dataset_name, "valid", tables=tables, cache=False, **run.reading())
    logits = predict_run(run, data).numpy()
    data.labels[unlabelled] = np.nan if task.regression else logits[unlabelled].argmax(-1)
    computed = "output" if task.regression else "predicted"
    targets = [computed if label is None else "label" for label in given]
    return Questions(data, targets, logits)


def predict_run(run: Run, data: GlueDataset) -> torch.Tensor:
    """Logits (N, C) of the run's model, float32."""
    return predict(run.model(choose_device()), data)


def read_label(value, task: GlueTask) -> float | int:
    """Class of a class name or number, or number of a regression.

    Raises Refused for a label outside the task.
    """
    shown = printable(str(value))[:80]
    number = number_of(value, ())
    if task.regression:
        low, high = task.bounds or (-math.inf, math.inf)
        if not (math.isfinite(number) and low <= number <= high):
            raise Refused(f"the query label {shown!r} is not a number that the task knows")
        return number
    name = name_of_label(value)
    if name in task.class_names:
        return task.class_names.index(name)
    # Classes whose names are numbers are not counted from 0 as well.
    named = all(name.lstrip("-").isdigit() for name in task.class_names)
    if named or number not in range(task.num_labels):
        counted = "" if named else f", or 0 to {task.num_labels - 1}"
        known = ", ".join(task.class_names)
        raise Refused(
            f"the task does not know the query label {shown!r}; it knows {known}{counted}"
        )
    return int(number)


# --- files ----------------------------------------------------------------------------------------


def read_queries(path: str, run: Run) -> tuple[list[list[str]], list]:
    """(texts, labels or None) of the rows in a CSV, TSV, JSONL or Parquet file, or on standard
    input ('-').

    Columns have the names of the task; a label column is optional. Raises Refused if a text column
    is missing, or there are no rows.
    """
    columns = run.task.columns
    where = "standard input" if path == "-" else path
    rows = read_rows(path, where)
    if not rows:
        raise Refused(f"{where} holds no queries")
    for row in rows:
        for name in columns:
            if name not in row:
                known = printable(", ".join(map(str, row)))[:120]
                raise Refused(f"the queries in {where} have no column {name!r} (they have {known})")
    label = run.data["asked"]["label_column"] if run.data else "label"
    texts = [["" if row[name] is None else row[name] for name in columns] for row in rows]
    return texts, [None if row.get(label) in (None, "") else row[label] for row in rows]


def read_rows(path: str, where: str) -> list[dict]:
    """Rows of a file or of standard input as dictionaries. where: its description for the message.

    JSONL begins with a brace; other text is TSV or CSV, by the name of the file.
    """
    try:
        if Path(path).suffix == ".parquet":
            return pa.parquet.read_table(path).to_pylist()
        text = sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8-sig")
        if text.lstrip().startswith("{"):
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("a line is no JSON object")
            return rows
        delimiter = "\t" if Path(path).suffix == ".tsv" else ","
        return list(csv.DictReader(io.StringIO(text), delimiter=delimiter, strict=True))
    except FileNotFoundError:
        raise Refused(f"there is no file {path}") from None
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        raise Refused(
            f"the queries in {where} cannot be read ({str(error).splitlines()[0][:120]})"
        ) from error
