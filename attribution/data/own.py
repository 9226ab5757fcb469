"""Rows of one's own: opened from a file or a folder, split, and labelled as a task knows it.

    data = OwnData("reviews.csv", ("text",), "stars")
    tables, rows = open_own(data, "reviews")     # DatasetDict of `train` and `validation`; the rows
    that were drawn
    task = make_task(tables["train"], data)      # classes or a regression, by the labels
    tables = encode(tables, task)                # `label`: ClassLabel or float, as for GLUE's own
    tables

Symbols: N rows, C classes.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets
import numpy as np

from attribution.data.tables import (
    SUFFIXES,
    GlueTask,
    arrow_column,
    count_records,
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
class OwnData:
    """Where rows of one's own are, which columns count, and how validation rows are chosen."""

    path: str
    text_columns: tuple[str, ...]
    label_column: str
    kind: str | None = None  # one of KINDS; None: as the labels are
    validation_split: str | None = None  # a split's name, a file, or a share; None: see `open_own`
    split_seed: int = 0

    def record(self) -> dict:
        """These values as run.json holds them."""
        return asdict(self)


# --- opening --------------------------------------------------------------------------------------


def open_own(
    data: OwnData, name: str, drawn: list[int] | None = None
) -> tuple[datasets.DatasetDict, list[int] | None]:
    """(tables `train` and `validation` with the text columns and `label`, rows drawn for validation
    or None).

    drawn: the rows as they were drawn before. Validation rows are a split (`validation` where there
    are several), a second file, or a share of the only split, drawn by a hash of split seed and
    row. Raises Refused where a split, a column or rows are missing.
    """
    splits = open_splits(data.path, name)
    train = splits["train"] if "train" in splits else next(iter(splits.values()))
    if "train" not in splits and len(splits) > 1:
        raise Refused(
            f"the data set {data.path!r} has no split 'train' (it has {', '.join(splits)})"
        )
    wanted = data.validation_split
    share = SHARE if wanted is None and len(splits) == 1 else share_of(wanted)
    if drawn is not None or share is not None:
        whole = chosen(train, data, "train")
        if drawn is None:
            label_values(whole, data.path)  # a row without a label is named as the file counts
        rows = draw_rows(len(train), share, data.split_seed) if drawn is None else drawn
        if rows and max(rows) >= len(train):
            raise Refused(
                f"the data set {data.path!r} has {len(train):,} rows, fewer than the run was "
                "trained on"
            )
        kept = whole.select(np.setdiff1d(np.arange(len(train)), rows))
        return datasets.DatasetDict({"train": kept, "validation": whole.select(rows)}), rows
    if wanted is not None and Path(wanted).is_file():
        valid = next(iter(open_splits(wanted, name).values()))
    elif (wanted or "validation") in splits:
        valid = splits[wanted or "validation"]
    else:
        raise Refused(
            f"the data set {data.path!r} has no split {wanted or 'validation'!r} (it has "
            f"{', '.join(splits)}); name a split, a file or a share between 0 and 1: "
            "--validation_split"
        )
    return datasets.DatasetDict(
        {"train": chosen(train, data, "train"), "validation": chosen(valid, data, "validation")}
    ), None


def open_splits(path: str, name: str) -> dict[str, datasets.Dataset]:
    """Split name -> table of a file, a folder or a hub id; a single file has one split."""
    place = Path(path)
    if place.is_file():
        return {"train": open_file(place)}
    if not place.is_dir() and path.count("/") != 1:
        raise Refused(
            f"--dataset_path {path!r} is neither a file, a folder nor a hub id of the form "
            "owner/name"
        )
    if (place / "state.json").is_file():
        load = lambda: datasets.load_from_disk(path)  # noqa: E731
        return {"train": open_asset(path, "--dataset_path", "data set", load)}
    return dict(open_tables(path, name))


def open_file(path: Path, flag: str = "--dataset_path") -> datasets.Dataset:
    """The rows of a CSV, TSV, JSONL, JSON or Parquet file. Raises Refused for others, and for
    records that differ.
    """
    kind = path.suffix.lstrip(".").lower()
    if kind not in SUFFIXES:
        raise Refused(f"{path} is no file of the kinds {', '.join(SUFFIXES)}; check {flag}")
    reader = {"tsv": "csv", "jsonl": "json"}.get(kind, kind)
    builder = open_asset(
        str(path), flag, "file", lambda: datasets.load_dataset_builder(reader, data_files=str(path))
    )
    options = text_options(builder.config)

    def load() -> datasets.Dataset:
        return datasets.load_dataset(reader, data_files=str(path), split="train", **options)

    table = open_asset(str(path), flag, "file", load)
    if options and (wanted := count_records(path)) != len(table):
        raise Refused(f"{path} holds {wanted:,} records, but {len(table):,} were read")
    return table


def chosen(table: datasets.Dataset, data: OwnData, split: str) -> datasets.Dataset:
    """The text columns, and the label column as `label`. Raises Refused where one is missing or
    there are no rows.
    """
    for name in (*data.text_columns, data.label_column):
        if name not in table.column_names:
            raise Refused(
                f"the split {split!r} of {data.path} has no column {name!r} (it has "
                f"{', '.join(table.column_names)}); check --text_columns and --label_column"
            )
    if len(table) == 0:
        raise Refused(f"the split {split!r} of {data.path} has no rows")
    table = table.select_columns([*data.text_columns, data.label_column])
    return (
        table if data.label_column == "label" else table.rename_column(data.label_column, "label")
    )


def share_of(text: str | None) -> float | None:
    """The share that the text names; None where it names none. Raises Refused for a number outside
    0 to 1.
    """
    try:
        share = float(text) if text is not None else None
    except ValueError:
        return None
    if share is not None and not 0 < share < 1:
        raise Refused(f"--validation_split {text} must lie between 0 and 1")
    return share


def draw_rows(count: int, share: float | None, seed: int) -> list[int]:
    """Rows (ascending) drawn for validation: a function of number of rows, share and seed. Raises
    Refused for < 2.
    """
    if count < 2:
        raise Refused(
            "a data set of one row cannot be split; name validation rows with --validation_split"
        )
    number = min(count - 1, max(1, round((share or SHARE) * count)))
    return sorted(
        np.argsort(uniform_hash(seed, "validation rows", np.arange(count)), kind="stable")[
            :number
        ].tolist()
    )


def shared_texts(tables: datasets.DatasetDict, columns: tuple[str, ...]) -> int:
    """Validation rows whose texts are those of a training row."""
    known = set(zip(*(tables["train"][column] for column in columns), strict=True))
    return sum(
        texts in known
        for texts in zip(*(tables["validation"][column] for column in columns), strict=True)
    )


# --- labels ---------------------------------------------------------------------------------------


def make_task(train: datasets.Dataset, data: OwnData) -> GlueTask:
    """Classes (the sorted distinct labels of the training rows) or, where numbers have a fraction,
    a regression.

    Raises Refused for a missing label, for one class only, and for more than MOST_CLASSES where no
    kind was asked.
    """
    values = label_values(train, "train")
    numbers = all(isinstance(value, (int, float)) for value in values)
    whole = numbers and all(float(value).is_integer() for value in values if math.isfinite(value))
    kind = data.kind or ("regression" if numbers and not whole else "classification")
    if kind == "regression":
        return GlueTask(data.text_columns, 1, metrics=("pearson", "spearmanr"))
    names = class_names(values)
    if len(names) < 2:
        raise Refused(f"all training rows have the label {names[0]!r}; two classes are the least")
    if len(names) > MOST_CLASSES and data.kind is None:
        raise Refused(
            f"the training rows have {len(names):,} distinct labels; say what they are: --task "
            "classification or --task regression"
        )
    return GlueTask(data.text_columns, len(names), names, metrics=("accuracy", "macro_f1"))


def label_values(table: datasets.Dataset, where: str) -> list:
    """Labels as Python values; of a ClassLabel the names, in their order. Raises Refused where one
    is missing.

    where: the split, or the file of a single one, as a refusal names it; its rows count from 0.
    """
    feature, values = table.features["label"], arrow_column(table, "label").to_pylist()
    for row, value in enumerate(values):
        missing = value is None or (isinstance(value, float) and not math.isfinite(value))
        if missing or value == "" or not isinstance(value, (str, bool, int, float)):
            raise Refused(
                f"row {row} of {where!r} (from 0 on) has no label that can be used: "
                f"{printable(repr(value))[:80]}"
            )
    if isinstance(feature, datasets.ClassLabel):
        if -1 in values:
            raise Refused(f"row {values.index(-1)} of {where!r} (from 0 on) is unlabelled (-1)")
        return [Named(feature.names[value], value) for value in values]
    return values


class Named(str):
    """A class's name that is sorted by its number in the data set."""

    order: int

    def __new__(cls, name: str, order: int) -> "Named":
        made = super().__new__(cls, name)
        made.order = order
        return made


def class_names(values: list) -> tuple[str, ...]:
    """The distinct labels as names, in their own order: numbers by size, others by alphabet."""
    if all(isinstance(value, Named) for value in values):
        return tuple(map(str, sorted(set(values), key=lambda value: value.order)))
    if all(isinstance(value, (int, float)) for value in values):
        return tuple(name_of_label(value) for value in sorted(set(values)))
    return tuple(sorted({name_of_label(value) for value in values}))


def name_of_label(value) -> str:
    """A label as a class name: 3 and 3.0 are the same class."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def encode(tables: datasets.DatasetDict, task: GlueTask) -> datasets.DatasetDict:
    """The tables with `label` as the task's ClassLabel, or as float64 for a regression.

    Raises Refused for a label that the training rows do not have, and for one that is no number.
    """
    places = {name: place for place, name in enumerate(task.class_names)}
    encoded = {}
    for split, table in tables.items():
        labels: list = []
        for row, value in enumerate(label_values(table, split)):
            label = number(value) if task.regression else places.get(name_of_label(value))
            if label is None:
                known = (
                    "a number"
                    if task.regression
                    else f"one of the training rows' ({', '.join(task.class_names[:8])})"
                )
                shown = printable(str(value))[:80]
                raise Refused(
                    f"row {row} of the split {split!r} has the label {shown!r}, which is not "
                    f"{known}"
                )
            labels.append(label)
        feature = (
            datasets.Value("float64")
            if task.regression
            else datasets.ClassLabel(names=list(task.class_names))
        )
        features = datasets.Features(
            {**{n: table.features[n] for n in task.columns}, "label": feature}
        )
        columns = {name: arrow_column(table, name).to_pylist() for name in task.columns}
        encoded[split] = datasets.Dataset.from_dict(columns | {"label": labels}, features=features)
    return datasets.DatasetDict(encoded)


def number(value) -> float | None:
    """The label as a finite number; None where it is none."""
    try:
        result = float(value)
    except (TypeError, ValueError):
        return None
    return result if math.isfinite(result) else None
