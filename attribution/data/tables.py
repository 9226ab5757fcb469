"""Tasks and their raw tables: opened from a hub or a folder, compared with their files, and checked
row by row.

Rows that cannot give a right answer are refused here, before anything is tokenized; the refusal
names split, row and value. Symbols: N rows, C classes.
"""

import csv
import math
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from attribution.files import Refused, printable
from attribution.hub import open_asset

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class GlueTask:
    """Task of a data set: its columns, classes, metrics and splits."""

    columns: tuple[str, ...]  # of texts, in the order in which BERT reads them
    num_labels: int  # C classes; 1 for regression
    class_names: tuple[str, ...] = ()  # of the classes, in order
    bounds: tuple[float, float] | None = None  # smallest and largest label of a regression
    metrics: tuple[str, ...] = ("accuracy",)
    validation: tuple[str, ...] = ("validation",)
    max_train_samples: int | None = None
    # training arguments that differ from train.py's defaults
    recipe: dict = field(default_factory=dict)

    @property
    def regression(self) -> bool:
        """Whether labels are numbers instead of classes."""
        return self.num_labels == 1


def task_from(record: dict) -> GlueTask:
    """Task of a record of run.json, in which tuples have become lists."""
    lists = {name: tuple(value) for name, value in record.items() if isinstance(value, list)}
    return GlueTask(**record | lists)


def check_name(name: str) -> None:
    """Raises Refused for a data set's name that cannot be the name of a folder: letters, digits,
    - _ . without a leading dot.
    """
    if not NAME.fullmatch(name):
        raise Refused(
            f"--dataset_name {name!r} must be letters, digits, '-', '_' and '.', without a leading "
            "dot"
        )


SUFFIXES = ("parquet", "csv", "tsv", "jsonl", "json")
LAYOUT = (
    "make a folder that holds {0}/train-0.parquet and {0}/validation-0.parquet, for instance with "
    "dataset['train'].to_parquet('DIR/{0}/train-0.parquet'), and give --dataset_path DIR"
)


# --- opening --------------------------------------------------------------------------------------


def open_tables(path: str, name: str) -> datasets.DatasetDict:
    """Tables of configuration `name`, split name -> table.

    path: a hub id, or a folder: of files with configurations in its README, of
    `name`/train*.parquet and the like, or of `save_to_disk`. Raises Refused if it cannot be
    opened, or if a file holds other records than were read.
    """
    if not Path(path).is_dir() and path.count("/") != 1:
        raise Refused(
            f"--dataset_path {path!r} is neither a folder nor a hub id of the form owner/name, nor "
            "a file of custom rows"
        )
    if Path(path).is_dir() and any(c in path for c in "*?[]"):
        raise Refused(
            f"the path {path!r} holds *, ?, [ or ], which the datasets library takes for a pattern"
        )
    tables, files = open_asset(path, "--dataset_path", "data set", lambda: load_files(path, name))
    for split, names in files.items():
        paths = [Path(name) for name in names]
        if all(path.is_file() for path in paths):  # files of a hub are not looked into
            wanted = sum(map(count_records, paths))
            count = len(tables[split])
            if wanted != count:
                raise Refused(
                    f"the files of the split {split!r} hold {wanted:,} records, but {count:,} were "
                    "read"
                )
    return tables


def load_files(path: str, name: str) -> tuple[datasets.DatasetDict, dict]:
    """(tables, split -> the CSV or TSV files that they were read from) of a folder or hub id.

    The datasets library caches a folder under the folder's name and the configuration's: another
    folder of that name, or changed files, would bring the old rows back. Files that are named one
    by one are cached under their paths and times, so a folder's files are named.
    """
    for place in (Path(path) / name, Path(path)):
        if (place / "dataset_dict.json").is_file():
            return datasets.load_from_disk(str(place)), {}
    if (Path(path) / "state.json").is_file():  # a table without splits
        return datasets.DatasetDict({"train": datasets.load_from_disk(path)}), {}
    builder = find_builder(path, name)
    options = text_options(builder.config)
    given = builder.config.data_files or {}
    files = {str(split): [str(file) for file in names] for split, names in given.items()}
    counted = files if options else {}
    if not Path(path).is_dir():
        return datasets.load_dataset(builder.repo_id, builder.config.name, **options), counted
    if builder.info.features is not None:
        options["features"] = builder.info.features
    try:
        tables = datasets.load_dataset(builder.name, data_files=files, **options)
    except datasets.exceptions.DatasetGenerationError:
        # The splits may be of different types: read one by one, the error names the wrong one.
        tables = datasets.DatasetDict()
        for split, names in files.items():
            tables[split] = datasets.load_dataset(
                builder.name, data_files={"train": names}, split="train", **options
            )
    return tables, counted


def find_builder(path: str, name: str) -> datasets.DatasetBuilder:
    """Builder of the datasets library for the task's files.

    Raises Refused with the wanted layout if there is none.
    """
    try:
        return datasets.load_dataset_builder(path, name)
    except ValueError as error:
        if "BuilderConfig" not in str(error):
            raise
    inner = Path(path) / name
    if any(path.suffix.lstrip(".") in SUFFIXES for path in inner.glob("train*.*")):
        return datasets.load_dataset_builder(str(inner))
    known = datasets.get_dataset_config_names(path)
    if known == ["default"]:  # one data set only: its columns will say whether it is the task's
        return datasets.load_dataset_builder(path)
    names = ", ".join(known[:12])
    raise Refused(
        f"the data set {path!r} has no configuration {name!r} (it has {names}); "
        f"{LAYOUT.format(name)}"
    )


def text_options(config) -> dict:
    """Options with which CSV and TSV files are read: "NA" and "null" are texts; in TSV quotation
    marks are too. {} for other files.
    """
    if type(config).__name__ != "CsvConfig":
        return {}
    options: dict = {"keep_default_na": False}
    if all(
        str(file).endswith(".tsv") for names in (config.data_files or {}).values() for file in names
    ):
        options |= {"quoting": csv.QUOTE_NONE, "sep": "\t"}
    return options


def count_records(path: Path) -> int:
    """Number of records in a local CSV or TSV file, its header left out.

    Raises Refused, naming the line, for a CSV file with a quotation mark that swallows what
    follows.
    """
    if path.suffix == ".tsv":
        with open(path, encoding="utf-8") as file:
            return sum(bool(line.strip("\n")) for line in file) - 1
    csv.field_size_limit(sys.maxsize)
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.reader(file, strict=True)
        line = 1
        count = 0
        try:
            for row in reader:
                line = reader.line_num + 1
                count += bool(row)
        except csv.Error as error:
            raise Refused(
                f"{path} cannot be read as CSV from line {line} on ({error}); quote its texts, "
                "double the quotation marks in them, or save it as Parquet"
            ) from error
    return count - 1


# --- checking -------------------------------------------------------------------------------------


def check_splits(tables: datasets.DatasetDict, task: GlueTask, data_name: str) -> None:
    """Raises Refused if a split or a column that the task needs is missing."""
    for split in ("train", *task.validation):
        if split not in tables:
            known = ", ".join(map(str, tables)) or "none"
            raise Refused(
                f"the data set has no split {split!r}, which {data_name} needs (it has {known}); "
                "check --dataset_path"
            )
        found = tables[split].column_names
        for name in (*task.columns, "label"):
            if name not in found:
                raise Refused(
                    f"the split {split!r} has no column {name!r}, which {data_name} needs (it has "
                    f"{', '.join(found)}); check --dataset_path"
                )


def check_texts(table: datasets.Dataset, columns: tuple[str, ...], where: str) -> None:
    """Raises Refused for a text that is missing or no string. where: the split, for the message."""
    for name in columns:
        column = arrow_column(table, name)
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            raise Refused(
                f"the texts in the column {name!r} of {where} are of type {column.type}, not "
                "strings"
            )
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy())[0])
            raise Refused(f"row {row} of {where} has no text in the column {name!r}")


def arrow_column(table: datasets.Dataset, name: str) -> pa.ChunkedArray:
    """Column of the table's rows in Arrow's format."""
    return table.select_columns([name]).with_format("arrow")[:][name]


def labels_of(table: datasets.Dataset, task: GlueTask, where: str) -> np.ndarray:
    """Labels (N,): int64 from 0 to C - 1, or float32 for regression.

    Classes may be integers, whole floats, booleans, digit strings, or the task's names of classes;
    where the column names its classes as the task does, the names decide and not their order. A
    regression's labels are finite numbers within its bounds. where: the split, for the message.
    Raises Refused for anything else, and names the row.
    """
    values = arrow_column(table, "label").to_pylist()
    feature = table.features["label"]
    names = feature.names if isinstance(feature, datasets.ClassLabel) else []
    if len(names) > task.num_labels > 1:
        raise Refused(
            f"{where} has {len(names)} classes ({', '.join(names[:5])}), not {task.num_labels}; "
            "check --dataset_name"
        )
    if names and set(names) == set(task.class_names):
        values = [names[value] if value is not None and value >= 0 else value for value in values]
    numbers = np.array([number_of(value, task.class_names) for value in values], dtype=np.float64)
    if (numbers == -1).all():
        raise Refused(
            f"{where} is unlabelled: all of its labels are -1; name a data set whose split has "
            "labels"
        )
    low, high = task.bounds or (-np.inf, np.inf)
    if not task.regression:
        low, high = 0, task.num_labels - 1
    good = np.isfinite(numbers) & (numbers >= low) & (numbers <= high)
    good &= task.regression | (numbers == np.round(numbers))
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        value = values[row]
        label = "no label" if value is None else f"the label {printable(repr(value))[:80]}"
        raise Refused(f"row {row} of {where} has {label}; {wanted_labels(numbers, task)}")
    return numbers.astype(np.float32 if task.regression else np.int64)


def number_of(value, class_names: tuple[str, ...]) -> float:
    """Number of a label, which may be a class name; NaN if it is none."""
    if isinstance(value, str) and value in class_names:
        return float(class_names.index(value))
    try:
        return float(value) if isinstance(value, (str, bool, int, float)) else math.nan
    except ValueError:
        return math.nan


def wanted_labels(numbers: np.ndarray, task: GlueTask) -> str:
    """Phrase about the labels that the task takes. numbers: the labels (N,) that were found."""
    if task.regression:
        bounds = f" from {task.bounds[0]:g} to {task.bounds[1]:g}" if task.bounds else ""
        return f"labels are finite numbers{bounds}"
    known = f" ({', '.join(task.class_names)})" if task.class_names else ""
    text = f"labels are whole numbers from 0 to {task.num_labels - 1}{known}"
    finite = numbers[np.isfinite(numbers)]
    if finite.size and finite.min() == 1 and finite.max() == task.num_labels:
        return f"{text}; these seem to be counted from 1: subtract 1"
    return f"{text}; -1 says that there is none" if (numbers == -1).any() else text
