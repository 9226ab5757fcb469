"""Arguments that scripts share: places of data and runs, queries, custom rows."""

import argparse
import shlex
import sys
from pathlib import Path

from attribution.cli import Parser
from attribution.data.tasks import KINDS, SHARE, TASKS, check_name, unknown_task
from attribution.files import Refused

MAX_QUERIES = 2000
CHECKPOINTS = Path("checkpoints")
SCRIPTS = ("train.py", "analyze.py", "run_counterfactual.py", "evaluate_lds.py")


def add_data_arguments(parser: Parser) -> argparse._ArgumentGroup:
    """Adds the group "data" (places of data and runs), and returns it for more arguments."""
    group = parser.group("data")
    add = group.add_argument
    add(
        "--dataset_name",
        required=True,
        metavar="NAME",
        help=f"one of {', '.join(TASKS)}, or a new name for custom rows",
    )
    add(
        "--dataset_path",
        metavar="PATH",
        help="folder or hub id that datasets.load_dataset(path, task) opens (nyu-mll/glue; demo: "
        "embedded; after train.py: as in training); for custom rows also a CSV, JSONL or Parquet "
        "file",
    )
    add(
        "--checkpoint_dir",
        type=Path,
        default=CHECKPOINTS,
        metavar="DIR",
        help="folder of the runs, one folder a data set (checkpoints)",
    )
    return group


def checkpoint_flag(place: Path, bare: bool = False) -> str:
    """Argument of a suggested command that names the folder of the runs; empty for the default.

    bare: without an absolute path.
    """
    if place == CHECKPOINTS:
        return ""
    shown = place.name if bare and place.is_absolute() else str(place)
    return f" --checkpoint_dir {shlex.quote(shown)}"


def command_of(script: str, name: str, place: Path, bare: bool = False) -> str:
    """Beginning of a suggested command about the run of this name. place: folder of the runs.

    The script is looked for beside the one that is running, as that was named, so that the command
    works in another folder, too. bare: without its folder, and without an absolute path.
    """
    running = Path(sys.argv[0])
    if running.name in SCRIPTS and not bare:
        script = str(running.with_name(script))
    return f"python {shlex.quote(script)} --dataset_name {name}{checkpoint_flag(place, bare)}"


def queries_flag(max_queries: int | None, first_query: int | None = None) -> str:
    """Arguments of a suggested command, as ` --first_query 200 --max_queries 50`; empty for None
    and for defaults.
    """
    begin = f" --first_query {first_query}" if first_query else ""
    return begin + ("" if max_queries in (None, MAX_QUERIES) else f" --max_queries {max_queries}")


def custom_flags(texts: list[str], label: str | None) -> str:
    """Arguments of a suggested command about a custom query. label: None if none was given."""
    flags = f"--query_text {shlex.join(texts)}"
    return flags if label is None else f"{flags} --query_label {shlex.quote(label)}"


def add_query_arguments(group: argparse._ArgumentGroup, first_query: bool = True) -> None:
    """Adds the arguments that choose the queries among the validation rows; the same in all scripts
    that read scores.

    first_query: whether to add the argument of this name.
    """
    group.add_argument(
        "--max_queries",
        type=int,
        default=MAX_QUERIES,
        help=f"number of validation rows that are queries; the same in all scripts ({MAX_QUERIES})",
    )
    if first_query:
        group.add_argument(
            "--first_query",
            type=int,
            default=0,
            help="begin with this validation row, to choose settings on other queries than those "
            "of a result (0)",
        )


CUSTOM = ("text_columns", "label_column", "task", "validation_split", "split_seed")


def add_custom_arguments(parser: Parser) -> None:
    """Adds the group of arguments that say how custom rows are read."""
    add = parser.group("custom rows (a --dataset_name that is not GLUE's)").add_argument
    add("--text_columns", nargs="+", metavar="COLUMN", help="one or two columns with the texts")
    add(
        "--label_column",
        help="column of the labels; numbers with a fraction make a regression, others classes",
    )
    add(
        "--task", choices=KINDS, help="kind of the labels, if it is not the one that they look like"
    )
    add(
        "--validation_split",
        help="a split (validation), a second file, or a share of the rows, of every class alike "
        f"({SHARE} of one split)",
    )
    add(
        "--split_seed",
        type=int,
        help="seed that draws validation rows; --seed does not change them (0)",
    )


def check_custom(name: str, values: dict) -> None:
    """Raises Refused for arguments (name -> value) about rows that do not go together, and for the
    name of a data set that nothing can have.
    """
    if name in TASKS:
        for argument in CUSTOM:
            if values[argument] is not None:
                raise Refused(
                    f"--{argument} is for custom rows; {name} is a task of GLUE, so choose another "
                    "name"
                )
        return
    check_name(name)
    columns = values["text_columns"] or ()
    label = values["label_column"]
    if values["dataset_path"] is None or not columns or not label:
        raise Refused(
            f"{unknown_task(name)}; custom rows take --dataset_path, --text_columns and "
            "--label_column"
        )
    if len(columns) > 2 or len({*columns, label}) <= len(columns):
        raise Refused(
            "--text_columns takes one or two columns, each once, and --label_column another one"
        )
    if "label" in columns:
        raise Refused("a text column cannot be called 'label'; rename it")
