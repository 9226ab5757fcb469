"""What a run is made of beside weights: the task, its tables, and the rows as a model reads them.

The rows are GLUE's, the demo's, or one's own (`attribution/data/own.py`); what run.json must say of
them is made here.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import datasets

from attribution.data.dataset import GlueDataset
from attribution.data.own import KINDS, SHARE, OwnData, encode, make_task, open_own, shared_texts
from attribution.data.task import GlueTask, check_name
from attribution.files import Refused, printable
from attribution.models import check_tokens, fingerprint_of_tokenizer, inputs_of, usable_positions
from attribution.training.corruption import corrupt, draw
from attribution.training.run import absolute
from pipeline import MAX_LENGTH, TASKS, get_glue_dataset, get_task, load_tables, unknown_task

OWN = ("text_columns", "label_column", "task", "validation_split", "split_seed")


def add_own_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the group that says how rows of one's own are read (--dataset_name is then a name of
    one's own).
    """
    add = parser.add_argument_group(
        "rows of your own (a --dataset_name that is not GLUE's)"
    ).add_argument
    add("--text_columns", nargs="+", metavar="COLUMN", help="one or two columns with the texts")
    add(
        "--label_column",
        help="column of the labels: whole numbers, strings and named classes are classes, numbers "
        "with a fraction a regression",
    )
    add("--task", choices=KINDS, help="what the labels are, whatever they look like")
    add(
        "--validation_split",
        help=f"a split's name (validation), a second file, or a share of the rows ({SHARE} where "
        "there is one split)",
    )
    add(
        "--split_seed",
        type=int,
        help="of the rows drawn for validation; --seed does not change them (0)",
    )


@dataclass(frozen=True)
class Tables:
    """A task and its raw tables."""

    name: str
    task: GlueTask
    splits: datasets.DatasetDict
    record: dict  # for run.json


def open_tables_of_task(name: str, dataset_path: str | None, asked: dict) -> Tables:
    """The tables of GLUE, the demo, or rows of one's own. asked: the arguments in OWN, None where
    not given.

    Raises Refused where the arguments do not go together, and for rows that cannot be used.
    """
    given = [argument for argument in OWN if asked.get(argument) is not None]
    where = {"dataset_path": dataset_path, "folders": {"dataset_path": absolute(dataset_path)}}
    if name in TASKS:
        if given:
            raise Refused(
                f"--{given[0]} is for rows of your own; {name} is a task of GLUE, so choose "
                "another name"
            )
        return Tables(name, get_task(name), load_tables(name, dataset_path), where)
    check_name(name)
    if dataset_path is None or not asked["text_columns"] or not asked["label_column"]:
        raise Refused(
            f"{unknown_task(name)}; rows of your own take "
            "--dataset_path, --text_columns and --label_column"
        )
    return open_own_tables(name, dataset_path, asked, where)


def open_own_tables(name: str, path: str, asked: dict, where: dict) -> Tables:
    """Rows of one's own with their task; says how many validation rows are also training rows."""
    columns = tuple(asked["text_columns"])
    if len(columns) > 2 or len(set(columns) | {asked["label_column"]}) <= len(columns):
        raise Refused(
            "--text_columns takes one or two columns, each once, and --label_column another one"
        )
    if "label" in columns:
        raise Refused("a text column cannot be called 'label'; rename it")
    split = asked["validation_split"]
    data = OwnData(
        path, columns, asked["label_column"], asked["task"], split, asked["split_seed"] or 0
    )
    raw, rows = open_own(data, name)
    task = make_task(raw["train"], data)
    tables = encode(raw, task)
    names = printable(", ".join(task.class_names[:8]))
    kinds = "a regression" if task.regression else f"{task.num_labels} classes ({names})"
    print(
        f"{name}: {kinds}, {len(tables['train']):,} training and {len(tables['validation']):,} "
        "validation rows"
    )
    if equal := shared_texts(tables, columns):
        print(
            f"{equal:,} validation rows have the texts of a training row: the metrics on them say "
            "too much"
        )
    record = {
        "task": task.record(),
        "data": {"asked": data.record(), "validation_rows": rows, "equal_texts": equal},
    }
    if split is not None and Path(split).is_file():
        where["folders"]["validation_split"], record["validation_split"] = absolute(split), split
    return Tables(name, task, tables, where | record)


def corrupted(tables: Tables, share: float, seed: int, max_train_samples: int | None) -> Tables:
    """The tables with this share of the labels of the training rows made wrong, and recorded."""
    count = min(
        len(tables.splits["train"]),
        max_train_samples or tables.task.max_train_samples or sys.maxsize,
    )
    rows = draw(count, share, seed)
    record = {"share": share, "seed": seed, "rows": rows}
    splits = corrupt(tables.splits, tables.task, record)
    print(f"{len(rows):,} of {count:,} training labels are made wrong")
    return replace(tables, splits=splits, record=tables.record | {"corrupted": record})


@dataclass(frozen=True)
class Material:
    """Rows as one model reads them, and what run.json says of them."""

    task: GlueTask
    tokenizer: object
    train: GlueDataset
    validation: dict[str, GlueDataset]
    record: dict


def read_rows(
    tables: Tables, model, tokenizer, max_length: int | None, max_train_samples: int | None
) -> Material:
    """The rows in the model's tokens. max_length: None for what the model takes, at most
    MAX_LENGTH.

    Raises Refused for rows, or a length, that the model cannot read.
    """
    positions = usable_positions(model)
    length = max_length or min(MAX_LENGTH, tokenizer.model_max_length, positions)
    if length > positions:
        raise Refused(f"--max_length {length} is more than the {positions} positions of this model")
    name, task, inputs = tables.name, tables.task, inputs_of(model, tokenizer)
    shared = {
        "tokenizer": tokenizer,
        "max_length": length,
        "tables": tables.splits,
        "inputs": inputs,
        "task": task,
    }
    train = get_glue_dataset(name, "train", max_samples=max_train_samples, **shared)
    validation = {split: get_glue_dataset(name, split, **shared) for split in task.validation}
    check_tokens(model, train, *validation.values())
    record = tables.record | {
        "dataset_name": name,
        "max_train_samples": max_train_samples,
        "inputs": inputs,
        "max_length": length,
        "tokenizer": fingerprint_of_tokenizer(tokenizer),
        "num_labels": task.num_labels,
        "train_rows": train.fingerprint(),
    }
    return Material(task, tokenizer, train, validation, record)
