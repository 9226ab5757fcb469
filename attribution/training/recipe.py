"""How a model is trained, and the arguments that say so: defined once for all scripts.

The argument functions add a named group to a parser. What they parse goes on as plain values:
`recipe_of` makes the keyword arguments of `fit.fit` from them.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from attribution.files import Refused, check_numbers, meant, printable
from attribution.training.members import Members
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


class Parser(argparse.ArgumentParser):
    """A script's parser: its help begins with the script's docstring, and a wrong argument is one
    sentence.
    """

    def __init__(self, description: str | None, epilog: str | None = None) -> None:
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(
            description=description, epilog=epilog, formatter_class=layout, allow_abbrev=False
        )

    def error(self, message: str):
        """Raises Refused, so that a wrong argument ends like every other refusal."""
        kind, _, unknown = message.partition("unrecognized arguments: ")
        flag = unknown.split("=")[0].split(" ")[0]
        if not kind and flag.startswith("--"):
            message = (
                f"there is no argument {printable(flag)}{meant(flag, self._option_string_actions)}"
            )
        raise Refused(f"{message}; --help lists the arguments")


def add_data_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds the group "data", which says where data and runs are, and returns it for more."""
    group = parser.add_argument_group("data")
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


def add_query_arguments(group: argparse._ArgumentGroup, windows: bool = True) -> None:
    """Adds what says which validation rows are queries; the same in all scripts that read scores.

    windows: whether they may begin at another row than the first.
    """
    group.add_argument(
        "--max_queries",
        type=int,
        default=MAX_QUERIES,
        help=f"use the first so many validation rows; the same in all scripts ({MAX_QUERIES})",
    )
    if windows:
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


def add_member_arguments(add, count: str) -> None:
    """Adds which checkpoints are scored together. add: a group's add_argument; count: the help of
    --num_members.
    """
    add("--num_members", type=int, default=1, help=count)
    add(
        "--member_steps",
        type=int,
        default=1,
        help="so many checkpoints of each training, at evenly spaced steps, the last one its end "
        "(1)",
    )
    add(
        "--member_share",
        type=float,
        default=1.0,
        help="members that were each trained on a random share of the rows, of their own (1: all "
        "see all rows)",
    )
    add(
        "--member_start",
        action="store_true",
        help="the model before training in place of the trained one: a score that it has as well "
        "does not look at what was learned",
    )


def members_of(asked: dict) -> Members:
    """The members that were asked for (argument name -> value). Raises Refused for numbers that
    cannot be.
    """
    check_numbers(asked, "num_members", "member_steps", "member_share")
    if asked["member_share"] > 1:
        raise Refused(
            f"--member_share is a share of the rows, at most 1, not {asked['member_share']:g}"
        )
    several = Members(asked["num_members"], asked["member_steps"], asked["member_share"])
    if asked["member_start"] and not several.single:
        raise Refused("--member_start is one model; leave out the other arguments of members")
    return replace(several, start=asked["member_start"])


def add_recipe_arguments(parser: argparse.ArgumentParser, default: str = "") -> None:
    """Adds the group "recipe", which decides what a training run computes; None where nothing was
    asked.

    default: where the value comes from if none is given; empty for the documented run of the data
    set.
    """
    demo = TASKS["demo"].recipe

    def of(name: str) -> str:
        return default or f"{RECIPE[name]}" + (f"; demo {demo[name]}" if name in demo else "")

    group = parser.add_argument_group("recipe")
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
