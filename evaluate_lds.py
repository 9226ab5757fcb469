"""Evaluates whether scores predict retraining: the linear datamodeling score (LDS) of every stored
score.

    python evaluate_lds.py --dataset_name demo            # retrains what is missing, then the table
    python evaluate_lds.py --dataset_name rte --num_masks 100 --num_repeats 5 --alpha 0.5 \\
        --checkpoint_dir ./checkpoints
    python evaluate_lds.py --dataset_name rte --masks_path masks.pt --margins_path margins.pt
    accelerate launch --num_processes 8 evaluate_lds.py --dataset_name rte   # shares retrains

For M random subsets of the training rows (share alpha kept), the Spearman correlation, a query,
between the summed scores of the kept rows and the margin of models retrained on them (mean over R
repeats), reported as the mean over queries (TRAK, arXiv:2303.14186, section 2). Scores come from
analyze.py; start it first. Writes CHECKPOINT_DIR/DATASET_NAME/studies/lds.json, .md, .npz and .png.
"""

import argparse
from pathlib import Path

from attribution.cli import (
    Parser,
    check_numbers,
    end,
    given_arguments,
    refuse_idle,
    run_script,
    tell_start,
)
from attribution.evidence.arguments import (
    MIN_MASKS,
    PLOTTING,
    add_retrain_seed,
    add_start_argument,
    add_study_arguments,
    refuse_others,
)
from attribution.files import Refused
from attribution.show import results
from attribution.training.arguments import add_data_arguments, add_query_arguments
from attribution.training.recipe import add_recipe_arguments, check_recipe
from attribution.training.run import Run

# Arguments without an effect where subsets are external.
OF_SUBSETS = {"num_masks", "num_repeats", "alpha", "mask_seed", "retrain_seed"}
OF_SUBSETS |= {"jobs_per_device", "retrain_queries", "dry_run"}


def parse_args(argv=None) -> argparse.Namespace:
    """Parsed and checked command line. Raises Refused for values that no run could use."""
    parser = Parser(__doc__)
    data = add_data_arguments(parser)
    add_query_arguments(data)
    add_start_argument(data)
    group = parser.group("ground truth")
    add = group.add_argument
    add("--num_masks", type=int, default=100, help="random subsets M (100, as published)")
    add(
        "--num_repeats",
        type=int,
        default=5,
        help="retrains of each subset R, with different seeds (5, as published)",
    )
    add(
        "--alpha",
        type=float,
        default=0.5,
        help="share of the rows that a subset keeps (0.5, as published)",
    )
    add("--mask_seed", type=int, default=0, help="seed that draws the subsets (0)")
    add_retrain_seed(group)
    add("--masks_path", type=Path, help="external masks (M, N), 1 = kept: .npy, .npz or .pt")
    add("--margins_path", type=Path, help="external margins (M, R, Q) or (M, Q): .npy, .npz or .pt")
    add_recipe_arguments(parser, default="that of run.json")
    add_study_arguments(parser, "lds")
    add = parser.group("results").add_argument
    add(
        "--num_bootstrap",
        type=int,
        default=2000,
        help="bootstrap draws behind an interval (2000)",
    )
    add("--all_columns", action="store_true", help="print all columns of the table")
    args = parser.parse_args(argv)
    counts = ("max_queries", "num_repeats", "num_bootstrap", "jobs_per_device", "retrain_queries")
    check_numbers(vars(args), *counts)
    check_recipe(vars(args))
    if args.num_masks < MIN_MASKS:
        raise Refused(f"--num_masks must be at least {MIN_MASKS}, not {args.num_masks}")
    if not 0 < args.alpha < 1:
        raise Refused(f"--alpha must lie between 0 and 1, not {args.alpha}")
    if (args.masks_path is None) != (args.margins_path is None):
        raise Refused("--masks_path and --margins_path belong together; give both")
    given = given_arguments(argv)
    refuse_others(given, {"plot_only": PLOTTING})
    if args.masks_path is not None:
        refuse_idle(given & OF_SUBSETS, "masks_path")
    return args


def main(argv=None) -> None:
    """Retrains what is missing, evaluates, stores and prints. Raises Refused on bad input."""
    args = parse_args(argv)
    folder = args.checkpoint_dir / args.dataset_name
    place = results.place_of("lds", folder, args.results_dir, args.figure_path)
    if args.plot_only:
        from attribution.show.plotting import draw_lds  # it imports matplotlib

        results.redraw(place, draw_lds)
        return
    run = Run.open(args.checkpoint_dir, args.dataset_name, args.dataset_path)
    tell_start(args.dataset_name)
    from attribution.commands.evaluate_lds import evaluate_lds  # torch takes seconds to import

    evaluate_lds(args, run, place)


if __name__ == "__main__":
    end(run_script(main))
