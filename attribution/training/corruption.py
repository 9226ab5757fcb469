"""Labels that are made wrong on purpose, so that it can be counted who finds them.

Which rows, and what their labels become, is a function of seed and row; run.json records the rows,
and every script makes the same labels wrong again. The column `flipped` of the training table says
which labels are wrong: of two classes, one that was made wrong twice is right.
"""

import argparse

import datasets
import numpy as np

from attribution.data.tables import labels_of
from attribution.data.task import GlueTask
from attribution.draws import uniform_hash
from attribution.files import Refused

TRUTH = "flipped"  # the column that says which labels are wrong


def add_corruption_arguments(add) -> None:
    """Adds --corrupt_labels and --corrupt_seed. add: a group's add_argument."""
    add(
        "--corrupt_labels",
        type=float,
        metavar="SHARE",
        help="make this share of the training labels wrong, to see who finds them; takes a "
        "--checkpoint_dir of its own",
    )
    add("--corrupt_seed", type=int, help="of the rows and their wrong labels (0)")


def check_corruption(args: argparse.Namespace, default_dir) -> None:
    """Raises Refused for a share that cannot be, and where a run with right labels might be
    replaced.
    """
    if args.corrupt_labels is None:
        if args.corrupt_seed is not None:
            raise Refused("--corrupt_seed goes with --corrupt_labels")
        return
    if not 0 < args.corrupt_labels < 1:
        raise Refused(
            f"--corrupt_labels is a share of the rows between 0 and 1, not {args.corrupt_labels:g}"
        )
    if args.adopt:
        raise Refused(
            "--corrupt_labels changes what a model learns; an adopted one has learned already"
        )
    if args.checkpoint_dir.resolve() == default_dir.resolve():
        raise Refused(
            "--corrupt_labels takes a --checkpoint_dir of its own, so that no run with right "
            "labels is lost"
        )


def draw(num_rows: int, share: float, seed: int) -> list[int]:
    """The rows whose labels become wrong, ascending: those of the smallest hash of seed and row."""
    order = np.argsort(uniform_hash(seed, "corrupted row", np.arange(num_rows)), kind="stable")
    return sorted(order[: round(share * num_rows)].tolist())


def corrupt(splits: datasets.DatasetDict, task: GlueTask, record: dict) -> datasets.DatasetDict:
    """The tables with wrong labels in the training rows. record: "seed" and "rows", as run.json has
    them.

    Each wrong label is drawn from the other classes. Raises Refused for a regression, which has
    none, and for labels that no run could use.
    """
    if task.regression:
        raise Refused(
            "--corrupt_labels needs classes; a regression's labels are not right or wrong"
        )
    table, rows = splits["train"], np.asarray(record["rows"], dtype=np.int64)
    labels = labels_of(table, task, "the split 'train'").astype(np.int64)
    wrong = np.array(table[TRUTH]) if TRUTH in table.column_names else np.zeros(len(table), bool)
    steps = 1 + np.floor(
        uniform_hash(record["seed"], "wrong label", rows) * (task.num_labels - 1)
    ).astype(np.int64)
    labels[rows] = (labels[rows] + steps) % task.num_labels
    wrong[rows] = ~wrong[rows] if task.num_labels == 2 else True
    names = list(task.class_names) or [str(label) for label in range(task.num_labels)]
    table = table.remove_columns([name for name in ("label", TRUTH) if name in table.column_names])
    table = table.add_column("label", labels.tolist()).add_column(TRUTH, wrong.tolist())
    return datasets.DatasetDict(
        splits | {"train": table.cast_column("label", datasets.ClassLabel(names=names))}
    )
