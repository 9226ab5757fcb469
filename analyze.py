"""Fits influence factors, scores every training row for every query, and shows the most influential
rows.

    python analyze.py --dataset_name demo
    python analyze.py --dataset_name demo --query_index 79 --top_k 5      # reads stored scores
    python analyze.py --dataset_name demo --query_text "The soup was cold."       # a custom query
    python analyze.py --dataset_name demo --query_path questions.csv --format json
    python analyze.py --dataset_name demo --report                        # a page to look at
    python analyze.py --dataset_name demo --factor_strategy replay        # scores in log-odds
    python analyze.py --dataset_name sst2 --query_batch_size 175 --train_batch_size 128 \\
        --checkpoint_dir ./checkpoints --factor_strategy ekfac --use_half_precision

A positive score: the training row helps; without it, the query's margin falls. Scores are stored as
CHECKPOINT_DIR/DATASET_NAME/influence/scores/NAME/pairwise_scores.safetensors, key `all_modules`,
float32, shape (Q queries, N training rows), both in the order of the data set.
"""

import argparse
import sys
from pathlib import Path

from attribution.cli import (
    Parser,
    add_options,
    check_numbers,
    given_arguments,
    options_of,
    refuse_idle,
    run_script,
)
from attribution.files import Refused
from attribution.influence.settings import Settings, with_members
from attribution.show.listing import FORMAT, FORMATS, view_of
from attribution.show.scored import show_stored
from attribution.training.arguments import add_data_arguments, add_query_arguments
from attribution.training.run import Run

# Arguments of computing, without an effect where stored scores are read.
OF_COMPUTING = {"overwrite", "profile"}


def add_asking_arguments(parser: Parser) -> None:
    """Adds the group of arguments about questions and the form of their answers."""
    add = parser.group("queries and answers").add_argument
    add(
        "--query_index",
        type=int,
        nargs="+",
        help="show the most influential rows of these validation rows, from stored scores",
    )
    add("--query_text", nargs="+", metavar="TEXT", help="a custom query: one text a text column")
    add("--query_label", help="its class, by name or number (the predicted class)")
    add("--query_path", help="custom queries in a CSV, JSONL or Parquet file; - is standard input")
    add(
        "--query_target",
        choices=("label", "predicted"),
        default="label",
        help="target of --query_index: the label or the predicted class (label)",
    )
    add(
        "--report",
        nargs="?",
        type=Path,
        const=True,
        metavar="FILE",
        help="write a page about --query_index or telling queries (report.html beside the scores)",
    )
    add(
        "--forget_queries",
        action="store_true",
        help="delete all custom queries and their scores, then stop",
    )
    add(
        "--format",
        choices=FORMATS,
        help="form of the answer (table on a terminal, else plain)",
    )
    add("--top_k", type=int, default=5, help="rows shown in each direction (5)")
    add(
        "--self_influence",
        action="store_true",
        help="score every training row against itself; show the top rows",
    )


def check_asking(values: dict, given: set[str]) -> None:
    """Raises Refused for questions that exclude each other, and for arguments that a question
    would ignore.

    given: names of the arguments on the command line.
    """
    if values["forget_queries"]:
        refuse_idle(given - {"forget_queries", "dataset_name", "checkpoint_dir"}, "forget_queries")
    ways = [
        name for name in ("query_index", "query_text", "query_path") if values[name] is not None
    ]
    if len(ways) > 1:
        raise Refused(f"--{ways[0]} and --{ways[1]} exclude each other; ask one at a time")
    if values["report"] is not None and ways and ways[0] != "query_index":
        raise Refused(f"--{ways[0]} is answered without --report; the next report shows it")
    if values["query_label"] is not None and values["query_text"] is None:
        raise Refused("--query_label belongs to --query_text; a file of queries has a label column")
    if values["report"] is not None:
        if values["self_influence"]:
            raise Refused("--self_influence is computed without --report; the next report shows it")
        refuse_idle(given & {"format", "query_target", *OF_COMPUTING}, "report")
    for way in ways:
        refuse_idle(given & {"self_influence"}, way)
    if values["query_index"] is not None:
        refuse_idle(given & OF_COMPUTING, "query_index")
    elif "query_target" in given:
        raise Refused("--query_target belongs to --query_index")


def parse_args(argv=None) -> argparse.Namespace:
    """Parsed and checked command line. Raises Refused for values that no run could use."""
    parser = Parser(__doc__, epilog=FORMAT)
    add_query_arguments(add_data_arguments(parser), first_query=False)
    add_options(parser, Settings)
    add_asking_arguments(parser)
    args = parser.parse_args(argv)
    check_numbers(vars(args), "top_k", "max_queries")
    check_asking(vars(args), given_arguments(argv))
    options_of(Settings, args).check()
    return args


def main(argv=None) -> None:
    """Computes scores that are not stored, then prints an answer. Raises Refused on bad input."""
    args = parse_args(argv)
    run = Run.open(args.checkpoint_dir, args.dataset_name, args.dataset_path)
    settings = with_members(options_of(Settings, args), run)
    if args.query_index is not None and args.report is None:
        view = view_of(args.format, args.top_k)
        if show_stored(run, settings, args.query_index, args.max_queries, args.query_target, view):
            return
    from attribution.commands.analyze import analyze  # torch takes seconds to import

    analyze(args, run, settings)


if __name__ == "__main__":
    sys.exit(run_script(main))
