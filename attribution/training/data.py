"""Rows of a run: a task and its tables, and their rows as one model reads them.

Rows are GLUE's, the demo's, or custom (`attribution/data/custom.py`). The parts of run.json that
describe them are made here.
"""

import functools
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets

from attribution.data.custom import CustomData, open_custom
from attribution.data.dataset import GlueDataset, fingerprint_of_tokenizer
from attribution.data.tasks import (
    MAX_LENGTH,
    TASKS,
    GlueTask,
)
from attribution.files import Refused, printable
from attribution.models import check_tokens, inputs_of, usable_positions
from attribution.training.run import absolute
from pipeline import get_glue_dataset, load_tables

SHOWN = 8  # classes that a line names


@dataclass(frozen=True)
class Tables:
    """A task and its raw tables."""

    name: str
    task: GlueTask
    splits: datasets.DatasetDict
    record: dict  # parts of run.json


def open_tables(
    name: str, dataset_path: str | None, values: dict, classes: list[str] | None = None
) -> Tables:
    """Tables of GLUE, the demo, or custom rows. values: argument name -> value, see CUSTOM.

    classes: names of an adopted model's outputs, which custom rows then have.
    Raises Refused for arguments that do not go together and for rows that cannot be used.
    """
    folders = {"dataset_path": absolute(dataset_path)}
    record: dict = {"dataset_path": dataset_path, "folders": folders}
    if name in TASKS:
        return Tables(name, TASKS[name], load_tables(name, dataset_path), record)
    assert dataset_path is not None
    columns = tuple(values["text_columns"])
    label = values["label_column"]
    split = values["validation_split"]
    seed = values["split_seed"] or 0
    data = CustomData(dataset_path, columns, label, values["task"], split, seed)
    custom = open_custom(data, name, classes=classes)
    task = custom.task
    tables = custom.splits
    kind = "a regression" if task.regression else describe_classes(tables["train"], task)
    sizes = f"{len(tables['train']):,} training and {len(tables['validation']):,} validation rows"
    print(f"{name}: {kind}, {sizes}")
    if custom.drawn:
        print(
            f"rows {some_of(custom.drawn)} of the file were drawn for validation; --split_seed "
            "draws others, --validation_split names a file of them"
        )
    train, valid = (
        list(zip(*(tables[part][column] for column in columns), strict=True))
        for part in ("train", "validation")
    )
    for part, rows in (("training", train), ("validation", valid)):
        if blank := [row for row, texts in enumerate(rows) if not "".join(texts).strip()]:
            print(f"{part} rows without a text: {some_of(blank)}")
    known = set(train)
    if equal := sum(texts in known for texts in valid):
        print(
            f"{equal:,} validation rows have the texts of a training row: the metrics on them say "
            "too much"
        )
    record["task"] = asdict(task)
    record["data"] = {"asked": asdict(data), "validation_rows": custom.drawn, "equal_texts": equal}
    if split is not None and Path(split).is_file():
        folders["validation_split"] = absolute(split)
        record["validation_split"] = split
    return Tables(name, task, tables, record)


def some_of(rows: list[int]) -> str:
    """The first numbers of rows as a phrase."""
    return ", ".join(map(str, rows[:SHOWN])) + ", ..." * (len(rows) > SHOWN)


def describe_classes(train: datasets.Dataset, task: GlueTask) -> str:
    """Classes with the numbers of their training rows; of many the first ones and the smallest."""
    counts = Counter(train["label"])
    sizes = [f"{printable(name)} {counts[place]:,}" for place, name in enumerate(task.class_names)]
    shown = ", ".join(sizes[:SHOWN])
    if len(sizes) > SHOWN:
        smallest = min(range(len(sizes)), key=counts.__getitem__)
        shown += f", ..., the smallest {sizes[smallest]}"
    return f"{len(sizes)} classes ({shown})"


@dataclass(frozen=True)
class RowsOfRun:
    """Training and validation rows as one model reads them, and their parts of run.json."""

    task: GlueTask
    tokenizer: object
    train: GlueDataset
    validation: dict[str, GlueDataset]
    record: dict


def read_rows(
    tables: Tables, model, tokenizer, max_length: int | None, limit: int | None
) -> RowsOfRun:
    """Rows in the model's tokens.

    max_length: tokens of a row; None for as many as the model takes, at most MAX_LENGTH. limit:
    number of training rows, None for all. Raises Refused for rows or a length that the model
    cannot read.
    """
    positions = usable_positions(model)
    length = max_length or min(MAX_LENGTH, tokenizer.model_max_length, positions)
    if length > positions:
        raise Refused(f"--max_length {length} is more than the {positions} positions of this model")
    task = tables.task
    inputs = inputs_of(model, tokenizer)

    read = functools.partial(
        get_glue_dataset,
        tables.name,
        tokenizer=tokenizer,
        max_length=length,
        tables=tables.splits,
        inputs=inputs,
        task=task,
    )
    train = read("train", max_samples=limit)
    if limit is not None and not task.regression and len(set(train.labels.tolist())) < 2:
        raise Refused(
            f"--max_train_samples {limit} leaves training rows of one class only; two are the least"
        )
    validation = {split: read(split) for split in task.validation}
    check_tokens(model, train, *validation.values())
    if long := int((train.lengths >= length).sum()):
        print(
            f"{long:,} of {len(train):,} training rows reach {length} tokens, and what follows is "
            "not read (--max_length)"
        )
    record = tables.record | {
        "dataset_name": tables.name,
        "max_train_samples": limit,
        "inputs": inputs,
        "max_length": length,
        "tokenizer": fingerprint_of_tokenizer(tokenizer),
        "num_labels": task.num_labels,
        "train_rows": train.fingerprint(),
    }
    return RowsOfRun(task, tokenizer, train, validation, record)
