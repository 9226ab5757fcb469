"""The arguments of the study of removals: what is removed, and how often is retrained."""

import argparse

from attribution.evidence.baselines import NAMES
from attribution.evidence.study import add_retrain_seed
from attribution.evidence.verdict import DIRECTIONS, MIN_SEEDS
from attribution.files import Refused

REMOVALS = (20, 40, 60, 80, 100, 120)
ARMS = ["ekfac", "identity", "tfidf", "random"]  # where nobody names any


def add_tuning_arguments(add) -> None:
    """The random subsets of tuning, through `add` of a group: other masks and seeds than those of
    any result.
    """
    add("--num_masks", type=int, default=50, help="masks of the ground truth (50)")
    add("--num_repeats", type=int, default=2, help="its repeats, other seeds (2)")
    add("--mask_seed", type=int, default=1, help="its masks' seed (1)")
    add("--retrain_seed", type=int, default=200, help="its first retrain seed (200)")


def add_removal_arguments(parser: argparse.ArgumentParser) -> None:
    """The group of what is removed, and from what."""
    add = parser.add_argument_group("what is removed").add_argument
    add(
        "--strategies",
        nargs="+",
        default=ARMS,
        metavar="ARM",
        help=f"stored scores, {', '.join(NAMES)}; each is compared with those before it "
        f"({' '.join(ARMS)}; where no identity is stored, without it)",
    )
    add(
        "--num_targets",
        type=int,
        default=100,
        help="targets are sought among the first so many validation rows (100, as published)",
    )
    add("--max_targets", type=int, help="the first so many of the targets that are found (all)")
    add(
        "--removals",
        type=int,
        nargs="+",
        default=list(REMOVALS),
        help="numbers of removed rows, increasing (20 to 120, as published)",
    )
    add(
        "--targets",
        type=int,
        nargs="+",
        metavar="QUERY",
        help="check just these validation rows, right or wrong",
    )
    add(
        "--query_text",
        nargs="+",
        metavar="TEXT",
        help="check this query of your own (analyze.py scores it first)",
    )
    add("--query_label", help="its class, by name or number (the class that the model predicts)")
    add(
        "--direction",
        choices=DIRECTIONS,
        default="helpful",
        help="which rows go (helpful); where harmful ones go, targets are rows that all base seeds "
        "get wrong, and random removes as many rows of each class as the first arm",
    )
    add("--num_random_draws", type=int, default=1, help="draws that the random arm averages (1)")
    add("--random_seed", type=int, default=0, help="of the random arm (0)")


def add_retrain_arguments(parser: argparse.ArgumentParser) -> None:
    """The group of how often is retrained."""
    group = parser.add_argument_group("retrains")
    add = group.add_argument
    add(
        "--num_base_seeds",
        type=int,
        default=5,
        help="seeds that must all classify a target correctly, or all wrongly (5, as published)",
    )
    add(
        "--num_retrain_seeds",
        type=int,
        help="retrains for every removal (3, as published; with --targets or --query_text "
        f"{MIN_SEEDS}, or more)",
    )
    add(
        "--base_seed",
        type=int,
        default=0,
        help="the first base seed; none may be a retrain seed (0)",
    )
    add_retrain_seed(group)
    add(
        "--no_carry_forward",
        dest="carry_forward",
        action="store_false",
        help="retrain every target at every removal (published: a flipped target stays flipped and "
        "is not retrained again)",
    )


def check_verdict_arguments(values: dict) -> bool:
    """Whether single predictions are to be checked; fills in how often is retrained.

    Raises Refused where arguments exclude each other, or where a verdict would rest on too few
    retrains.
    """
    single = values["targets"] is not None or values["query_text"] is not None
    if values["targets"] is not None and values["query_text"] is not None:
        raise Refused("--targets and --query_text exclude each other; check one at a time")
    if values["query_label"] is not None and values["query_text"] is None:
        raise Refused("--query_label goes with --query_text")
    if single and (values["num_retrain_seeds"] or MIN_SEEDS) < MIN_SEEDS:
        raise Refused(
            f"a verdict takes at least {MIN_SEEDS} retrains a removal; raise --num_retrain_seeds"
        )
    values["num_retrain_seeds"] = values["num_retrain_seeds"] or (MIN_SEEDS if single else 3)
    return single
