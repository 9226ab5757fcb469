"""Removes the most helpful training rows of a prediction, retrains, and counts predictions that
flip.

    python run_counterfactual.py --dataset_name demo
    python run_counterfactual.py --dataset_name rte --checkpoint_dir ./checkpoints \\
        --strategies ekfac diagonal random --num_targets 100 --removals 20 40 60 80 100 120 \\
        --num_base_seeds 5 --num_retrain_seeds 3
    python run_counterfactual.py --dataset_name demo --targets 3 79 --removals 20 60  # verdicts
    python run_counterfactual.py --dataset_name demo --remove_rows 412 --targets 3    # what if
    python run_counterfactual.py --dataset_name demo --smallest_set --targets 3
    accelerate launch --num_processes 8 run_counterfactual.py --dataset_name rte  # shares retrains

The subset-removal study of arXiv:2405.12186: targets are validation rows that every base seed
classifies correctly. A target counts as flipped when fewer than half of its retrains classify it
correctly, and, unless --no_carry_forward is given, at every larger removal too. An arm decides
which rows are removed: the top of any stored score (analyze.py makes them) or of a baseline, or
`random` rows of the target's class; --strategies names them.

A what-if replays the training without rows, or with other labels, in the checkpoints that
analyze.py --factor_strategy replay scored: seconds instead of retrains. --check retrains. Writes
CHECKPOINT_DIR/DATASET_NAME/studies/counterfactual.json, .md and .png.
"""

import argparse

from attribution.cli import (
    Parser,
    check_numbers,
    end,
    given_arguments,
    run_script,
    tell_start,
)
from attribution.evidence.arguments import (
    ARMS,
    BASELINES,
    DIRECTIONS,
    MIN_SEEDS,
    PLOTTING,
    STUDY,
    add_retrain_seed,
    add_start_argument,
    add_study_arguments,
    asked_what_if,
    is_single,
    refuse_others,
)
from attribution.files import Refused
from attribution.show import results
from attribution.training.arguments import add_data_arguments, add_query_arguments
from attribution.training.recipe import RECIPE, add_recipe_arguments, check_recipe
from attribution.training.run import Run

REMOVALS = [20, 40, 60, 80, 100, 120]
# Way to ask -> the arguments that have an effect beside it.
DATA = {"dataset_name", "dataset_path", "checkpoint_dir", "max_queries", "model_name_or_path"}
TARGETS = {"targets", "query_text", "query_label"}
EDITS = DATA | TARGETS | {"remove_rows", "flip_labels"}
RETRAINS = {"num_retrain_seeds", "retrain_seed", "jobs_per_device", "dry_run"}
VERDICTS = DATA | RETRAINS | {"strategies", "direction", "removals", "num_random_draws"}
VERDICTS |= {"random_seed", *RECIPE}
TAKES = {
    "plot_only": PLOTTING | {"direction"},
    "smallest_set": DATA | TARGETS,
    "check": EDITS | RETRAINS | {"retrain_queries"},
    "remove_rows": EDITS,
    "flip_labels": EDITS,
    "targets": VERDICTS | {"retrain_queries"},
    "query_text": VERDICTS | {"query_label"},
}


def parse_args(argv=None) -> argparse.Namespace:
    """Parsed and checked command line. Raises Refused for values that no run could use."""
    parser = Parser(
        __doc__,
        rare=(
            "num_random_draws",
            "random_seed",
            "base_seed",
            "retrain_seed",
            "carry_forward",
            "retrain_queries",
        ),
    )
    data = add_data_arguments(parser)
    add_query_arguments(data, first_query=False)
    add_start_argument(data)
    add_removal_arguments(parser)
    add_what_if_arguments(parser)
    add_retrain_arguments(parser)
    add_recipe_arguments(parser, default="that of run.json")
    add_study_arguments(parser, STUDY)
    args = parser.parse_args(argv)
    counts = ("max_queries", "num_targets", "max_targets", "num_random_draws", "num_base_seeds")
    more = ("num_retrain_seeds", "jobs_per_device", "retrain_queries")
    check_numbers(vars(args), *counts, *more)
    check_recipe(vars(args))
    increasing = all(a < b for a, b in zip(args.removals, args.removals[1:], strict=False))
    if args.removals[0] < 1 or not increasing:
        shown = " ".join(map(str, args.removals))
        raise Refused(f"--removals must be above 0 and increasing, not {shown}")
    if len(set(args.strategies)) < len(args.strategies):
        raise Refused("--strategies names an arm twice")
    if args.direction == "harmful" and args.strategies[0] == "random":
        raise Refused(
            "random removes as many rows of each class as the first arm; name another arm first"
        )
    if args.targets is not None and args.query_text is not None:
        raise Refused("--targets and --query_text exclude each other; check one at a time")
    if args.query_label is not None and args.query_text is None:
        raise Refused("--query_label goes with --query_text")
    check_idle(args, given_arguments(argv))
    single = is_single(args) or args.check
    args.num_retrain_seeds = args.num_retrain_seeds or (MIN_SEEDS if single else 3)
    if single and args.num_retrain_seeds < 2:
        raise Refused("a verdict takes at least 2 retrains a removal; raise --num_retrain_seeds")
    base_seeds = range(args.base_seed, args.base_seed + args.num_base_seeds)
    retrain_seeds = range(args.retrain_seed, args.retrain_seed + args.num_retrain_seeds)
    if not single and {*base_seeds} & {*retrain_seeds}:
        raise Refused("retrain seeds and base seeds must differ; change --retrain_seed")
    return args


def check_idle(args: argparse.Namespace, given: set[str]) -> None:
    """Raises Refused for arguments (names on the command line) that would be ignored."""
    refuse_others(given, TAKES)
    way = asked_what_if(args)
    if args.smallest_set and not is_single(args):
        raise Refused("--smallest_set goes with --targets or --query_text")
    if args.check and way is None:
        raise Refused("--check goes with --remove_rows or --flip_labels")
    if way:
        return
    if is_single(args):
        way = "targets" if args.targets is not None else "query_text"
        if "strategies" in given and len(args.strategies) > 1:
            raise Refused(
                f"--{way} is checked by one score; name one in --strategies, not "
                f"{' '.join(args.strategies)}"
            )
    elif "random" not in args.strategies and (draws := given & {"num_random_draws", "random_seed"}):
        raise Refused(f"--{min(draws)} is of the arm random, which --strategies does not name")


def add_what_if_arguments(parser: Parser) -> None:
    """Adds the group of arguments about what-ifs."""
    add = parser.group("what if").add_argument
    add(
        "--remove_rows",
        nargs="+",
        metavar="ROW",
        help="replay training without these rows: numbers, or a file with one in each line",
    )
    add(
        "--flip_labels",
        nargs="+",
        metavar="ROW",
        help="replay it with other labels: 12 (of two classes), 12=LABEL, or a file of 12,LABEL",
    )
    add(
        "--smallest_set",
        action="store_true",
        help="find the fewest rows whose replayed removal turns the --targets, or the --query_text",
    )
    add("--check", action="store_true", help="retrain too, and print replayed beside measured")


def add_removal_arguments(parser: Parser) -> None:
    """Adds the group of arguments about targets and removed rows."""
    add = parser.group("removals").add_argument
    add(
        "--strategies",
        nargs="+",
        default=ARMS,
        metavar="ARM",
        help=f"stored scores, {', '.join(BASELINES)}; each is compared with those before it "
        f"({' '.join(ARMS)}; where no identity is stored, without it)",
    )
    add(
        "--num_targets",
        type=int,
        default=100,
        help="number of validation rows, from the first on, that may be targets (100, as "
        "published)",
    )
    add("--max_targets", type=int, help="number of targets, the first that are found (all)")
    add(
        "--removals",
        type=int,
        nargs="+",
        default=REMOVALS,
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
        help="check this custom query (analyze.py scores it first), or ask a what-if about it",
    )
    add("--query_label", help="its class, by name or number (the class that the model predicts)")
    add(
        "--direction",
        choices=DIRECTIONS,
        default="helpful",
        help="rows that are removed (helpful); if harmful, targets are rows that all base seeds "
        "get wrong, and random removes as many rows of each class as the first arm",
    )
    add(
        "--num_random_draws",
        type=int,
        default=1,
        help="draws that the random arm averages (1)",
    )
    add("--random_seed", type=int, default=0, help="seed for the random baseline (0)")


def add_retrain_arguments(parser: Parser) -> None:
    """Adds the group of arguments about seeds and retrains."""
    group = parser.group("retrains")
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
        f"{MIN_SEEDS}, fewer give a hint)",
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
        help="retrain every target at every removal (published: a flipped target stays flipped "
        "and is not retrained again)",
    )


def main(argv=None) -> None:
    """Retrains what is missing, counts flips, stores and prints. Raises Refused on bad input."""
    args = parse_args(argv)
    end = "_harmful" if args.direction == "harmful" else ""
    folder = args.checkpoint_dir / args.dataset_name
    place = results.place_of(STUDY, folder, args.results_dir, args.figure_path, end)
    if args.plot_only:
        from attribution.show.plotting import draw_counterfactual  # it imports matplotlib

        results.redraw(place, draw_counterfactual)
        return
    run = Run.open(args.checkpoint_dir, args.dataset_name, args.dataset_path)
    tell_start(args.dataset_name)
    from attribution.commands.run_counterfactual import run_counterfactual  # torch takes seconds

    run_counterfactual(args, run, place)


if __name__ == "__main__":
    end(run_script(main))
