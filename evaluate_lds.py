"""Does a score predict what retraining does? The linear datamodeling score (LDS) of every stored
score.

    python evaluate_lds.py --dataset_name demo                 # retrains what is missing, then the table
    python evaluate_lds.py --dataset_name rte --num_masks 100 --num_repeats 5 --alpha 0.5 --checkpoint_dir ./checkpoints
    python evaluate_lds.py --dataset_name rte --masks_path masks.pt --margins_path margins.pt    # truth of others
    python evaluate_lds.py --dataset_name rte --query_index 79       # query, top influential row, its LDS
    python evaluate_lds.py --dataset_name demo --correct ekfac       # scores corrected by the retrains
    accelerate launch --num_processes 8 evaluate_lds.py --dataset_name rte    # retrains are shared out

For M random subsets of the training rows (share alpha kept), the Spearman correlation, a query,
between the summed scores of the kept rows and the margin of models retrained on them (mean over R
repeats), reported as the mean over queries (TRAK, arXiv:2303.14186, section 2). Scores come from
analyze.py; start it first.
"""

import argparse
import sys
from pathlib import Path

from attribution.evidence import correction, evaluated, stats
from attribution.evidence.ground_truth import GroundTruth, Subsets, foreign_truth, own_truth
from attribution.evidence.study import (
    add_retrain_seed,
    add_start_argument,
    add_study_arguments,
    open_study,
    study_arguments,
)
from attribution.files import Refused, check_numbers, run_script
from attribution.show import lds_tables, plotting, results
from attribution.show.reading import show_query_lds
from attribution.training.recipe import (
    Parser,
    add_data_arguments,
    add_query_arguments,
    add_recipe_arguments,
    check_recipe,
    check_window,
    recipe_of,
)
from attribution.training.run import fingerprints_of, open_data, open_run
from pipeline import quiet_libraries


def parse_args(argv=None) -> argparse.Namespace:
    """The command line, checked. Raises Refused for values that no run could use."""
    parser = Parser(__doc__)
    group = add_data_arguments(parser)
    add_query_arguments(group)
    add_start_argument(group)
    add_score_arguments(parser)
    add_truth_arguments(parser)
    add_recipe_arguments(parser, default="that of run.json")
    add = add_study_arguments(parser, "lds").add_argument
    add(
        "--query_index",
        type=int,
        help="show this query, its top influential row and its LDS; retrains nothing",
    )
    add("--num_bootstrap", type=int, default=2000, help="bootstrap draws behind an interval (2000)")
    args = parser.parse_args(argv)
    check_numbers(
        vars(args),
        "max_queries",
        "num_repeats",
        "num_bootstrap",
        "jobs_per_device",
        "retrain_queries",
    )
    check_window(vars(args))
    check_recipe(vars(args))
    if args.num_masks < stats.MIN_MASKS:
        raise Refused(f"--num_masks must be at least {stats.MIN_MASKS}, not {args.num_masks}")
    if not 0 < args.alpha < 1:
        raise Refused(f"--alpha must lie between 0 and 1, not {args.alpha}")
    if args.correct and args.masks_path is None:
        correction.check_masks(args.num_masks)
    if (args.masks_path is None) != (args.margins_path is None):
        raise Refused("--masks_path and --margins_path belong together; give both")
    return args


def add_score_arguments(parser: argparse.ArgumentParser) -> None:
    """The group of what is evaluated beside the stored scores."""
    add = parser.add_argument_group("scores").add_argument
    add(
        "--combine",
        nargs="+",
        action="append",
        default=[],
        metavar="SCORE",
        help="also evaluate the mean of these scores; may be given again",
    )
    add(
        "--combine_by",
        choices=("zscore", "rank"),
        default="zscore",
        help="what makes a query's scores comparable before the mean (zscore)",
    )
    add(
        "--correct",
        nargs="+",
        default=[],
        metavar="SCORE",
        help="also correct these stored scores by the retrains, judge that on masks held out, "
        "store SCORE_corrected",
    )
    add(
        "--ensemble",
        nargs="+",
        type=Path,
        default=[],
        metavar="DIR",
        help="other checkpoint folders, same data and recipe, other seeds: also evaluate the mean "
        "of all scores",
    )


def add_truth_arguments(parser: argparse.ArgumentParser) -> None:
    """The group of what the ground truth is."""
    group = parser.add_argument_group("ground truth")
    add = group.add_argument
    add("--num_masks", type=int, default=100, help="random subsets M (100, as published)")
    add(
        "--num_repeats",
        type=int,
        default=5,
        help="retrains of each subset R, other seeds (5, as published)",
    )
    add(
        "--alpha",
        type=float,
        default=0.5,
        help="share of the rows that a subset keeps (0.5, as published)",
    )
    add("--stratify", action="store_true", help="subsets keep the same share of every class")
    add("--mask_seed", type=int, default=0, help="of the subsets (0)")
    add_retrain_seed(group)
    add("--masks_path", type=Path, help="foreign subsets (M, N), 1 = kept: .npy, .npz or .pt")
    add("--margins_path", type=Path, help="foreign margins (M, R, Q) or (M, Q): .npy, .npz or .pt")


def subsets_of(args: argparse.Namespace) -> Subsets:
    """What the ground truth needs of the command line."""
    return Subsets(
        args.num_masks,
        args.num_repeats,
        args.alpha,
        args.mask_seed,
        args.stratify,
        args.retrain_seed,
    )


def main(argv=None) -> None:
    """Retrains what is missing, evaluates, stores and prints. Raises Refused on bad input."""
    quiet_libraries()
    args = parse_args(argv)
    stem = args.results_dir / f"lds_{args.dataset_name}"
    figures = results.figure_paths("lds", args.dataset_name, args.figure_path)
    if args.plot_only:
        results.redraw(stem, figures, plotting.draw_lds)
        return
    folder, run = open_run(args.checkpoint_dir, args.dataset_name)
    rows = open_data(
        folder,
        run,
        args.dataset_path,
        max(args.first_query + args.max_queries, args.retrain_queries),
    )
    train, queries = rows[0], rows[1].window(args.first_query, args.max_queries)
    recipe = recipe_of(vars(args), args.dataset_name, run["recipe"])
    study = open_study(folder, run, rows, recipe, **study_arguments(vars(args)))
    subsets = subsets_of(args)
    if args.query_index is None:
        evaluated.announce(folder, run, queries, vars(args))
        if not args.dry_run:
            results.check_places(stem, figures)
    if args.masks_path:
        truth: GroundTruth | None = foreign_truth(args.masks_path, args.margins_path, study)
    else:
        truth = own_truth(study, subsets, wait=args.query_index is None, dry_run=args.dry_run)
    if truth is None:
        return
    if args.query_index is not None:
        stored = evaluated.open_scores(folder, run, queries, args.first_query)
        return show_query_lds(queries, train, stored, args.query_index, truth.masks, truth.margins)
    found, seeds = evaluated.evaluate(vars(args), folder, run, (train, queries), truth)
    result = found | {"recipe": recipe, "evaluation": run["evaluation"]}
    result |= {
        "dataset": args.dataset_name,
        "stratified": args.stratify,
        "foreign": args.masks_path is not None,
    }
    result["shared_seeds"] = (
        [] if args.masks_path else sorted(set(seeds) & set(subsets.retrain_seeds))
    )
    accuracy, pearson = truth.accuracy(train.task.num_labels), truth.pearson(queries.labels)
    result |= {"retrained_accuracy": accuracy, "retrained_pearson": pearson}
    print(lds_tables.lds_text(result))
    results.save(
        result,
        stem,
        figures,
        markdown=lds_tables.lds_markdown(result),
        draw=plotting.draw_lds,
        arguments=vars(args),
        device=study.retrain.device,
        fingerprints=fingerprints_of(run, queries),
        arrays=truth.arrays(),
    )


if __name__ == "__main__":
    sys.exit(run_script(main))
