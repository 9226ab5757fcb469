"""Outline of analyze.py: scores what is not stored, then answers."""

import argparse
import gc
import sys

import torch

from attribution.files import Refused, check_file, printable
from attribution.influence.analysis import Influence
from attribution.influence.settings import Settings
from attribution.influence.stored import recorded_queries
from attribution.processes import launched
from attribution.show.asking import (
    answers_to_questions,
    answers_to_rows,
    contrasts,
    forget_queries,
    read_questions,
    replay_command,
    scored_rows,
    show_scores,
    with_words,
)
from attribution.show.listing import View, show
from attribution.training.arguments import MAX_QUERIES
from attribution.training.run import Run
from pipeline import quiet_libraries


def as_scored(args: argparse.Namespace, run: Run, name: str) -> int:
    """Number of queries: --max_queries, by default for a question as many as were scored before."""
    questions = (
        args.query_index,
        args.query_group,
        args.query_text,
        args.query_path,
        args.report,
        args.label_issues,
    )
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
            print(table, file=sys.stdout if args.format == "table" else sys.stderr)


def answer(influence: Influence, args: argparse.Namespace) -> None:
    """Prints the answer to the question of the command line, or scores all validation rows."""
    view = View(args.format, args.top_k, args.raw)
    main = influence.processes.main
    questions = read_questions(influence.run, vars(args), influence.processes)
    queries = influence.queries
    places = [queries.place_of(one, "query_index") for one in args.query_index or []]
    if args.contrast is not None:
        with view.progress():
            data = questions.data if questions is not None else queries.subset(places)
            texts = [data.columns_of(i) for i in range(len(data))]
            answers = contrasts(influence, texts, args.contrast, args.top_k, places or None)
        show(answers, view)
    elif questions is not None:
        with view.progress():
            answers = answers_to_questions(influence, questions, args.top_k)
            if args.words and main:
                answers = with_words(influence, questions.data, answers)
        show(answers, view)
        if main and view.form == "table" and (command := replay_command(influence, questions)):
            print(f"A replay is stored, too, and may say otherwise:\n  {printable(command)}")
    elif args.label_issues is not None or args.self_influence:
        from attribution.show.label_issues import show_label_issues  # it imports sklearn

        if args.self_influence:
            with view.progress():
                scores = influence.compute("pairwise")
                if scores is not None:
                    scored_rows(influence, scores)
        show_label_issues(influence, args.label_issues or "self_influence", view)
    elif args.report is not None:
        from attribution.show.report import write_report  # it imports sklearn and Jinja2

        path = None if args.report is True else args.report  # True: no file was named
        if written := write_report(influence, path, args.query_index, args.top_k):
            print(f"wrote {written}")
    elif args.query_index is None and args.query_group is None:
        show_scores(influence, view)
    else:
        with view.progress():
            asked = args.query_index, args.top_k, args.query_group, args.particular
            answers = answers_to_rows(influence, *asked)
            if args.words and places and main:
                answers = with_words(influence, queries.subset(places), answers)
        show(answers, view)
