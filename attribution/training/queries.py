"""Custom queries: texts, labels that were given or that the model predicts, and their file.

Their texts are stored only below the run's folder: they are read without the caches of the
datasets library. Symbols: Q queries, C classes.
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
from attribution.models import open_trained
from attribution.processes import choose_device
from attribution.training.fit import predict
from attribution.training.run import Run
from pipeline import get_glue_dataset

TARGETS = ("label", "predicted", "output")  # of a query; "output": a regression's
UNLABELLED = {False: "predicted", True: "output"}  # whether the task is a regression


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
    wanted = f"{len(task.columns)} text{'s' * (len(task.columns) > 1)} ({', '.join(task.columns)})"
    for i, parts in enumerate(texts):
        if len(parts) != len(task.columns):
            raise Refused(f"a query of {run.dataset_name} takes {wanted}, not {len(parts)}")
        if not all(isinstance(part, str) and part.strip() for part in parts):
            raise Refused(f"query {i} has an empty text")
    given = [None if label is None else read_label(label, task) for label in labels]
    targets = ["label" if label is not None else UNLABELLED[task.regression] for label in given]
    data = tokenized(run, texts, [label or 0 for label in given])
    logits = predict_run(run, data).numpy()
    unlabelled = [i for i, label in enumerate(given) if label is None]
    if task.regression:
        data.labels[unlabelled] = np.nan
    elif unlabelled:
        predicted = logits.argmax(-1).tolist()
        labels = [
            place if label is None else label for label, place in zip(given, predicted, strict=True)
        ]
        data = tokenized(run, texts, labels)
    return Questions(data, targets, logits)


def tokenized(run: Run, texts: list[list[str]], labels: list) -> GlueDataset:
    """Texts and numeric labels as the run's model reads them."""
    task = run.task
    columns: dict[str, list] = {
        name: [parts[i] for parts in texts] for i, name in enumerate(task.columns)
    }
    features = {name: datasets.Value("string") for name in columns}
    features["label"] = datasets.ClassLabel(names=list(task.class_names))
    if task.regression:
        features["label"] = datasets.Value("float64")
    table = datasets.Dataset.from_dict(
        columns | {"label": labels}, features=datasets.Features(features)
    )
    tables = datasets.DatasetDict({task.validation[0]: table})
    return get_glue_dataset(run.dataset_name, "valid", tables=tables, cache=False, **run.reading())


def predict_run(run: Run, data: GlueDataset) -> torch.Tensor:
    """Logits (N, C) of the run's model, float32."""
    return predict(open_trained(run.folder, choose_device()), data)


def read_label(value, task: GlueTask) -> float | int:
    """A class name or number as a class, or a regression's number. Raises Refused for a label
    outside the task.
    """
    shown = printable(str(value))[:80]
    if task.regression:
        number, (low, high) = number_of(value, ()), task.bounds or (-math.inf, math.inf)
        if not (math.isfinite(number) and low <= number <= high):
            raise Refused(f"the query label {shown!r} is not a number that the task knows")
        return number
    if (name := name_of_label(value)) in task.class_names:
        return task.class_names.index(name)
    number = number_of(value, ())
    named = all(name.lstrip("-").isdigit() for name in task.class_names) and bool(task.class_names)
    if named or number not in range(
        task.num_labels
    ):  # classes whose names are numbers have no other numbers
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

    Columns are called as in the task; a label column is read where there is one. Raises Refused
    where a text column is missing, or there are no rows.
    """
    task, where = run.task, "standard input" if path == "-" else path
    rows = read_rows(path, where)
    if not rows:
        raise Refused(f"{where} holds no queries")
    for name in task.columns:
        if missing := [i for i, row in enumerate(rows) if name not in row]:
            known = ", ".join(map(str, rows[missing[0]]))
            raise Refused(
                f"the queries in {where} have no column {name!r} (they have "
                f"{printable(known)[:120]})"
            )
    label = (run.data or {}).get("asked", {}).get("label_column", "label")
    texts = [["" if row[name] is None else row[name] for name in task.columns] for row in rows]
    return texts, [None if row.get(label) in (None, "") else row[label] for row in rows]


def read_rows(path: str, where: str) -> list[dict]:
    """The rows of a file as dictionaries; standard input is JSONL where it begins with a brace,
    else CSV.
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
