"""Tasks and their raw tables: opened from a hub or a folder, and checked row by row.

Rows that cannot give a right answer are refused here, before anything is tokenized; the refusal
names split, row and value. Symbols: N rows, C classes.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from attribution.data.labels import class_of, number_of
from attribution.data.reader import SUFFIXES, choose_columns, place_of, read_table
from attribution.data.tasks import GlueTask
from attribution.files import Refused, printable
from attribution.hub import open_asset

LAYOUT = (
    "make a folder that holds {0}/train-0.parquet and {0}/validation-0.parquet, for instance with "
    "dataset['train'].to_parquet('DIR/{0}/train-0.parquet'), and give --dataset_path DIR"
)


# --- opening --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Place of a split's rows: files, or a table that the datasets library has opened."""

    files: tuple[Path, ...] = ()
    features: datasets.Features | None = None  # of the files, where a README declares them
    table: datasets.Dataset | None = None

    def read(self, texts: tuple[str, ...], label: str, where: str) -> datasets.Dataset:
        """Text columns of the split, and its label column as `label`.

        where: the split, for the message. Raises Refused for rows that cannot be read.
        """
        if self.table is not None:
            return choose_columns(self.table, texts, label, where)
        table = read_table(self.files, texts, label)
        feature = (self.features or {}).get(label)
        if not isinstance(feature, datasets.ClassLabel):
            return table
        try:
            return table.cast_column("label", feature)
        except (ValueError, TypeError, pa.ArrowException) as error:
            raise Refused(
                f"the labels of {where} are not the classes that its README declares ({error})"
            ) from error


def find_splits(path: str, name: str) -> dict[str, Source]:
    """Splits of configuration `name`, split name -> files or rows.

    path: a hub id, or a folder: of files with configurations in its README, of
    `name`/train*.parquet and the like, or of `save_to_disk`. Raises Refused if it cannot be opened.
    """
    if not Path(path).exists() and Path(path).suffix.lstrip(".") in SUFFIXES:
        raise Refused(f"there is no file {path}")
    if not Path(path).is_dir() and path.count("/") != 1:
        raise Refused(
            f"--dataset_path {path!r} is neither a folder nor a hub id of the form owner/name, nor "
            "a file of custom rows"
        )
    if Path(path).is_dir() and any(part in path for part in ("*", "?", "[", "]", "::")):
        raise Refused(
            f"the path {path!r} holds *, ?, [, ] or ::, which the datasets library takes for a "
            "pattern"
        )
    return open_asset(path, "--dataset_path", "data set", lambda: load_splits(path, name))


def load_splits(path: str, name: str) -> dict[str, Source]:
    """Splits of a folder or hub id, see `find_splits`.

    A folder's files are read by our own reader: the datasets library would guess types, and bring
    back what it kept of another folder of the same name.
    """
    for place in (Path(path) / name, Path(path)):
        if (place / "dataset_dict.json").is_file():
            return as_sources(datasets.load_from_disk(str(place)))
    if (Path(path) / "state.json").is_file():  # a table without splits
        return as_sources({"train": datasets.load_from_disk(path)})
    builder = find_builder(path, name)
    if not Path(path).is_dir():
        options = text_options(builder.config)
        return as_sources(datasets.load_dataset(builder.repo_id, builder.config.name, **options))
    features = builder.info.features
    return {
        str(split): Source(tuple(Path(file) for file in files), features)
        for split, files in (builder.config.data_files or {}).items()
    }


def as_sources(tables: dict[str, datasets.Dataset]) -> dict[str, Source]:
    """Sources of opened tables, split name -> Source."""
    return {str(split): Source(table=table) for split, table in tables.items()}


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
        f"the data set {path!r} has no configuration {name!r} (it has {names}); choose one, for "
        f"instance --dataset_name {known[0]}, or {LAYOUT.format(name)}"
    )


def text_options(config) -> dict:
    """Options with which CSV and TSV files of a hub are read as our own reader reads files: cells
    are texts, and in TSV quotation marks are too. {} for other files.
    """
    if type(config).__name__ != "CsvConfig":
        return {}
    options: dict = {"keep_default_na": False, "dtype": str}
    if all(
        str(file).endswith(".tsv") for names in (config.data_files or {}).values() for file in names
    ):
        options |= {"quoting": csv.QUOTE_NONE, "sep": "\t"}
    return options


# --- checking -------------------------------------------------------------------------------------


def read_splits(splits: dict[str, Source], task: GlueTask, data_name: str) -> datasets.DatasetDict:
    """Tables of the splits that a task of GLUE needs, with its text columns and `label`.

    Raises Refused if a split or a column is missing.
    """
    tables = {}
    for split in ("train", *task.validation):
        if split not in splits:
            known = ", ".join(map(str, splits)) or "none"
            raise Refused(
                f"the data set has no split {split!r}, which {data_name} needs (it has {known}); "
                "check --dataset_path"
            )
        where = f"the split {split!r} of {data_name}"
        tables[split] = splits[split].read(task.columns, "label", where)
    return datasets.DatasetDict(tables)


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
            raise Refused(f"{place_of(row, where)} has no text in the column {name!r}")


def arrow_column(table: datasets.Dataset, name: str) -> pa.ChunkedArray:
    """Column of the table's rows in Arrow's format."""
    return table.select_columns([name]).with_format("arrow")[:][name]


def labels_of(table: datasets.Dataset, task: GlueTask, where: str) -> np.ndarray:
    """Labels (N,): int64 from 0 to C - 1, or float32 for regression.

    Classes may be integers, whole floats, booleans, digit strings, or the task's names of classes,
    in any case; where the column names its classes, the names decide and not their order. A
    regression's labels are finite numbers within its bounds. where: the split, for the message.
    Raises Refused for anything else, and names the row.
    """
    values = arrow_column(table, "label").to_pylist()
    feature = table.features["label"]
    if isinstance(feature, datasets.ClassLabel) and not task.regression:
        check_class_names(feature.names, task, where)
        values = [feature.names[v] if v is not None and v >= 0 else v for v in values]
    numbers = np.array([number_in(value, task.class_names) for value in values], dtype=np.float64)
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
        raise Refused(f"{place_of(row, where)} has {label}; {wanted_labels(numbers, task)}")
    return numbers.astype(np.float32 if task.regression else np.int64)


def check_class_names(names: list[str], task: GlueTask, where: str) -> None:
    """Raises Refused for a column whose classes are not the task's: more of them, or others."""
    if len(names) > task.num_labels:
        raise Refused(
            f"{where} has {len(names)} classes ({', '.join(names[:5])}), not {task.num_labels}; "
            "check --dataset_name"
        )
    places = [class_of(name, task.class_names) for name in names]
    counted = names == [str(number) for number in range(len(names))]
    if task.class_names and not counted and (None in places or len({*places}) < len(places)):
        raise Refused(
            f"{where} calls its classes {printable(', '.join(names))}, but the task's are "
            f"{', '.join(task.class_names)}; rename them, or cast the column to numbers if they "
            "are in this order"
        )


def number_in(value, class_names: tuple[str, ...]) -> float:
    """Number of a label, which may be a class name; NaN if it is none."""
    place = class_of(value, class_names) if isinstance(value, str) else None
    return number_of(value) if place is None else float(place)


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
