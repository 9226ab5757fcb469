"""Fits influence factors, scores every training row for every query, and shows the most influential
rows.

    python analyze.py --dataset_name demo
    python analyze.py --dataset_name demo --query_index 79 --top_k 5      # reads what is stored
    python analyze.py --dataset_name demo --query_text "The soup was cold."      # a sentence of your own
    python analyze.py --dataset_name demo --query_path questions.csv --format json
    python analyze.py --dataset_name demo --report                               # a page to look at
    python analyze.py --dataset_name sst2 --query_batch_size 175 --train_batch_size 128 \\
        --checkpoint_dir ./checkpoints --factor_strategy ekfac --use_half_precision

A positive score: the training row helps; without it, the query's margin falls. Scores are stored as
CHECKPOINT_DIR/DATASET_NAME/influence/scores/NAME/pairwise_scores.safetensors, key `all_modules`,
float32, shape (Q queries, N training rows), both in the order of the data set.
"""

import argparse
import contextlib
import gc
import sys
from pathlib import Path

import torch

from attribution.engine import modules
from attribution.files import (
    Refused,
    check_numbers,
    check_writable,
    exclusive,
    printable,
    run_script,
)
from attribution.influence.analysis import Influence
from attribution.influence.arguments import (
    add_running_arguments,
    add_score_arguments,
    parse_damping,
)
from attribution.influence.names import window_name
from attribution.influence.settings import Settings
from attribution.influence.stored import recorded_queries
from attribution.processes import launched
from attribution.show.asking import (
    Session,
    View,
    add_asking_arguments,
    check_asking,
    forget_queries,
    read_questions,
)
from attribution.show.explain import FORMAT
from attribution.show.reading import default_format, show_self_influence
from attribution.show.report import write_report
from attribution.training.fit import choose_device, name_of
from attribution.training.members import open_members
from attribution.training.queries import Questions
from attribution.training.recipe import (
    MAX_QUERIES,
    Parser,
    add_data_arguments,
    add_query_arguments,
    check_window,
    members_of,
)
from attribution.training.run import open_data, open_run
from pipeline import quiet_libraries


def parse_args(argv=None) -> argparse.Namespace:
    """The command line, checked. Raises Refused for values that no run could use."""
    parser = Parser(__doc__, epilog=FORMAT)
    add_query_arguments(add_data_arguments(parser))
    add_score_arguments(parser)
    add_running_arguments(parser)
    add_asking_arguments(parser)
    add = parser.add_argument_group("what is shown").add_argument
    add("--top_k", type=int, default=5, help="rows shown in each direction (5)")
    add(
        "--self_influence",
        action="store_true",
        help="score every training row against itself; show the top rows",
    )
    args = parser.parse_args(argv)
    positive = (
        "query_batch_size",
        "train_batch_size",
        "top_k",
        "max_queries",
        "data_partitions",
        "max_factor_rows",
    )
    check_numbers(vars(args), *positive, "query_gradient_rank")
    check_window(vars(args))
    check_asking(vars(args))
    if args.stock and args.covariance_products != "float64":
        raise Refused("--covariance_products is ours; --stock has --covariance_dtype")
    if args.stock and args.fisher != "sampled":
        raise Refused(
            "--fisher exact is ours; kronfluence samples labels, so leave out one of --stock and "
            "--fisher"
        )
    args.damping_factor = parse_damping(args.damping_factor)
    if args.factor_strategy not in ("kfac", "ekfac"):
        args.covariance_dtype = None
    elif args.covariance_dtype is None and not args.stock:
        args.covariance_dtype = "float64"
    return args


def work_place(influence: Influence, kinds: list[str]):
    """A context in which the run's folder is worked in; nothing is written where all is stored."""
    if not influence.processes.main or all(influence.stored(kind) is not None for kind in kinds):
        return contextlib.nullcontext()
    check_writable(influence.influence)
    print(f"computing on {name_of(choose_device())}")
    return exclusive(influence.influence, shared=True)


def settings_of(args: argparse.Namespace) -> Settings:
    """What the analysis needs of the command line."""
    return Settings(
        strategy=args.factor_strategy,
        half=args.use_half_precision,
        stock=args.stock,
        covariance_dtype=args.covariance_dtype,
        covariance_products=args.covariance_products,
        fisher=args.fisher,
        rank=args.query_gradient_rank,
        damping=args.damping_factor,
        seed=args.seed,
        tf32=args.tf32,
        query_batch_size=args.query_batch_size,
        train_batch_size=args.train_batch_size,
        max_factor_rows=args.max_factor_rows,
        data_partitions=args.data_partitions,
        rotate=args.rotate,
        overwrite=args.overwrite,
        profile=args.profile,
    )


def ask_as_scored(args: argparse.Namespace, folder: Path, members: str) -> None:
    """A question without --max_queries is about as many validation rows as were scored under its
    other arguments.
    """
    asks = any(
        value is not None
        for value in (args.query_index, args.query_text, args.query_path, args.report)
    )
    if asks and args.max_queries == MAX_QUERIES:
        name = settings_of(args).scores + members + window_name(args.first_query)
        args.max_queries = recorded_queries(folder, name) or args.max_queries


def score_all(session: Session, self_influence: bool, view: View) -> None:
    """Scores what is not stored yet; prints the rows that shape themselves most, or the first
    query.
    """
    influence = session.influence
    with work_place(influence, ["pairwise"] + ["self"] * self_influence), view.progress():
        scores = influence.compute("pairwise")
        own = influence.compute("self") if self_influence else None
    if scores is None:  # not the main process
        return
    with view.progress():
        print(
            f"{influence.result}: scores of {scores.shape[1]:,} training rows for "
            f"{scores.shape[0]:,} queries"
        )
        for sentence in session.run.get("doubts", []):
            print(printable(sentence))
    if own is not None:
        show_self_influence(session.train, own, view.top_k, session.row_losses())
    else:
        session.show(session.rows([0], scores.numpy(), view.form != "plain"), scores.numpy(), view)


def main(argv=None) -> None:
    """Scores what is not stored yet, then prints; with --query_index it only prints. Raises Refused
    on bad input.
    """
    quiet_libraries()
    args = parse_args(argv)
    with launched() as processes:
        if args.stock and processes.count > 1:  # each would do everything
            raise Refused("analyze.py --stock runs in one process; start it without a launcher")
        if not args.stock:
            modules.check_version()
        # kronfluence collects garbage in every phase; what was imported need not be looked at each
        # time
        gc.freeze()
        torch.set_float32_matmul_precision("high" if args.tf32 else "highest")
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = (
            False  # partial sums stay in float32
        )
        folder, run = open_run(args.checkpoint_dir, args.dataset_name)
        if args.forget_queries:
            forget_queries(folder)
            return
        members = open_members(folder, run, members_of(vars(args)))
        ask_as_scored(args, folder, members.members.name)
        train, queries = open_data(
            folder, run, args.dataset_path, args.max_queries, args.first_query
        )
        opened = (members, train, queries, settings_of(args), vars(args))
        session = Session(*opened, work_place, processes, args.first_query)
        answer(session, read_questions(folder, run, vars(args)), args)


def answer(session: Session, questions: Questions | None, args: argparse.Namespace) -> None:
    """Does what was asked. Stored scores are shown by the main process alone."""
    view = View(args.format or default_format(), args.top_k)
    if questions is not None:
        session.show_questions(questions, view)
    elif args.report is None and args.query_index is None:
        score_all(session, args.self_influence, view)
    elif session.processes.main and args.report is not None:
        place = write_report(
            session, None if args.report == Path() else args.report, args.query_index, args.top_k
        )
        print(f"wrote {place}")
    elif session.processes.main:
        session.show_rows(args.query_index, args.query_target, view)
    if args.profile and (table := session.influence.profile()):
        print(table)


if __name__ == "__main__":
    sys.exit(run_script(main))
