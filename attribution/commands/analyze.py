"""Outline of analyze.py: scores what is not stored, then answers."""

import argparse
import gc
import sys

import torch

from attribution.files import Refused, check_file
from attribution.influence.analysis import Influence
from attribution.influence.settings import Settings
from attribution.influence.stored import recorded_queries
from attribution.processes import launched
from attribution.show.asking import (
    forget_queries,
    read_questions,
    show_questions,
    show_scores,
    show_validation_rows,
)
from attribution.show.listing import view_of
from attribution.training.arguments import MAX_QUERIES
from attribution.training.run import Run
from pipeline import quiet_libraries


def as_scored(args: argparse.Namespace, run: Run, name: str) -> int:
    """Number of queries: --max_queries, by default for a question as many as were scored before."""
    questions = (args.query_index, args.query_text, args.query_path, args.report)
    if args.max_queries != MAX_QUERIES or all(one is None for one in questions):
        return args.max_queries
    return recorded_queries(run, name) or args.max_queries


def analyze(args: argparse.Namespace, run: Run, settings: Settings) -> None:
    """Computes scores that are not stored, then prints an answer. Raises Refused on bad input."""
    quiet_libraries()
    if args.report not in (None, True):
        check_file(args.report, "--report")
    with launched() as processes:
        if settings.stock and processes.count > 1:  # each process would compute everything
            raise Refused("analyze.py --stock runs in one process; start it without a launcher")
        gc.freeze()  # kronfluence collects garbage in every phase; imported objects need no look
        torch.set_float32_matmul_precision("high" if settings.tf32 else "highest")
        # Partial sums of bfloat16 products stay in float32.
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        if args.forget_queries:
            forget_queries(run)
            return
        args.max_queries = as_scored(args, run, settings.name)
        train, queries = run.rows(args.max_queries, args.first_query)
        influence = Influence(run, train, queries, settings, vars(args), processes=processes)
        answer(influence, args)
        if settings.profile and (table := influence.profile()):
            print(table, file=sys.stderr if args.format == "json" else sys.stdout)


def answer(influence: Influence, args: argparse.Namespace) -> None:
    """Prints the answer to the question of the command line, or scores all validation rows."""
    view = view_of(args.format, args.top_k)
    places = None
    if args.query_index is not None:
        places = [influence.queries.place_of(one, "query_index") for one in args.query_index]
    questions = read_questions(influence.run, vars(args), influence.processes)
    if questions is not None:
        show_questions(influence, questions, view)
    elif args.report is None and places is None:
        show_scores(influence, args.self_influence, view)
    elif influence.processes.main and args.report is not None:
        from attribution.show.report import write_report  # it imports sklearn and Jinja2

        path = None if args.report is True else args.report  # True: no file was named
        print(f"wrote {write_report(influence, path, places, args.top_k)}")
    elif influence.processes.main and places is not None:
        show_validation_rows(influence, places, args.query_target, view)
