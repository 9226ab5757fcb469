"""Removes the most helpful training rows of a prediction, retrains, and counts predictions that
flip.

    python run_counterfactual.py --dataset_name demo
    python run_counterfactual.py --dataset_name rte --checkpoint_dir ./checkpoints --strategies ekfac diagonal random \\
        --num_targets 100 --removals 20 40 60 80 100 120 --num_base_seeds 5 --num_retrain_seeds 3
    python run_counterfactual.py --dataset_name demo --targets 3 79 --removals 20 60    # a verdict on each of these
    python run_counterfactual.py --dataset_name demo --query_index 3 --show 20     # the rows that would be removed
    accelerate launch --num_processes 8 run_counterfactual.py --dataset_name rte   # retrains are shared out

The subset-removal study of arXiv:2405.12186: targets are validation rows that every base seed
classifies correctly. A target counts as flipped when fewer than half of its retrains classify it
correctly, and, unless --no_carry_forward is given, at every larger removal too. An arm says which
rows go: the top of any stored score (analyze.py makes them) or of a baseline, or `random` rows of
the target's class; --strategies names them.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from attribution.evidence import baselines, counterfactual
from attribution.evidence.arguments import (
    ARMS,
    add_removal_arguments,
    add_retrain_arguments,
    check_verdict_arguments,
)
from attribution.evidence.counterfactual import (
    Arm,
    Removals,
    base_runs,
    by_score,
    run_study,
    summarize,
)
from attribution.evidence.retraining import launched
from attribution.evidence.study import (
    add_start_argument,
    add_study_arguments,
    check_recipe_known,
    models_of,
    open_study,
    study_arguments,
)
from attribution.evidence.verdict import Check, run_check
from attribution.files import Refused, check_numbers, run_script
from attribution.influence.names import remedy
from attribution.influence.stored import seeds_behind, stored_scores
from attribution.show import plotting, results, tables, verdicts
from attribution.show.reading import show_removed
from attribution.show.verdicts import known_slope, own_target, validation_targets
from attribution.training.recipe import (
    Parser,
    add_data_arguments,
    add_query_arguments,
    add_recipe_arguments,
    check_recipe,
    recipe_of,
)
from attribution.training.run import fingerprints_of, open_data, open_run
from pipeline import quiet_libraries


def parse_args(argv=None) -> argparse.Namespace:
    """The command line, checked. Raises Refused for values that no run could use."""
    parser = Parser(__doc__)
    group = add_data_arguments(parser)
    add_query_arguments(group, windows=False)
    add_start_argument(group)
    add_removal_arguments(parser)
    add_retrain_arguments(parser)
    add_recipe_arguments(parser, default="that of run.json")
    add = add_study_arguments(parser, "counterfactual").add_argument
    add(
        "--query_index",
        type=int,
        help="print the rows that each arm would remove for this query; retrains nothing",
    )
    add("--show", type=int, default=20, help="rows printed with --query_index (20)")
    args = parser.parse_args(argv)
    counts = (
        "max_queries",
        "num_targets",
        "max_targets",
        "num_random_draws",
        "num_base_seeds",
        "num_retrain_seeds",
    )
    check_numbers(vars(args), *counts, "jobs_per_device", "show", "retrain_queries")
    check_recipe(vars(args))
    if args.removals[0] < 1 or any(
        a >= b for a, b in zip(args.removals, args.removals[1:], strict=False)
    ):
        raise Refused(
            f"--removals must be above 0 and increasing, not {' '.join(map(str, args.removals))}"
        )
    if len(set(args.strategies)) < len(args.strategies):
        raise Refused("--strategies names an arm twice")
    if args.direction == "harmful" and args.strategies[0] == "random":
        raise Refused(
            "random removes as many rows of each class as the first arm; name another arm first"
        )
    args.single = check_verdict_arguments(vars(args))
    plan = removals_of(args)
    if set(plan.base_seeds) & set(plan.retrain_seeds):
        raise Refused("retrain seeds must be others than base seeds; change --retrain_seed")
    return args


def removals_of(args: argparse.Namespace) -> Removals:
    """What the study needs of the command line."""
    return Removals(
        args.removals,
        args.num_targets,
        range(args.base_seed, args.base_seed + args.num_base_seeds),
        range(args.retrain_seed, args.retrain_seed + args.num_retrain_seeds),
        args.carry_forward,
        args.direction,
        args.max_targets,
    )


def make_arms(args, folder: Path, run: dict, train, queries) -> dict[str, Arm]:
    """Arm -> function of a query that returns its removal orders, a list of training rows for every
    draw.
    """
    scores, stale = stored_scores(folder, run, queries.fingerprint())
    models = models_of(folder, run, train.task, args.model_name_or_path)
    arms: dict[str, Arm] = {}
    draws = args.random_seed, args.num_random_draws
    for name in args.strategies:
        if name == "random" and args.direction == "harmful":
            arms[name] = counterfactual.by_classes(train, arms[args.strategies[0]], *draws)
        elif name == "random":
            arms[name] = counterfactual.by_chance(train, queries, *draws)
        elif name in baselines.NAMES:
            arms[name] = by_score(
                baselines.baseline_scores(name, queries, train, models), args.direction
            )
        elif name in scores:
            arms[name] = by_score(scores[name], args.direction)
        else:
            why = stale.get(name, "there are no such scores")
            where = args.dataset_name, args.checkpoint_dir, args.max_queries
            command = remedy(name, *where, again=name in stale)
            if not arms or args.strategies is not ARMS:  # the first, or one that was asked for
                raise Refused(f"cannot remove by {name}: {why}; {command}")
            print(f"{name} is left out: {why}; {command}", file=sys.stderr)
    return arms


def check_sizes(args, train, queries) -> None:
    """Raises Refused for a regression, and where more rows go than there are (for random: of the
    smallest class).
    """
    if train.task.regression:
        raise Refused(
            f"{args.dataset_name} is a regression task: it has margins, but no prediction that "
            "could flip"
        )
    most = len(train) - 1  # on nothing there is no training
    if "random" in args.strategies and args.direction == "helpful":
        most = min(
            most, *(int((train.labels == label).sum()) for label in np.unique(queries.labels))
        )
    if args.removals[-1] > most:
        raise Refused(
            f"--removals {args.removals[-1]} is more than the {most} training rows that can go "
            "(random removes rows of the target's class)"
        )


def check_predictions(args, folder: Path, run: dict, rows: tuple) -> None:
    """Checks the asked predictions by retraining; stores and prints a verdict on each."""
    name, plan, valid = args.strategies[0], removals_of(args), rows[1].first(args.max_queries)
    check = Check(
        name,
        args.direction,
        args.removals,
        list(plan.retrain_seeds),
        list(plan.base_seeds),
        args.num_random_draws,
        args.random_seed,
    )
    if args.query_text is not None:
        asked = own_target(
            folder, run, name, args.query_text, args.query_label, args.checkpoint_dir
        )
    else:
        asked = validation_targets(
            folder, run, name, valid, args.targets, args.checkpoint_dir, args.max_queries
        )
    recipe = recipe_of(vars(args), args.dataset_name, run["recipe"])
    known = (rows[0], rows[1] if asked.queries is valid else asked.queries)
    study = open_study(folder, run, known, recipe, **study_arguments(vars(args)))
    found = run_check(
        study, asked.targets, check, known_slope(folder, run, name, valid), args.dry_run
    )
    for verdict in (found or []) if launched()[0] == 0 else []:
        path = verdicts.keep(folder, run, verdict, asked.suffix)
        print(f"\n{verdicts.text(verdict)}\n  stored in {path}")


def main(argv=None) -> None:
    """Retrains what is missing, counts flips, stores and prints. Raises Refused on bad input."""
    quiet_libraries()
    args = parse_args(argv)
    name = args.dataset_name + "_harmful" * (args.direction == "harmful")
    stem = args.results_dir / f"counterfactual_{name}"
    figures = results.figure_paths("counterfactual", name, args.figure_path)
    if args.plot_only:
        results.redraw(stem, figures, plotting.draw_counterfactual)
        return
    folder, run = open_run(args.checkpoint_dir, args.dataset_name)
    check_recipe_known(run)
    plan = removals_of(args)
    if shared := sorted({*seeds_behind(run, args.strategies)} & {*plan.retrain_seeds}):
        raise Refused(
            f"a scored model was trained with seed {shared[0]}, which --retrain_seed would use "
            "again"
        )
    rows = open_data(folder, run, args.dataset_path, max(args.max_queries, args.retrain_queries))
    if args.single:
        check_predictions(args, folder, run, rows)
        return
    train, queries = rows[0], rows[1].first(args.max_queries)
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
    if (outcome := run_study(study, plan, arms, base, args.dry_run)) is None or launched()[0] > 0:
        return
    settings = {
        "dataset": args.dataset_name,
        "strategies": list(arms),
        "random_seed": args.random_seed,
    }
    result = settings | {"recipe": recipe} | summarize(study, plan, base, outcome)
    print(tables.counterfactual_text(result))
    results.save(
        result,
        stem,
        figures,
        markdown=tables.counterfactual_markdown(result),
        draw=plotting.draw_counterfactual,
        arguments=vars(args),
        device=study.retrain.device,
        compact=True,
        fingerprints=fingerprints_of(run, queries),
    )


if __name__ == "__main__":
    sys.exit(run_script(main))
