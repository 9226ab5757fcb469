"""Custom rows: a user's file or folder, opened, labelled as the task that they make, and split.

    data = CustomData("reviews.csv", ("text",), "stars")
    custom = open_custom(data, "reviews")   # its task, and its splits `train` and `validation`

Symbols: N rows, C classes.
"""

import itertools
import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np

from attribution.data.labels import (
    LARGEST,
    class_of,
    fold,
    is_missing,
    name_of,
    number_of,
    value_of,
)
from attribution.data.reader import place_of
from attribution.data.tables import Source, arrow_column, check_texts, find_splits
from attribution.data.tasks import SHARE, GlueTask
from attribution.draws import uniform_hash
from attribution.files import Refused, printable

MOST_CLASSES = 100  # without --task
SUPPORT = 0.9  # share of the labels from which a guess of their kind needs no --task, or all


@dataclass(frozen=True)
class CustomData:
    """Place of custom rows, their columns, and the choice of validation rows."""

    path: str
    text_columns: tuple[str, ...]
    label_column: str
    kind: str | None = None  # one of KINDS; None: as the labels are
    validation_split: str | None = None  # split, file or share; None: see `open_custom`
    split_seed: int = 0


@dataclass(frozen=True)
class CustomTables:
    """Custom rows as a task and its splits."""

    task: GlueTask
    # `train` and `validation`: text columns, and `label`: ClassLabel or float, as in GLUE's tables
    splits: datasets.DatasetDict
    drawn: list[int] | None  # rows of the file that were drawn for validation; None: none were


# --- opening --------------------------------------------------------------------------------------


def open_custom(
    data: CustomData,
    name: str,
    task: GlueTask | None = None,
    drawn: list[int] | None = None,
    classes: list[str] | None = None,
) -> CustomTables:
    """Custom rows, labelled and split.

    task, drawn: those of before, to be taken again; task None: as the training rows' labels are.
    classes: of an adopted model, which the task then has (`with_classes`).
    Validation rows are a split (`validation` where there are several), a second file, or a share
    of the only split. Raises Refused for rows, columns, labels or a split that cannot be used.
    """
    if Path(data.path).is_file():
        splits = {"train": Source((Path(data.path),))}
    else:
        splits = find_splits(data.path, name)
    if "train" not in splits and len(splits) > 1:
        raise Refused(
            f"the data set {data.path!r} has no split 'train' (it has {', '.join(splits)})"
        )
    first = next(iter(splits.values()))
    where = data.path if len(splits) == 1 else f"the split 'train' of {data.path}"
    train = read_source(splits.get("train", first), data, where)
    task = task or make_task(train, data, where)
    if classes is not None and not task.regression:
        task = with_classes(task, classes)
    train = encode(train, task, where)
    wanted = data.validation_split
    share = SHARE if wanted is None and len(splits) == 1 else parse_share(wanted)
    if drawn is None and share is not None:
        groups = np.zeros(len(train)) if task.regression else np.array(train["label"])
        drawn = draw_rows(groups, share, data.split_seed)
    if drawn is not None:
        if drawn and max(drawn) >= len(train):
            raise Refused(
                f"the data set {data.path!r} has {len(train):,} rows, fewer than the run was "
                "trained on"
            )
        kept = train.select(np.setdiff1d(np.arange(len(train)), drawn))
        tables = {"train": kept, "validation": train.select(drawn)}
        return CustomTables(task, datasets.DatasetDict(tables), drawn)
    where = wanted or "validation"
    if wanted is not None and Path(wanted).is_file():
        source = Source((Path(wanted),))
    elif where in splits:
        source = splits[where]
        where = f"the split {where!r} of {data.path}"
    else:
        raise Refused(
            f"the data set {data.path!r} has no split {where!r} (it has {', '.join(splits)}); name "
            "a split, a file or a share between 0 and 1: --validation_split"
        )
    valid = encode(read_source(source, data, where), task, where)
    tables = {"train": train, "validation": valid}
    return CustomTables(task, datasets.DatasetDict(tables), None)


def read_source(source: Source, data: CustomData, where: str) -> datasets.Dataset:
    """Rows of a split or file, with the text columns and `label`.

    Raises Refused if there are none, or one without a text.
    """
    table = source.read(data.text_columns, data.label_column, where)
    if len(table) == 0:
        raise Refused(f"{where} has no rows")
    check_texts(table, data.text_columns, where)
    return table


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


def draw_rows(groups: np.ndarray, share: float, seed: int) -> list[int]:
    """Validation rows, ascending: of every group (N,) about the same share, and never its last row.

    A function of groups, share and seed. Raises Refused if there are too few rows.
    """
    count = len(groups)
    order = np.argsort(uniform_hash(seed, "validation rows", np.arange(count)), kind="stable")
    places = np.empty(count)  # of each row in the order of its group, as a share of the group
    for group in np.unique(groups):
        members = order[groups[order] == group]
        places[members] = (np.arange(len(members)) + 0.5) / len(members)
        places[members[-1]] = math.inf  # stays a training row
    free = int(np.isfinite(places).sum())
    if free == 0:
        raise Refused(
            f"{count} rows cannot be split so that every class keeps a training row; name "
            "validation rows with --validation_split, or say --task regression if labels are values"
        )
    number = min(free, max(1, round(share * count)))
    chosen = order[np.argsort(places[order], kind="stable")[:number]]
    return sorted(chosen.tolist())


# --- labels ---------------------------------------------------------------------------------------


def make_task(train: datasets.Dataset, data: CustomData, where: str) -> GlueTask:
    """Task of the training rows: classes, their distinct labels, or a regression if numbers have a
    fraction.

    Classes are in the order of the numbers, of the alphabet, or of the column's own class names.
    Raises Refused for a missing label, for one class only, for more than MOST_CLASSES without
    --task, and for a guess that a few labels contradict.
    """
    values = label_values(train, where)
    kind = data.kind or kind_of(values, where)
    if kind == "regression":
        return GlueTask(data.text_columns, 1, metrics=("pearson", "spearmanr"))
    counts = Counter(map(name_of, values))
    feature = train.features["label"]
    if isinstance(feature, datasets.ClassLabel):
        names = tuple(name for name in feature.names if name in counts)
    elif all(map(math.isfinite, map(number_of, counts))):
        names = tuple(sorted(counts, key=lambda name: (float(name), name)))
    else:
        names = tuple(sorted(counts))
    if len(names) < 2:
        raise Refused(f"all training rows have the label {names[0]!r}; two classes are the least")
    if len(names) > MOST_CLASSES and data.kind is None:
        raise Refused(
            f"the training rows have {len(names):,} distinct labels; say what they are: --task "
            "classification or --task regression"
        )
    for name, other in itertools.pairwise(sorted(names, key=fold)):
        if fold(name) == fold(other):
            print(f"the classes {name!r} and {other!r} differ in case or blanks only")
    return GlueTask(data.text_columns, len(names), names, metrics=("accuracy", "macro_f1"))


def with_classes(task: GlueTask, names: list[str]) -> GlueTask:
    """Task of custom rows with all classes of an adopted model, in the order of its outputs; the
    rows' spelling counts.

    names: of the outputs. A class without rows keeps its output. Raises Refused if a class of the
    rows is not among them.
    """
    if len(names) == 1:
        raise Refused(
            f"the model has one output, as for a regression, but the rows have {task.num_labels} "
            "classes; --task regression reads their labels as numbers"
        )
    if len(task.class_names) > len(names):
        raise Refused(
            f"the rows have {len(task.class_names)} classes, but the model has {len(names)} "
            f"({printable(', '.join(names))})"
        )
    spelled: dict[int, str] = {}
    for name in task.class_names:
        place = class_of(name, names)
        if place is None or place in spelled:
            raise Refused(
                f"the training rows have the class {name!r}, but the model's are "
                f"{printable(', '.join(names))}; pass --label_order with all of its classes, as "
                "the rows spell them, in the order of its outputs"
            )
        spelled[place] = name
    found = tuple(spelled.get(place, name) for place, name in enumerate(names))
    return replace(task, num_labels=len(found), class_names=found)


def kind_of(values: list, where: str) -> str:
    """Kind of the task that labels (N,) look like: a regression if they are numbers of which some
    have a fraction.

    Raises Refused, and names the first row, where nine in ten labels say one thing and the rest
    another.
    """
    numbers = np.array([math.nan if isinstance(v, bool) else number_of(v) for v in values])
    are_numbers = np.isfinite(numbers)
    are_whole = are_numbers & (numbers == np.round(numbers))
    for fits, what in ((are_numbers, "numbers"), (are_whole, "whole numbers")):
        if SUPPORT < fits.mean() < 1:
            row = int(np.flatnonzero(~fits)[0])
            raise Refused(
                f"{place_of(row, where)} has the label {printable(repr(values[row]))[:80]}, but "
                f"{fits.sum():,} of {len(fits):,} labels are {what}; correct it, or say what the "
                "labels are: --task classification or --task regression"
            )
    return "regression" if are_numbers.all() and not are_whole.all() else "classification"


def label_values(table: datasets.Dataset, where: str) -> list:
    """Labels (N,) as Python values; of a ClassLabel the names.

    where: the split or file, as a refusal names it. Raises Refused for a row without a label.
    """
    feature = table.features["label"]
    values = arrow_column(table, "label").to_pylist()

    def usable(value) -> bool:
        infinite = isinstance(value, float) and math.isinf(value)
        return isinstance(value, (str, bool, int, float)) and not is_missing(value) and not infinite

    rows = [row for row, value in enumerate(values) if not usable(value)]
    if rows:
        more = f", nor have {len(rows) - 1:,} more rows" if len(rows) > 1 else ""
        raise Refused(
            f"{place_of(rows[0], where)} has no label that can be used: "
            f"{printable(repr(values[rows[0]]))[:80]}{more}; leave out rows without a label"
        )
    if not isinstance(feature, datasets.ClassLabel):
        return values
    if -1 in values:
        raise Refused(f"{place_of(values.index(-1), where)} is unlabelled (-1)")
    return [feature.names[value] for value in values]


def encode(table: datasets.Dataset, task: GlueTask, where: str) -> datasets.Dataset:
    """Table whose `label` is the task's ClassLabel, or float64 for a regression.

    Raises Refused for a label that the task does not know.
    """
    values = label_values(table, where)
    known = f"a number up to {LARGEST:g}"
    feature = datasets.Value("float64")
    if not task.regression:
        known = f"one of the classes ({', '.join(task.class_names[:8])})"
        feature = datasets.ClassLabel(names=list(task.class_names))
    # Many rows have few labels.
    labels = {value: label_in(value, task) for value in set(values)}
    for row, value in enumerate(values):
        if labels[value] is None:
            shown = printable(str(value))[:80]
            raise Refused(f"{place_of(row, where)} has the label {shown!r}, which is not {known}")
    features = {name: datasets.Value("string") for name in task.columns} | {"label": feature}
    columns = {name: arrow_column(table, name).to_pylist() for name in task.columns}
    return datasets.Dataset.from_dict(
        columns | {"label": [labels[value] for value in values]},
        features=datasets.Features(features),
    )


def label_in(value, task: GlueTask) -> float | int | None:
    """Class, or number of a regression, that a label names; None if the task does not know it."""
    if not task.regression:
        return class_of(value, task.class_names)
    return value_of(value)
