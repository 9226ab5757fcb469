"""Custom rows: a user's file or folder, opened, split, and labelled as the task that they make.

    data = CustomData("reviews.csv", ("text",), "stars")
    tables, rows = open_custom(data, "reviews")  # splits `train` and `validation`; rows drawn
    task = make_task(tables["train"], data)      # classes or a regression, by the labels
    tables = encode(tables, task)                # `label`: ClassLabel or float, as in GLUE's tables

Symbols: N rows, C classes.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np

from attribution.data.tables import (
    SUFFIXES,
    GlueTask,
    arrow_column,
    count_records,
    number_of,
    open_tables,
    text_options,
)
from attribution.draws import uniform_hash
from attribution.files import Refused, printable
from attribution.hub import open_asset

SHARE = 0.1  # of the rows that are kept for validation where there is one split only
MOST_CLASSES = 100  # without --task
KINDS = ("classification", "regression")


@dataclass(frozen=True)
class CustomData:
    """Place of custom rows, their columns, and the choice of validation rows."""

    path: str
    text_columns: tuple[str, ...]
    label_column: str
    kind: str | None = None  # one of KINDS; None: as the labels are
    validation_split: str | None = None  # split, file or share; None: see `open_custom`
    split_seed: int = 0


# --- opening --------------------------------------------------------------------------------------


def open_custom(
    data: CustomData, name: str, drawn: list[int] | None = None
) -> tuple[datasets.DatasetDict, list[int] | None]:
    """(tables `train` and `validation` with the text columns and `label`, rows drawn for validation
    or None).

    drawn: rows that were drawn before, to be taken again. Validation rows are a split
    (`validation` where there are several), a second file, or a share of the only split. Raises
    Refused if a split, a column or rows are missing.
    """
    if Path(data.path).is_file():
        splits = {"train": open_file(Path(data.path))}
    else:
        splits = dict(open_tables(data.path, name))
    if "train" not in splits and len(splits) > 1:
        raise Refused(
            f"the data set {data.path!r} has no split 'train' (it has {', '.join(splits)})"
        )
    first = next(iter(splits.values()))
    train = choose_columns(splits.get("train", first), data, "train")
    wanted = data.validation_split
    share = SHARE if wanted is None and len(splits) == 1 else parse_share(wanted)
    if drawn is None and share is not None:
        label_values(train, data.path)  # a row without a label is named as the file counts
        drawn = draw_rows(len(train), share, data.split_seed)
    if drawn is not None:
        if drawn and max(drawn) >= len(train):
            raise Refused(
                f"the data set {data.path!r} has {len(train):,} rows, fewer than the run was "
                "trained on"
            )
        kept = train.select(np.setdiff1d(np.arange(len(train)), drawn))
        return datasets.DatasetDict({"train": kept, "validation": train.select(drawn)}), drawn
    if wanted is not None and Path(wanted).is_file():
        splits = {wanted: open_file(Path(wanted))}
    split = wanted or "validation"
    if split not in splits:
        raise Refused(
            f"the data set {data.path!r} has no split {split!r} (it has {', '.join(splits)}); name "
            "a split, a file or a share between 0 and 1: --validation_split"
        )
    valid = choose_columns(splits[split], data, "validation")
    return datasets.DatasetDict({"train": train, "validation": valid}), None


def open_file(path: Path) -> datasets.Dataset:
    """Rows of a CSV, TSV, JSONL, JSON or Parquet file.

    Raises Refused for another kind of file, and if it holds more records than can be read.
    """
    flag = "--dataset_path"
    kind = path.suffix.lstrip(".").lower()
    if kind not in SUFFIXES:
        raise Refused(f"{path} is no file of the kinds {', '.join(SUFFIXES)}; check {flag}")
    reader = {"tsv": "csv", "jsonl": "json"}.get(kind, kind)

    def load() -> tuple[datasets.Dataset, dict]:
        options = text_options(datasets.load_dataset_builder(reader, data_files=str(path)).config)
        table = datasets.load_dataset(reader, data_files=str(path), split="train", **options)
        return table, options

    table, options = open_asset(str(path), flag, "file", load)
    if options and (wanted := count_records(path)) != len(table):
        raise Refused(f"{path} holds {wanted:,} records, but {len(table):,} were read")
    return table


def choose_columns(table: datasets.Dataset, data: CustomData, split: str) -> datasets.Dataset:
    """Text columns of a table, and its label column as `label`.

    Raises Refused if one is missing or there are no rows.
    """
    columns = [*data.text_columns, data.label_column]
    for name in columns:
        if name not in table.column_names:
            raise Refused(
                f"the split {split!r} of {data.path} has no column {name!r} (it has "
                f"{', '.join(table.column_names)}); check --text_columns and --label_column"
            )
    if len(table) == 0:
        raise Refused(f"the split {split!r} of {data.path} has no rows")
    return table.select_columns(columns).rename_columns({data.label_column: "label"})


def parse_share(text: str | None) -> float | None:
    """Share of the rows in --validation_split; None for a split or a file.

    Raises Refused for a number outside 0 to 1.
    """
    try:
        share = float(text or "")
    except ValueError:
        return None
    if not 0 < share < 1:
        raise Refused(f"--validation_split {text} must be between 0 and 1")
    return share


def draw_rows(count: int, share: float, seed: int) -> list[int]:
    """Validation rows, ascending: a function of the number of rows, the share and the seed.

    Raises Refused for fewer than two rows.
    """
    if count < 2:
        raise Refused(
            "a data set of one row cannot be split; name validation rows with --validation_split"
        )
    number = min(count - 1, max(1, round(share * count)))
    order = np.argsort(uniform_hash(seed, "validation rows", np.arange(count)), kind="stable")
    return sorted(order[:number].tolist())


# --- labels ---------------------------------------------------------------------------------------


def make_task(train: datasets.Dataset, data: CustomData) -> GlueTask:
    """Task of the training rows: classes, their distinct labels, or a regression if numbers have a
    fraction.

    Classes are in the order of the numbers, of the alphabet, or of the column's own class names.
    Raises Refused for a missing label, for one class only, and for more than MOST_CLASSES without
    --task.
    """
    values = label_values(train, "train")
    numbers = all(isinstance(value, (int, float)) for value in values)
    whole = numbers and all(float(value).is_integer() for value in values if math.isfinite(value))
    kind = data.kind or ("regression" if numbers and not whole else "classification")
    if kind == "regression":
        return GlueTask(data.text_columns, 1, metrics=("pearson", "spearmanr"))
    found = {name_of_label(value) for value in values}
    feature = train.features["label"]
    if isinstance(feature, datasets.ClassLabel):
        names = tuple(name for name in feature.names if name in found)
    elif numbers:
        names = tuple(name_of_label(value) for value in sorted(set(values)))
    else:
        names = tuple(sorted(found))
    if len(names) < 2:
        raise Refused(f"all training rows have the label {names[0]!r}; two classes are the least")
    if len(names) > MOST_CLASSES and data.kind is None:
        raise Refused(
            f"the training rows have {len(names):,} distinct labels; say what they are: --task "
            "classification or --task regression"
        )
    return GlueTask(data.text_columns, len(names), names, metrics=("accuracy", "macro_f1"))


def label_values(table: datasets.Dataset, where: str) -> list:
    """Labels as Python values; of a ClassLabel the names.

    where: the split, or the file of a single split, as a refusal names it; its rows count from 0.
    Raises Refused if a label is missing.
    """
    feature = table.features["label"]
    values = arrow_column(table, "label").to_pylist()
    for row, value in enumerate(values):
        missing = value is None or (isinstance(value, float) and not math.isfinite(value))
        if missing or value == "" or not isinstance(value, (str, bool, int, float)):
            raise Refused(
                f"row {row} of {where!r} (from 0 on) has no label that can be used: "
                f"{printable(repr(value))[:80]}"
            )
    if not isinstance(feature, datasets.ClassLabel):
        return values
    if -1 in values:
        raise Refused(f"row {values.index(-1)} of {where!r} (from 0 on) is unlabelled (-1)")
    return [feature.names[value] for value in values]


def name_of_label(value) -> str:
    """Class name of a label: 3 and 3.0 are the same class."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def encode(tables: datasets.DatasetDict, task: GlueTask) -> datasets.DatasetDict:
    """Tables whose `label` is the task's ClassLabel, or float64 for a regression.

    Raises Refused for a label that the training rows do not have, and for one that is no number.
    """
    places = {name: place for place, name in enumerate(task.class_names)}
    known = "a number"
    feature = datasets.Value("float64")
    if not task.regression:
        known = f"one of the training rows' ({', '.join(task.class_names[:8])})"
        feature = datasets.ClassLabel(names=list(task.class_names))
    encoded = {}
    for split, table in tables.items():
        labels = []
        for row, value in enumerate(label_values(table, split)):
            place = places.get(name_of_label(value), math.nan)
            label = number_of(value, ()) if task.regression else place
            if not math.isfinite(label):
                shown = printable(str(value))[:80]
                raise Refused(
                    f"row {row} of the split {split!r} has the label {shown!r}, which is not "
                    f"{known}"
                )
            labels.append(label)
        features = {name: table.features[name] for name in task.columns} | {"label": feature}
        columns = {name: arrow_column(table, name).to_pylist() for name in task.columns}
        encoded[split] = datasets.Dataset.from_dict(
            columns | {"label": labels}, features=datasets.Features(features)
        )
    return datasets.DatasetDict(encoded)
