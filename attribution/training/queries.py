"""Custom queries: their texts, labels (given or predicted), and files.

The texts are stored only below the run's folder. Symbols: Q queries, C classes.
"""

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch

from attribution.data.dataset import GlueDataset
from attribution.data.labels import class_of, is_missing, number_of, value_of
from attribution.data.reader import is_unicode, place_of, read_table
from attribution.data.tables import check_texts
from attribution.data.tasks import GlueTask
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
        rows = [[*self.data.columns_of(i), self.data.exact_label(i)] for i in range(len(self.data))]
        return f"_queries-{hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12]}"

    def save(self, folder: Path) -> None:
        """Writes texts, labels and targets next to their scores, as queries.json."""
        rows = [
            {"texts": self.data.columns_of(i), "label": self.data.exact_label(i), "target": target}
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
        if not all(part.strip() for part in parts):
            raise Refused(f"query {i} (from 0 on) has an empty text")
        if not all(map(is_unicode, parts)):
            raise Refused(f"query {i} (from 0 on) has a text that is no Unicode")
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


def predict_run(run: Run, data: GlueDataset, phase: str = "") -> torch.Tensor:
    """Logits (N, C) of the run's model, float32. phase: see `fit.over_rows`."""
    return predict(run.model(choose_device()), data, phase=phase)


def read_label(value, task: GlueTask) -> float | int:
    """Class of a class name or number, or number of a regression.

    Raises Refused for a label outside the task.
    """
    shown = printable(str(value))[:80]
    if task.regression:
        low, high = task.bounds or (-math.inf, math.inf)
        found = value_of(value)
        if found is None or not low <= found <= high:
            bounds = f" from {low:g} to {high:g}" if task.bounds else ""
            raise Refused(f"the label {shown!r} is no number{bounds}")
        return found
    number = number_of(value)
    place = class_of(value, task.class_names)
    if place is not None:
        return place
    # Classes whose names are numbers are not counted from 0 as well.
    named = all(name.lstrip("-").isdigit() for name in task.class_names)
    if named or number not in range(task.num_labels):
        counted = "" if named else f", or 0 to {task.num_labels - 1}"
        known = ", ".join(task.class_names)
        raise Refused(f"the task does not know the label {shown!r}; it knows {known}{counted}")
    return int(number)


# --- files ----------------------------------------------------------------------------------------


def read_queries(path: str, run: Run) -> tuple[list[list[str]], list]:
    """(texts, labels or None) of the rows of a file, or of standard input ('-').

    Columns have the names of the run's; the label column may be missing, and so may a label.
    Raises Refused as `reader.read_table` does, and if there are no rows.
    """
    columns = run.task.columns
    label = run.data["asked"]["label_column"] if run.data else "label"
    table = read_table([Path(path)], columns, label, unlabelled=True)
    where = "standard input" if path == "-" else path
    if len(table) == 0:
        raise Refused(f"{where} holds no queries")
    check_texts(table, columns, where)
    texts = [list(row) for row in zip(*(table[name] for name in columns), strict=True)]
    given = table["label"] if "label" in table.column_names else [None] * len(table)
    labels = [None if is_missing(value) else value for value in given]
    for row, (parts, value) in enumerate(zip(texts, labels, strict=True)):
        for name, text in zip(columns, parts, strict=True):
            if not text.strip():
                raise Refused(f"{place_of(row, where)} has no text in the column {name!r}")
        try:
            if value is not None:
                read_label(value, run.task)
        except Refused as refusal:
            raise Refused(f"{place_of(row, where)}, column {label!r}: {refusal}") from None
    return texts, labels
