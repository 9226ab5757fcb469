"""Arguments that studies of retraining share, and the limits of their values."""

import argparse
from pathlib import Path

from attribution.cli import Parser, refuse_idle
from attribution.training.arguments import MAX_QUERIES

# First seed of retrains; scored models have other seeds, or they would share head and row order.
RETRAIN_SEED = 100
MIN_MASKS = 3  # subsets of an LDS
MIN_SEEDS = 5  # retrains of a verdict
TURNED = {"helpful": "flipped", "harmful": "mended"}  # rows that go -> fate of a target
DIRECTIONS = tuple(TURNED)
STUDY = "counterfactual"  # the beginning of the names of its files
ARMS = ["ekfac", "identity", "tfidf", "random"]  # the default of --strategies
OF_WHAT_IF = ("remove_rows", "flip_labels", "smallest_set")  # what a what-if may ask for
# Arguments with an effect beside --plot_only.
PLOTTING = {"dataset_name", "checkpoint_dir", "results_dir", "figure_path"}
OVERLAP = ("tfidf", "tfidf2", "bm25")  # scores by the words that two texts share
BASELINES = ("random", "label", *OVERLAP, "representation", "start")


def add_start_argument(group) -> None:
    """Adds the place of the start model, for one that has moved."""
    group.add_argument(
        "--model_name_or_path",
        help="the start model, if it is not where training found it (as in run.json)",
    )


def add_retrain_seed(group) -> None:
    """Adds the first seed of retrains."""
    group.add_argument(
        "--retrain_seed",
        type=int,
        default=RETRAIN_SEED,
        help="seed of the first retrain of a subset, the next ones count up; not that of a scored "
        f"model ({RETRAIN_SEED})",
    )


def add_study_arguments(parser: Parser, name: str) -> None:
    """Adds the groups "how it runs" and "results" of the study of this name."""
    add = parser.group("how it runs").add_argument
    add(
        "--jobs_per_device",
        type=int,
        help="retrains at the same time: processes on a GPU (1), or on a CPU processes of one "
        "thread each (one a core)",
    )
    add(
        "--retrain_queries",
        type=int,
        default=MAX_QUERIES,
        help="validation rows, from the first on, that every retrain predicts and stores, so that "
        f"later studies retrain nothing ({MAX_QUERIES}, and at least the queries)",
    )
    add(
        "--dry_run",
        action="store_true",
        help="print how many retrains are missing, then stop",
    )
    add = parser.group("results").add_argument
    add(
        "--results_dir",
        type=Path,
        metavar="DIR",
        help=f"folder of {name}_DATASET_NAME.json, .md and so on, and of the figure "
        f"(CHECKPOINT_DIR/DATASET_NAME/studies; there {name}.json and so on)",
    )
    add("--figure_path", type=Path, metavar="FILE", help="place of the figure (beside the results)")
    add("--plot_only", action="store_true", help="draw the figure again from the JSON")


def refuse_others(given: set[str], takes: dict[str, set[str]]) -> None:
    """Raises Refused for arguments (names on the command line) that what is asked would ignore.

    takes: argument that asks for something, the first on the command line counts -> names of the
    arguments that have an effect beside it.
    """
    if {"plot_only", "results_dir"} <= given:
        refuse_idle(given & {"checkpoint_dir"}, "plot_only")
    for way, taken in takes.items():
        if way in given:
            refuse_idle(given - taken - {way}, way)
            return


def is_single(args: argparse.Namespace) -> bool:
    """Whether single predictions are checked."""
    return args.targets is not None or args.query_text is not None


def asked_what_if(args: argparse.Namespace) -> str | None:
    """Name of the argument by which a what-if is asked; None without one."""
    return next((name for name in OF_WHAT_IF if getattr(args, name)), None)
