"""The arguments of an analysis: how scores are computed, and how the computation runs."""

import argparse

from attribution.engine.memory import ROTATE
from attribution.files import Refused
from attribution.influence.names import STRATEGIES
from attribution.influence.settings import FISHER, MAX_FACTOR_ROWS
from attribution.training.recipe import add_member_arguments


def add_score_arguments(parser: argparse.ArgumentParser) -> None:
    """The group of everything that changes the scores."""
    add = parser.add_argument_group("how scores are computed").add_argument
    add(
        "--factor_strategy",
        choices=STRATEGIES,
        default="ekfac",
        help="curvature approximation (ekfac)",
    )
    add(
        "--fisher",
        choices=FISHER,
        default="sampled",
        help="labels of the factors: sampled from the model with --seed, as kronfluence does, or "
        "exact, the mean over all labels, in which no chance is left (sampled)",
    )
    add(
        "--use_half_precision",
        action="store_true",
        help="bfloat16 per-example gradients and products; the model, rotations and sums stay "
        "float32 or above",
    )
    add(
        "--covariance_dtype",
        choices=("float32", "float64"),
        help="type of covariance sums (float64; with --stock float32, where eigenvectors of close "
        "eigenvalues are left to rounding)",
    )
    add(
        "--covariance_products",
        choices=("float32", "float64"),
        default="float64",
        help="type of the products that are added up to covariances in float64: float32 is faster, "
        "most of all on consumer GPUs (float64)",
    )
    add("--query_gradient_rank", type=int, help="keep query gradients at this low rank (full rank)")
    add(
        "--damping_factor",
        default="1e-8",
        help="number added to eigenvalues (1e-8, kronfluence's default), or 'heuristic' for a "
        "tenth of their mean",
    )
    add_member_arguments(
        add, "mean of the scores of so many trainings of other seeds, which train.py makes (1)"
    )
    add(
        "--seed",
        type=int,
        default=0,
        help="of labels sampled for the factors, and of low-rank projections (0)",
    )
    add("--tf32", action="store_true", help="TF32 matrix products on Ampere GPUs and later")
    add(
        "--stock",
        action="store_true",
        help="run kronfluence as it comes, padded to the maximum length",
    )


def add_running_arguments(parser: argparse.ArgumentParser) -> None:
    """The group of what changes only how the work is done."""
    add = parser.add_argument_group("how it runs").add_argument
    add(
        "--query_batch_size",
        type=int,
        default=32,
        help="query rows a batch; lowered where memory is short (32)",
    )
    add(
        "--train_batch_size",
        type=int,
        default=64,
        help="training rows of maximum length a batch: shorter rows make larger batches of as many "
        "tokens; on a CPU at most 4,096 tokens (64)",
    )
    add(
        "--max_factor_rows",
        type=int,
        default=MAX_FACTOR_ROWS,
        help=f"fit factors on the first so many training rows ({MAX_FACTOR_ROWS:,}, as kronfluence "
        "does)",
    )
    add(
        "--data_partitions",
        type=int,
        help="parts into which a phase is divided; of whole groups of batches (a function of rows "
        "and queries)",
    )
    add(
        "--rotate",
        choices=tuple(ROTATE),
        default="auto",
        help="side of the pairwise product that is rotated; auto takes the cheaper (for tests)",
    )
    add(
        "--overwrite",
        action="store_true",
        help="replace stored results that were made from something else",
    )
    add(
        "--profile",
        action="store_true",
        help="print the table of actions with mean, calls, total and percentage",
    )


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
