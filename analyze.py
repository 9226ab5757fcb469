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
import dataclasses
import gc
import sys

import torch

from attribution.cli import (
    Parser,
    add_options,
    check_numbers,
    flags_of,
    given_arguments,
    options_of,
    run_script,
)
from attribution.files import Refused, check_file
from attribution.influence.analysis import Influence
from attribution.influence.settings import Settings
from attribution.influence.stored import recorded_queries
from attribution.processes import launched
from attribution.show.asking import (
    BESIDE_SCORES,
    View,
    add_asking_arguments,
    check_asking,
    forget_queries,
    read_questions,
    show_questions,
    show_scores,
    show_validation_rows,
)
from attribution.show.listing import FORMAT
from attribution.show.report import write_report
from attribution.training.members import members_on_the_way
from attribution.training.run import MAX_QUERIES, Run, add_data_arguments, add_query_arguments
from pipeline import quiet_libraries


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


def with_members(settings: Settings, run: Run) -> Settings:
    """Settings of a replay that names no members: with those that serve it best, which it says."""
    if settings.factor_strategy != "replay" or not settings.single:
        return settings
    members = members_on_the_way(run)
    if not members.single:
        print(f"replay takes the checkpoints on the way of these members: {flags_of(members)}")
    return dataclasses.replace(settings, **vars(members))


def as_scored(args: argparse.Namespace, run: Run, name: str) -> int:
    """Number of queries: --max_queries, by default for a question as many as were scored before."""
    questions = (args.query_index, args.query_text, args.query_path, args.report)
    if args.max_queries != MAX_QUERIES or all(one is None for one in questions):
        return args.max_queries
    return recorded_queries(run, name) or args.max_queries


def main(argv=None) -> None:
    """Computes scores that are not stored, then prints an answer. Raises Refused on bad input."""
    quiet_libraries()
    args = parse_args(argv)
    settings = options_of(Settings, args)
    if args.report not in (None, BESIDE_SCORES):
        check_file(args.report, "--report")
    with launched() as processes:
        if settings.stock and processes.count > 1:  # each process would compute everything
            raise Refused("analyze.py --stock runs in one process; start it without a launcher")
        gc.freeze()  # kronfluence collects garbage in every phase; imported objects need no look
        torch.set_float32_matmul_precision("high" if settings.tf32 else "highest")
        # Partial sums of bfloat16 products stay in float32.
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        run = Run.open(args.checkpoint_dir, args.dataset_name, args.dataset_path)
        if args.forget_queries:
            forget_queries(run)
            return
        settings = with_members(settings, run)
        args.max_queries = as_scored(args, run, settings.name)
        train, queries = run.rows(args.max_queries, args.first_query)
        influence = Influence(run, train, queries, settings, vars(args), processes=processes)
        answer(influence, args)
        if settings.profile and (table := influence.profile()):
            print(table, file=sys.stderr if args.format == "json" else sys.stdout)


def answer(influence: Influence, args: argparse.Namespace) -> None:
    """Prints the answer to the question of the command line, or scores all validation rows."""
    # Columns on a terminal; plain lines where the output is piped.
    form = args.format or ("table" if sys.stdout.isatty() else "plain")
    view = View(form, args.top_k)
    places = None
    if args.query_index is not None:
        places = [influence.queries.place_of(one, "query_index") for one in args.query_index]
    questions = read_questions(influence.run, vars(args), influence.processes)
    if questions is not None:
        show_questions(influence, questions, view)
    elif args.report is None and places is None:
        show_scores(influence, args.self_influence, view)
    elif influence.processes.main and args.report is not None:
        path = None if args.report is BESIDE_SCORES else args.report
        print(f"wrote {write_report(influence, path, places, args.top_k)}")
    elif influence.processes.main and places is not None:
        show_validation_rows(influence, places, args.query_target, view)


if __name__ == "__main__":
    sys.exit(run_script(main))
