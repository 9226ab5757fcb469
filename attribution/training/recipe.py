"""Recipes of training, and the arguments that all scripts share: data, queries, recipe.

`recipe_of` makes the keyword arguments of `fit.fit` from parsed arguments.
"""

import argparse

from attribution.cli import Parser, check_numbers
from attribution.data.tasks import TASKS
from attribution.files import Refused

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
RECIPE_HELP = {
    "learning_rate": "AdamW step size",
    "weight_decay": "AdamW decay of all parameters",
    "num_train_epochs": "passes over the data",
    "train_batch_size": "rows a step",
    "lr_schedule": "constant is the published recipe; linear falls to 0",
    "max_grad_norm": "clip the gradient's norm to this; 0: off, as published",
    "freeze_embeddings": "leave the embeddings as they were; influence scores see linear layers "
    "only",
    "use_half_precision": "bfloat16 autocast",
}
SCHEDULES = ("constant", "linear")


def add_recipe_arguments(parser: Parser, default: str = "") -> None:
    """Adds the group "recipe", the arguments of training; their values are None unless given.

    default: description of the value if none is given, and the arguments are rare; empty for the
    documented run of the data set.
    """
    if default:
        parser.rare |= {*RECIPE}
    demo = TASKS["demo"].recipe
    add = parser.group("recipe").add_argument
    for name, text in RECIPE_HELP.items():
        kind: dict = {"type": type(RECIPE[name])}
        if name == "lr_schedule":
            kind = {"choices": SCHEDULES}
        elif isinstance(RECIPE[name], bool):
            kind = {"action": argparse.BooleanOptionalAction}
        used = f"{RECIPE[name]}" + (f"; demo {demo[name]}" if name in demo else "")
        add(f"--{name}", help=f"{text} ({default or used})", **kind)


def check_recipe(given: dict) -> None:
    """Raises Refused for a recipe argument (name -> value or None) outside its range."""
    check_numbers(given, "train_batch_size", "num_train_epochs", "learning_rate")
    for name in ("weight_decay", "max_grad_norm"):
        if (given[name] or 0.0) < 0:
            raise Refused(f"--{name} must not be negative")


def recipe_of(given: dict, data_name: str, base: dict | None = None) -> dict:
    """Keyword arguments of `fit`: those given (name -> value or None), else of the base or the data
    set's default.

    base: the recipe of a run.
    """
    recipe = base or RECIPE | (TASKS[data_name].recipe if data_name in TASKS else {})
    return recipe | {name: given[name] for name in RECIPE if given[name] is not None}
