"""Removes the most helpful training rows of a prediction, retrains, and counts predictions that flip.

    python run_counterfactual.py --dataset_name demo
    python run_counterfactual.py --dataset_name rte --checkpoint_dir ./checkpoints --strategies ekfac diagonal random \\
        --num_targets 100 --removals 20 40 60 80 100 120 --num_base_seeds 5 --num_retrain_seeds 3
    python run_counterfactual.py --dataset_name demo --query_index 3 --show 20     # the rows that would be removed
    accelerate launch --num_processes 8 run_counterfactual.py --dataset_name rte   # retrains are shared out

The subset-removal study of arXiv:2405.12186: targets are validation rows that every base seed classifies
correctly; a target counts as flipped when fewer than half of its retrains classify it correctly, and, unless
--no_carry_forward is given, at every larger removal too. An arm says which rows go: the top of any stored score
(analyze.py makes them), or `random` rows of the target's class, `tfidf`, `tfidf2`, `representation`.
"""

import argparse
import functools
import sys
from pathlib import Path

import numpy as np

from attribution.evidence import baselines
from attribution.evidence.counterfactual import Arm, Removals, base_runs, by_chance, by_score, run_study, summarize
from attribution.evidence.retraining import launched
from attribution.evidence.study import (
    add_retrain_seed,
    add_start_argument,
    add_study_arguments,
    open_study,
    study_arguments,
)
from attribution.files import Refused, check_numbers, run_script
from attribution.influence.names import analyze_command
from attribution.influence.stored import stored_scores
from attribution.show import plotting, results, tables
from attribution.show.reading import show_removed
from attribution.training.fit import choose_device
from attribution.training.recipe import (
    MAX_QUERIES,
    Parser,
    add_data_arguments,
    add_query_arguments,
    add_recipe_arguments,
    check_recipe,
    recipe_of,
)
from attribution.training.run import open_data, open_run
from pipeline import quiet_libraries

REMOVALS = (20, 40, 60, 80, 100, 120)


def parse_args(argv=None) -> argparse.Namespace:
    """The command line, checked. Raises Refused for values that no run could use."""
    parser = Parser(__doc__)
    group = add_data_arguments(parser)
    add_query_arguments(group)
    add_start_argument(group)
    add_removal_arguments(parser)
    add_retrain_arguments(parser)
    add_recipe_arguments(parser, default="that of run.json")
    add = add_study_arguments(parser, "counterfactual").add_argument
    add("--query_index", type=int, help="print the rows that each arm would remove for this query; retrains nothing")
    add("--show", type=int, default=20, help="rows printed with --query_index (20)")
    args = parser.parse_args(argv)
    counts = ("max_queries", "num_targets", "num_random_draws", "num_base_seeds", "num_retrain_seeds")
    check_numbers(vars(args), *counts, "jobs_per_device", "show")
    check_recipe(vars(args))
    if args.removals[0] < 1 or any(a >= b for a, b in zip(args.removals, args.removals[1:], strict=False)):
        raise Refused(f"--removals must be above 0 and increasing, not {' '.join(map(str, args.removals))}")
    if len(set(args.strategies)) < len(args.strategies):
        raise Refused("--strategies names an arm twice")
    plan = removals_of(args)
    if set(plan.base_seeds) & set(plan.retrain_seeds):
        raise Refused("retrain seeds must be others than base seeds; change --retrain_seed")
    return args


def add_removal_arguments(parser: argparse.ArgumentParser) -> None:
    """The group of what is removed, and from what."""
    add = parser.add_argument_group("what is removed").add_argument
    add(
        "--strategies", nargs="+", default=["ekfac", "identity", "tfidf", "random"], metavar="ARM",
        help="stored scores, random, tfidf, tfidf2 or representation; others are compared with the first "
        "(ekfac identity tfidf random)",
    )  # fmt: skip
    add(
        "--num_targets", type=int, default=100,
        help="targets are sought among the first so many validation rows (100, as published)",
    )  # fmt: skip
    add(
        "--removals", type=int, nargs="+", default=list(REMOVALS),
        help="numbers of removed rows, increasing (20 to 120, as published)",
    )  # fmt: skip
    add("--num_random_draws", type=int, default=1, help="draws that the random arm averages (1)")
    add("--random_seed", type=int, default=0, help="of the random arm (0)")


def add_retrain_arguments(parser: argparse.ArgumentParser) -> None:
    """The group of how often is retrained."""
    group = parser.add_argument_group("retrains")
    add = group.add_argument
    add("--num_base_seeds", type=int, default=5, help="seeds that must all get a target right (5, as published)")
    add("--num_retrain_seeds", type=int, default=3, help="retrains for every removal (3, as published)")
    add("--base_seed", type=int, default=0, help="the first base seed; none may be a retrain seed (0)")
    add_retrain_seed(group)
    add(
        "--no_carry_forward", dest="carry_forward", action="store_false",
        help="retrain every target at every removal (published: a flipped target stays flipped and is not "
        "retrained again)",
    )  # fmt: skip


def removals_of(args: argparse.Namespace) -> Removals:
    """What the study needs of the command line."""
    return Removals(
        args.removals, args.num_targets, range(args.base_seed, args.base_seed + args.num_base_seeds),
        range(args.retrain_seed, args.retrain_seed + args.num_retrain_seeds), args.carry_forward,
    )  # fmt: skip


def make_arms(args, folder: Path, run: dict, train, queries) -> dict[str, Arm]:
    """Arm -> function of a query that returns its removal orders, a list of training rows for every draw."""
    scores, stale = stored_scores(folder, run, queries.fingerprint())
    device = choose_device()
    arms: dict[str, Arm] = {}
    for name in args.strategies:
        if name == "random":
            arms[name] = by_chance(train, queries, args.random_seed, args.num_random_draws)
        elif name in baselines.NAMES:
            represent = functools.partial(baselines.represent, folder, device, queries, train)
            values = baselines.baseline_scores(name, queries, train, represent)
            assert values is not None  # they exist for classes
            arms[name] = by_score(values)
        elif name in scores:
            arms[name] = by_score(scores[name])
        else:
            why = stale.get(name, "there are no such scores")
            limit = None if args.max_queries == MAX_QUERIES else args.max_queries
            command = analyze_command(name, args.dataset_name, args.checkpoint_dir, limit)
            raise Refused(f"cannot remove by {name}: {why}; make them with: {command}")
    return arms


def check_sizes(args, train, queries) -> None:
    """Raises Refused where more rows are to be removed than there are (for random: of the smallest class)."""
    most = len(train) - 1  # on nothing there is no training
    if "random" in args.strategies:
        most = min(most, *(int((train.labels == label).sum()) for label in np.unique(queries.labels)))
    if args.removals[-1] > most:
        raise Refused(
            f"--removals {args.removals[-1]} is more than the {most} training rows that can go "
            "(random removes rows of the target's class)"
        )


def main(argv=None) -> None:
    """Retrains what is missing, counts flips, stores and prints. Raises Refused on bad input."""
    quiet_libraries()
    args = parse_args(argv)
    stem = args.results_dir / f"counterfactual_{args.dataset_name}"
    figures = results.figure_paths("counterfactual", args.dataset_name, args.figure_path)
    if args.plot_only:
        results.redraw(stem, figures, plotting.draw_counterfactual)
        return
    folder, run = open_run(args.checkpoint_dir, args.dataset_name)
    plan = removals_of(args)
    if run["seed"] in plan.retrain_seeds:
        raise Refused(f"the scored model was trained with seed {run['seed']}, which --retrain_seed would use again")
    rows = open_data(folder, run, args.dataset_path, max(args.max_queries, MAX_QUERIES))
    train, queries = rows[0], rows[1].first(args.max_queries)
    if train.task.regression:
        raise Refused(f"{args.dataset_name} is a regression task: it has margins, but no prediction that could flip")
    check_sizes(args, train, queries)
    arms = make_arms(args, folder, run, train, queries)
    if (q := args.query_index) is not None:
        show_removed(queries, train, arms, q, args.show)
        return
    recipe = recipe_of(vars(args), args.dataset_name, run["recipe"])
    study = open_study(folder, run, rows, recipe, **study_arguments(vars(args)))
    if not args.dry_run:
        results.check_places(stem, figures)
    base = base_runs(study, plan)
    outcome = run_study(study, plan, arms, base, args.dry_run)
    if outcome is None or launched()[0] > 0:
        return
    settings = {"dataset": args.dataset_name, "strategies": args.strategies, "random_seed": args.random_seed}
    result = settings | {"recipe": recipe} | summarize(study, plan, base, outcome)
    print(tables.counterfactual_text(result))
    results.save(
        result, stem, figures, markdown=tables.counterfactual_markdown(result),
        draw=plotting.draw_counterfactual, arguments=vars(args), device=study.retrain.device, compact=True,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_script(main))
