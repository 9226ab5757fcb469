"""Fits influence factors, scores every training row for every query, and shows the most influential rows.

    python analyze.py --dataset_name demo
    python analyze.py --dataset_name demo --query_index 79 --top_k 5      # reads what is stored
    python analyze.py --dataset_name sst2 --query_batch_size 175 --train_batch_size 128 \\
        --checkpoint_dir ./checkpoints --factor_strategy ekfac --use_half_precision

A positive score: the training row helps; without it, the query's margin falls. Scores are stored as
CHECKPOINT_DIR/DATASET_NAME/influence/scores/NAME/pairwise_scores.safetensors, key `all_modules`,
float32, shape (Q queries, N training rows), both in the order of the data set.
"""

import argparse
import contextlib
import gc
import os
import sys

import torch

from attribution.files import Refused, check_numbers, check_writable, exclusive, run_script
from attribution.influence import eigenbasis
from attribution.influence.analysis import Influence
from attribution.influence.memory import ROTATE
from attribution.influence.names import STRATEGIES
from attribution.influence.settings import MAX_FACTOR_ROWS, Settings
from attribution.show.reading import show_query, show_self_influence
from attribution.training.fit import choose_device, name_of
from attribution.training.recipe import Parser, add_data_arguments, add_query_arguments
from attribution.training.run import open_data, open_run
from pipeline import quiet_libraries


def parse_args(argv=None) -> argparse.Namespace:
    """The command line, checked. Raises Refused for values that no run could use."""
    parser = Parser(__doc__)
    add_query_arguments(add_data_arguments(parser))
    add_score_arguments(parser)
    add_running_arguments(parser)
    add = parser.add_argument_group("what is shown").add_argument
    add("--query_index", type=int, help="show this query's most influential rows from stored scores; computes nothing")
    add("--top_k", type=int, default=5, help="rows shown in each direction (5)")
    add("--self_influence", action="store_true", help="score every training row against itself; show the top rows")
    args = parser.parse_args(argv)
    positive = ("query_batch_size", "train_batch_size", "top_k", "max_queries", "data_partitions", "max_factor_rows")
    check_numbers(vars(args), *positive, "query_gradient_rank")
    args.damping_factor = parse_damping(args.damping_factor)
    if args.factor_strategy not in ("kfac", "ekfac"):
        args.covariance_dtype = None
    elif args.covariance_dtype is None and not args.stock:
        args.covariance_dtype = "float64"
    return args


def add_score_arguments(parser: argparse.ArgumentParser) -> None:
    """The group of everything that changes the scores."""
    add = parser.add_argument_group("how scores are computed").add_argument
    add("--factor_strategy", choices=STRATEGIES, default="ekfac", help="curvature approximation (ekfac)")
    add(
        "--use_half_precision", action="store_true",
        help="bfloat16 per-example gradients and products; the model, rotations and sums stay float32 or above",
    )  # fmt: skip
    add(
        "--covariance_dtype", choices=("float32", "float64"),
        help="type of covariance sums (float64; with --stock float32, where eigenvectors of close eigenvalues are "
        "left to rounding)",
    )  # fmt: skip
    add("--query_gradient_rank", type=int, help="keep query gradients at this low rank (full rank)")
    add(
        "--damping_factor", default="1e-8",
        help="number added to eigenvalues (1e-8, kronfluence's default), or 'heuristic' for a tenth of their mean",
    )  # fmt: skip
    add("--seed", type=int, default=0, help="of labels sampled for the factors, and of low-rank projections (0)")
    add("--tf32", action="store_true", help="TF32 matrix products on Ampere GPUs and later")
    add("--stock", action="store_true", help="run kronfluence as it comes, padded to the maximum length")


def add_running_arguments(parser: argparse.ArgumentParser) -> None:
    """The group of what changes only how the work is done."""
    add = parser.add_argument_group("how it runs").add_argument
    add("--query_batch_size", type=int, default=32, help="query rows a batch; lowered where memory is short (32)")
    add(
        "--train_batch_size", type=int, default=64,
        help="training rows of maximum length a batch: shorter rows make larger batches of as many tokens; "
        "on a CPU at most 4,096 tokens (64)",
    )  # fmt: skip
    add(
        "--max_factor_rows", type=int, default=MAX_FACTOR_ROWS,
        help=f"fit factors on the first so many training rows ({MAX_FACTOR_ROWS:,}, as kronfluence does)",
    )  # fmt: skip
    add(
        "--data_partitions", type=int,
        help="points from which an interrupted run goes on, a phase (so many that each is about ten minutes)",
    )
    add(
        "--rotate", choices=tuple(ROTATE), default="auto",
        help="side of the pairwise product that is rotated; auto takes the cheaper (for tests)",
    )  # fmt: skip
    add("--overwrite", action="store_true", help="replace stored results that were made from something else")
    add("--profile", action="store_true", help="print the table of actions with mean, calls, total and percentage")


def parse_damping(text: str) -> float | None:
    """A number, or None for kronfluence's heuristic. Raises Refused for anything else."""
    if text == "heuristic":
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise Refused(f"--damping_factor must be a number from 0 up or 'heuristic', not {text!r}")
    return value


def refuse_processes() -> None:
    """Raises Refused under a launcher: of several processes each would do everything."""
    sizes = [int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")]
    if max(sizes) > 1:
        raise Refused("analyze.py runs in one process, with --stock too; start it without a launcher")


def work_place(influence: Influence, kinds: list[str]):
    """A context that holds the run's folder; nothing is held, and nothing written, where all is stored."""
    if all(influence.stored(kind) is not None for kind in kinds):
        return contextlib.nullcontext()
    check_writable(influence.influence)
    print(f"computing on {name_of(choose_device())}")
    return exclusive(influence.influence)


def settings_of(args: argparse.Namespace) -> Settings:
    """What the analysis needs of the command line."""
    return Settings(
        strategy=args.factor_strategy, half=args.use_half_precision, stock=args.stock,
        covariance_dtype=args.covariance_dtype, rank=args.query_gradient_rank, damping=args.damping_factor,
        seed=args.seed, tf32=args.tf32, query_batch_size=args.query_batch_size,
        train_batch_size=args.train_batch_size, max_factor_rows=args.max_factor_rows,
        data_partitions=args.data_partitions, rotate=args.rotate, overwrite=args.overwrite, profile=args.profile,
    )  # fmt: skip


def main(argv=None) -> None:
    """Scores what is not stored yet, then prints; with --query_index it only prints. Raises Refused on bad input."""
    quiet_libraries()
    args = parse_args(argv)
    refuse_processes()
    if not args.stock:
        eigenbasis.check_version()
    gc.freeze()  # kronfluence collects garbage in every phase; what was imported need not be looked at each time
    torch.set_float32_matmul_precision("high" if args.tf32 else "highest")
    folder, run = open_run(args.checkpoint_dir, args.dataset_name)
    train, queries = open_data(folder, run, args.dataset_path, args.max_queries)
    influence = Influence(folder, run, train, queries, settings_of(args), vars(args))
    if args.query_index is not None:
        scores = influence.stored("pairwise")
        if scores is None:
            name = influence.result.name
            raise Refused(f"{name} has not been scored yet; run the same command without --query_index")
        show_query(queries, train, scores, args.query_index, args.top_k)
        return
    with work_place(influence, ["pairwise"] + ["self"] * args.self_influence):
        scores = influence.compute("pairwise")
        print(f"{influence.result}: scores of {scores.shape[1]:,} training rows for {scores.shape[0]:,} queries")
        if args.self_influence:
            show_self_influence(train, influence.compute("self"), args.top_k)
        else:
            show_query(queries, train, scores, 0, args.top_k)
        if args.profile and (table := influence.profile()):
            print(table)


if __name__ == "__main__":
    sys.exit(run_script(main))
