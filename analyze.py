"""Fits influence factors, scores every training row for every query, and shows the most influential
rows.

    python analyze.py --dataset_name demo
    python analyze.py --dataset_name demo --query_index 79 --words        # reads stored scores
    python analyze.py --dataset_name demo --query_text "The soup was cold."       # a custom query
    python analyze.py --dataset_name demo --query_path questions.csv --format json
    python analyze.py --dataset_name demo --report                        # a page to look at
    python analyze.py --dataset_name demo --query_group wrong        # what hurts wrong predictions
    python analyze.py --dataset_name demo --factor_strategy replay        # scores in log-odds
    python analyze.py --dataset_name demo --label_issues replay           # labels to look at
    python analyze.py --dataset_name sst2 --query_batch_size 175 --train_batch_size 128 \\
        --checkpoint_dir ./checkpoints --factor_strategy ekfac --use_half_precision

A positive score: without the row, the margin of the query's label falls. Scores are stored as
CHECKPOINT_DIR/DATASET_NAME/influence/scores/NAME/pairwise_scores.safetensors, key `all_modules`,
float32, shape (Q queries, N training rows), both in the order of the data set.
"""

import argparse
from dataclasses import fields, replace
from pathlib import Path

from attribution.cli import (
    Parser,
    add_options,
    check_numbers,
    end,
    flags_of,
    given_arguments,
    options_of,
    refuse_idle,
    run_script,
    tell_start,
)
from attribution.evidence.arguments import refuse_others
from attribution.files import Refused, Stale
from attribution.influence.settings import Settings, with_members
from attribution.influence.stored import recorded_queries
from attribution.show.listing import FORMAT, FORMATS, View
from attribution.show.scored import show_stored
from attribution.training.arguments import (
    MAX_QUERIES,
    add_data_arguments,
    add_query_arguments,
    command_of,
    queries_flag,
)
from attribution.training.members import Members
from attribution.training.run import Run

# Arguments of computing, without an effect where stored scores are read.
OF_COMPUTING = {"overwrite", "profile"}
# Arguments of scores, without an effect where none are computed.
OF_SCORES = {field.name for field in fields(Settings)} - {field.name for field in fields(Members)}
OF_SCORES.remove("first_query")
# Question -> the arguments below that have an effect beside it.
TAKES = {
    "report": {"query_index", "top_k"},
    "query_index": {"format", "top_k", "raw", "words", "particular", "contrast"},
    "query_group": {"format", "top_k", "raw", "particular"},
    "query_text": {"profile", "format", "top_k", "raw", "words", "contrast", "query_label"},
    "query_path": {"profile", "format", "top_k", "raw", "words", "contrast"},
    "label_issues": OF_COMPUTING | {"format", "top_k"},
    "self_influence": OF_COMPUTING | {"format", "top_k"},
}
OF_QUESTIONS = {"words", "particular", "contrast", "query_label"}  # without an effect alone
ASKING = OF_COMPUTING | OF_QUESTIONS | {*TAKES, "format", "top_k", "raw"}


def add_asking_arguments(parser: Parser) -> None:
    """Adds the group of arguments about questions and the form of their answers."""
    add = parser.group("queries and answers").add_argument
    add(
        "--query_index",
        type=int,
        nargs="+",
        help="show the rows behind these validation rows",
    )
    add(
        "--query_group",
        metavar="GROUP",
        help="rows by their mean over validation rows: wrong, right, all, a class or a file",
    )
    add("--query_text", nargs="+", metavar="TEXT", help="a custom query: one text a text column")
    add("--query_label", help="its class, by name or number (the predicted class)")
    add("--query_path", help="custom queries: CSV, JSONL, Parquet; - standard input")
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
    add("--format", choices=FORMATS, default="table", help="form of the answer (table)")
    add("--top_k", type=int, default=5, help="rows shown in each direction (5)")
    add("--contrast", metavar="CLASS", help="what the model said against this class (all others)")
    add("--words", action="store_true", help="mark words that link row and query")
    add("--raw", action="store_true", help="show stored scores, ranks and members in a table")
    add(
        "--particular",
        action="store_true",
        help="rank rows by score / sqrt(self-influence): fewer are high for "
        "every query, but less true on the demo (LDS .32 for .57, by hand)",
    )
    add(
        "--self_influence",
        action="store_true",
        help="score rows against themselves too; list labels by it",
    )
    add(
        "--label_issues",
        nargs="?",
        const="best",
        choices=("best", "replay", "loss", "self_influence"),
        metavar="RANKING",
        help="list labels to look at (by replay or loss)",
    )


def check_asking(values: dict, given: set[str]) -> None:
    """Raises Refused for arguments that the question, or another argument, would ignore.

    given: names of the arguments on the command line.
    """
    if values["forget_queries"]:
        refuse_idle(given - {"forget_queries", "dataset_name", "checkpoint_dir"}, "forget_queries")
    refuse_others(given & ASKING, TAKES)
    if not given & TAKES.keys() and (alone := given & OF_QUESTIONS):
        raise Refused(f"--{min(alone)} belongs to a question, as --query_text or --query_index")
    if "contrast" in given:
        refuse_idle(given & {"words", "particular", "query_label"}, "contrast")
    if values["format"] == "csv":
        refuse_idle(given & {"words"}, "format csv")
    if values["format"] != "table":
        refuse_idle(given & {"raw"}, "format")
        if given & {"label_issues", "self_influence"}:
            refuse_idle(given & {"top_k"}, "format")  # JSON and CSV have all rows
    replayed = values["factor_strategy"] == "replay"
    if "particular" in given and replayed:
        raise Refused("--particular takes self-influence, which a replay does not have")
    ranking = values["label_issues"]
    if replayed and ranking in ("loss", "self_influence"):
        raise Refused(f"--factor_strategy replay has no {ranking}; use --label_issues replay")
    if ranking == "replay" and not replayed:
        refuse_idle(given & {"factor_strategy"}, "label_issues replay")
    if ranking in ("best", "loss") and not replayed:
        refuse_idle(given & OF_SCORES, f"label_issues {ranking}")


def parse_args(argv=None) -> argparse.Namespace:
    """Parsed and checked command line. Raises Refused for values that no run could use."""
    parser = Parser(__doc__, epilog=FORMAT, rare=("raw", "particular", "contrast"))
    add_query_arguments(add_data_arguments(parser), first_query=False)
    add_options(parser, Settings)
    add_asking_arguments(parser)
    args = parser.parse_args(argv)
    check_numbers(vars(args), "top_k", "max_queries")
    check_asking(vars(args), given_arguments(argv))
    if args.label_issues == "replay":
        args.factor_strategy = "replay"
    options_of(Settings, args).check()
    return args


def main(argv=None) -> None:
    """Computes scores that are not stored, then prints an answer. Raises Refused on bad input."""
    args = parse_args(argv)
    run = Run.open(args.checkpoint_dir, args.dataset_name, args.dataset_path)
    with View(args.format, args.top_k).progress():
        settings = with_members(options_of(Settings, args), run)
    run.tell_doubts()
    try:
        analyze(args, run, settings)
    except Stale as stale:
        again = overwrite_command(args, run, settings)
        raise Refused(
            f"{stale.reason}; replace them with: {again} or use another --checkpoint_dir"
        ) from None


def overwrite_command(args: argparse.Namespace, run: Run, settings: Settings) -> str:
    """Command that replaces stored scores and factors by those of these settings."""
    command = command_of("analyze.py", run.dataset_name, run.folder.parent)
    limit = args.max_queries
    if limit == MAX_QUERIES:
        limit = recorded_queries(run, settings.name) or limit
    flags = flags_of(replace(settings, overwrite=True))  # with all that changes a fingerprint
    return f"{command}{queries_flag(limit)} {flags}"


def analyze(args: argparse.Namespace, run: Run, settings: Settings) -> None:
    """Prints an answer from what is kept, where that is enough, or computes."""
    stored = args.query_index is not None or args.query_group is not None
    if stored and args.report is None and not args.words and not args.contrast:
        view = View(args.format, args.top_k, args.raw)
        asked = args.query_index, args.query_group, args.max_queries, view, args.particular
        if show_stored(run, settings, *asked):
            return
    tell_start(args.dataset_name)
    from attribution.commands import analyze as outline  # torch takes seconds to import

    outline.analyze(args, run, settings)


if __name__ == "__main__":
    end(run_script(main))
