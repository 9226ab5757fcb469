"""Evaluates whether scores predict retraining: the linear datamodeling score (LDS) of every stored
score.

    python evaluate_lds.py --dataset_name demo            # retrains what is missing, then the table
    python evaluate_lds.py --dataset_name rte --num_masks 100 --num_repeats 5 --alpha 0.5 \\
        --checkpoint_dir ./checkpoints
    python evaluate_lds.py --dataset_name rte --masks_path masks.pt --margins_path margins.pt
    python evaluate_lds.py --dataset_name rte --query_index 79  # a query, its top row, its LDS
    accelerate launch --num_processes 8 evaluate_lds.py --dataset_name rte   # shares retrains

For M random subsets of the training rows (share alpha kept), the Spearman correlation, a query,
between the summed scores of the kept rows and the margin of models retrained on them (mean over R
repeats), reported as the mean over queries (TRAK, arXiv:2303.14186, section 2). Scores come from
analyze.py; start it first. Writes CHECKPOINT_DIR/DATASET_NAME/studies/lds.json, .md, .npz and .png.
"""

import argparse
import sys
from pathlib import Path

from attribution.cli import Parser, check_numbers, given_arguments, refuse_idle, run_script
from attribution.evidence import lds, stats
from attribution.evidence.ground_truth import Subsets, external_truth, own_truth
from attribution.evidence.study import (
    add_retrain_seed,
    add_start_argument,
    add_study_arguments,
    check_plot_only,
    open_study,
)
from attribution.files import Refused
from attribution.show import plotting, results, tables
from attribution.show.listing import show_query_lds
from attribution.training.recipe import add_recipe_arguments, check_recipe, recipe_of
from attribution.training.run import Run, add_data_arguments, add_query_arguments
from pipeline import quiet_libraries

# Arguments without an effect where nothing is retrained, where nothing is written, and where
# subsets are external.
OF_RETRAINING = {"jobs_per_device", "retrain_queries", "dry_run"}
OF_RESULTS = {"results_dir", "figure_path", "num_bootstrap"}
OF_SUBSETS = {"num_masks", "num_repeats", "alpha", "stratify", "mask_seed", "retrain_seed"}


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
    add("--stratify", action="store_true", help="subsets keep the same share of every class")
    add("--mask_seed", type=int, default=0, help="seed that draws the subsets (0)")
    add_retrain_seed(group)
    add("--masks_path", type=Path, help="external masks (M, N), 1 = kept: .npy, .npz or .pt")
    add("--margins_path", type=Path, help="external margins (M, R, Q) or (M, Q): .npy, .npz or .pt")
    add_recipe_arguments(parser, default="that of run.json")
    add_study_arguments(parser, "lds")
    add = parser.group("results").add_argument
    add(
        "--query_index",
        type=int,
        help="show this query, its top influential row and its LDS; retrains nothing",
    )
    add(
        "--num_bootstrap",
        type=int,
        default=2000,
        help="bootstrap draws behind an interval (2000)",
    )
    args = parser.parse_args(argv)
    counts = ("max_queries", "num_repeats", "num_bootstrap", "jobs_per_device", "retrain_queries")
    check_numbers(vars(args), *counts)
    check_recipe(vars(args))
    if args.num_masks < stats.MIN_MASKS:
        raise Refused(f"--num_masks must be at least {stats.MIN_MASKS}, not {args.num_masks}")
    if not 0 < args.alpha < 1:
        raise Refused(f"--alpha must lie between 0 and 1, not {args.alpha}")
    if (args.masks_path is None) != (args.margins_path is None):
        raise Refused("--masks_path and --margins_path belong together; give both")
    given = given_arguments(argv)
    if args.plot_only:
        check_plot_only(given)
    if args.query_index is not None:
        refuse_idle(given & (OF_RETRAINING | OF_RESULTS), "query_index")
    if args.masks_path is not None:
        refuse_idle(given & (OF_RETRAINING | OF_SUBSETS), "masks_path")
    return args


def main(argv=None) -> None:
    """Retrains what is missing, evaluates, stores and prints. Raises Refused on bad input."""
    quiet_libraries()
    args = parse_args(argv)
    folder = args.checkpoint_dir / args.dataset_name
    place = results.place_of("lds", folder, args.results_dir, args.figure_path)
    if args.plot_only:
        results.redraw(place, plotting.draw_lds)
        return
    run = Run.open(args.checkpoint_dir, args.dataset_name, args.dataset_path)
    train, known = run.rows(max(args.first_query + args.max_queries, args.retrain_queries))
    queries = known.window(args.first_query, args.max_queries)
    index = None
    if args.query_index is not None:
        index = queries.place_of(args.query_index, "query_index")
    elif not args.dry_run:
        place.check(run.fingerprints(queries))
    recipe = recipe_of(vars(args), args.dataset_name, run.recipe)
    study = open_study(
        run,
        (train, known),
        recipe,
        max_queries=args.max_queries,
        first_query=args.first_query,
        model_name_or_path=args.model_name_or_path,
        jobs_per_device=args.jobs_per_device,
        retrains=not args.dry_run and args.query_index is None and args.masks_path is None,
    )
    if args.query_index is None:
        lds.announce(run, queries, args.first_query, args.max_queries)
    subsets = Subsets(
        args.num_masks,
        args.num_repeats,
        args.alpha,
        args.mask_seed,
        args.stratify,
        args.retrain_seed,
    )
    external = args.masks_path is not None
    if external:
        truth = external_truth(args.masks_path, args.margins_path, study)
    else:
        truth = own_truth(study, subsets, wait=args.query_index is None, dry_run=args.dry_run)
    if truth is None:
        return
    if index is not None:
        stored = lds.fitting_scores(run, queries, args.first_query)
        scores = {name: found.values() for name, found in stored.items()}
        show_query_lds(queries, train, scores, index, truth.masks, truth.margins)
        return
    result, seeds = lds.evaluate_run(
        run,
        train,
        queries,
        truth,
        first_query=args.first_query,
        num_bootstrap=args.num_bootstrap,
        model_name_or_path=args.model_name_or_path,
    )
    result |= {
        "dataset": args.dataset_name,
        "recipe": recipe,
        "evaluation": run.evaluation,
        "stratified": args.stratify,
        "foreign": external,
        "shared_seeds": [] if external else sorted({*seeds} & {*subsets.retrain_seeds}),
        "retrained_accuracy": truth.accuracy(train.task.num_labels),
        "retrained_pearson": truth.pearson(queries.labels),
    }
    print(tables.lds_text(result))
    results.save(
        result,
        place,
        markdown=tables.lds_markdown(result),
        draw=plotting.draw_lds,
        arguments=vars(args),
        device=study.retrain.device,
        fingerprints=run.fingerprints(queries),
        arrays=truth.arrays(),
    )


if __name__ == "__main__":
    sys.exit(run_script(main))
