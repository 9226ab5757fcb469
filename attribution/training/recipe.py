"""How a model is trained, and the arguments that say so: defined once for all scripts.

The argument functions add a named group to a parser. What they parse goes on as plain values:
`recipe_of` makes the keyword arguments of `fit.fit` from them.
"""

import argparse
from pathlib import Path

from attribution.cli import Parser, check_numbers
from attribution.files import Refused
from pipeline import TASKS

RECIPE = {
    "learning_rate": 3e-5,
    "weight_decay": 0.01,
    "num_train_epochs": 3,
    "train_batch_size": 32,
    "lr_schedule": "constant",
    "max_grad_norm": 0.0,
    "freeze_embeddings": False,
    "use_half_precision": False,
}
SCHEDULES = ("constant", "linear")
MAX_QUERIES = 2000


def add_data_arguments(parser: Parser) -> argparse._ArgumentGroup:
    """Adds the group "data", which says where data and runs are, and returns it for more."""
    group = parser.group("data")
    add = group.add_argument
    add("--dataset_name", required=True, help=f"one of {', '.join(TASKS)}, or a name of your own")
    add(
        "--dataset_path",
        help="folder or hub id that datasets.load_dataset(path, task) opens (nyu-mll/glue; demo: "
        "embedded; after train.py: as in training); for a name of your own also a CSV, JSONL "
        "or Parquet file",
    )
    add(
        "--checkpoint_dir",
        type=Path,
        default=Path("checkpoints"),
        help="where runs live, one folder a data set (checkpoints)",
    )
    return group


def queries_flag(max_queries: int | None, first_query: int | None = None) -> str:
    """` --first_query 200 --max_queries 50`: what a suggested command repeats; nothing for None and
    for a default.
    """
    begin = f" --first_query {first_query}" if first_query else ""
    return begin + ("" if max_queries in (None, MAX_QUERIES) else f" --max_queries {max_queries}")


def add_query_arguments(group: argparse._ArgumentGroup, first_query: bool = True) -> None:
    """Adds what says which validation rows are queries; the same in all scripts that read scores.

    first_query: whether to add the argument of this name.
    """
    group.add_argument(
        "--max_queries",
        type=int,
        default=MAX_QUERIES,
        help=f"use the first so many validation rows; the same in all scripts ({MAX_QUERIES})",
    )
    if first_query:
        group.add_argument(
            "--first_query",
            type=int,
            default=0,
            help="begin with this validation row, as 0: to choose settings on other queries than "
            "those of a result (0)",
        )


def check_window(values: dict) -> None:
    """Raises Refused for queries (argument name -> value) that begin before the first validation
    row.
    """
    if values["first_query"] < 0:
        raise Refused(
            f"--first_query must be a validation row from 0 up, not {values['first_query']}"
        )


def add_recipe_arguments(parser: Parser, default: str = "") -> None:
    """Adds the group "recipe", which decides what a training run computes; None where nothing was
    asked.

    default: where the value comes from if none is given; empty for the documented run of the data
    set.
    """
    demo = TASKS["demo"].recipe

    def of(name: str) -> str:
        return default or f"{RECIPE[name]}" + (f"; demo {demo[name]}" if name in demo else "")

    group = parser.group("recipe")
    add, switch = group.add_argument, argparse.BooleanOptionalAction
    add("--learning_rate", type=float, help=f"AdamW step size ({of('learning_rate')})")
    add("--weight_decay", type=float, help=f"AdamW decay of all parameters ({of('weight_decay')})")
    add("--num_train_epochs", type=int, help=f"passes over the data ({of('num_train_epochs')})")
    add("--train_batch_size", type=int, help=f"rows a step ({of('train_batch_size')})")
    add(
        "--lr_schedule",
        choices=SCHEDULES,
        help=f"constant is the published recipe; linear falls to 0 ({of('lr_schedule')})",
    )
    add(
        "--max_grad_norm",
        type=float,
        help=f"clip the gradient's norm to this; 0: off, as published ({of('max_grad_norm')})",
    )
    add(
        "--freeze_embeddings",
        action=switch,
        help="leave the embeddings as they were; influence scores see linear layers only "
        f"({of('freeze_embeddings')})",
    )
    add(
        "--use_half_precision",
        action=switch,
        help=f"bfloat16 autocast ({of('use_half_precision')})",
    )


def check_recipe(asked: dict) -> None:
    """Raises Refused for a recipe argument (name -> value or None) outside its range."""
    check_numbers(asked, "train_batch_size", "num_train_epochs", "learning_rate")
    for name in ("weight_decay", "max_grad_norm"):
        if (asked[name] or 0.0) < 0:
            raise Refused(f"--{name} must not be negative")


def recipe_of(asked: dict, data_name: str, base: dict | None = None) -> dict:
    """The keyword arguments of `fit`: what was asked (name -> value or None), else `base` or the
    data set's default.

    base: the recipe of a run.
    """
    recipe = base or RECIPE | (TASKS[data_name].recipe if data_name in TASKS else {})
    return recipe | {name: asked[name] for name in RECIPE if asked[name] is not None}
