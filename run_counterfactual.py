"""Removes the most helpful training rows of a prediction, retrains, and counts predictions that
flip.

    python run_counterfactual.py --dataset_name demo
    python run_counterfactual.py --dataset_name rte --checkpoint_dir ./checkpoints \\
        --strategies ekfac diagonal random --num_targets 100 --removals 20 40 60 80 100 120 \\
        --num_base_seeds 5 --num_retrain_seeds 3
    python run_counterfactual.py --dataset_name demo --targets 3 79 --removals 20 60  # verdicts
    python run_counterfactual.py --dataset_name demo --query_index 3 --show 20  # rows to remove
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
import sys

import numpy as np

from attribution.cli import Parser, check_numbers, given_arguments, refuse_idle, run_script
from attribution.evidence import baselines, counterfactual, verdict, what_if
from attribution.evidence.counterfactual import Arm, Removals, by_score, run_study
from attribution.evidence.study import (
    add_retrain_seed,
    add_start_argument,
    add_study_arguments,
    check_plot_only,
    check_recipe_known,
    models_of,
    open_study,
)
from attribution.evidence.verdict import DIRECTIONS, MIN_SEEDS, Check
from attribution.files import Refused
from attribution.influence.stored import find_scores, remedy, seeds_of
from attribution.processes import rank_and_size
from attribution.show import plotting, results, tables, verdicts
from attribution.show.listing import show_removed
from attribution.training.recipe import RECIPE, add_recipe_arguments, check_recipe, recipe_of
from attribution.training.run import Run, add_data_arguments, add_query_arguments
from pipeline import quiet_libraries

STUDY = "counterfactual"  # the beginning of the names of its files
REMOVALS = [20, 40, 60, 80, 100, 120]
# Arguments without an effect where single predictions are checked, or rows are only shown.
OF_TARGETS = {"num_targets", "max_targets", "no_carry_forward"}
OF_RESULTS = {"results_dir", "figure_path"}
OF_VERDICTS = {"targets", "query_text", "query_label"}
OF_RETRAINS = {
    "removals",
    "num_random_draws",
    "num_base_seeds",
    "num_retrain_seeds",
    "base_seed",
    "retrain_seed",
    "jobs_per_device",
    "retrain_queries",
    "dry_run",
}
# Arguments that say what a what-if asks for, and those that only its check uses.
OF_WHAT_IF = ("remove_rows", "flip_labels", "smallest_set")
OF_CHECKS = {"num_retrain_seeds", "retrain_seed", "jobs_per_device", "retrain_queries", "dry_run"}
ARMS = ["ekfac", "identity", "tfidf", "random"]  # the default of --strategies


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
    add = parser.group("results").add_argument
    add(
        "--query_index",
        type=int,
        help="print the rows that each arm would remove for this query; retrains nothing",
    )
    add("--show", type=int, default=20, help="rows printed with --query_index (20)")
    args = parser.parse_args(argv)
    counts = ("max_queries", "num_targets", "max_targets", "num_random_draws", "num_base_seeds")
    more = ("num_retrain_seeds", "jobs_per_device", "show", "retrain_queries")
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
    if single and args.num_retrain_seeds < MIN_SEEDS:
        raise Refused(
            f"a verdict takes at least {MIN_SEEDS} retrains a removal; raise --num_retrain_seeds"
        )
    plan = removals_of(args)
    if {*plan.base_seeds} & {*plan.retrain_seeds}:
        raise Refused("retrain seeds and base seeds must differ; change --retrain_seed")
    return args


def check_idle(args: argparse.Namespace, given: set[str]) -> None:
    """Raises Refused for arguments (names on the command line) that would be ignored."""
    recipe = {name for name in given if name.removeprefix("no-") in RECIPE}
    if args.plot_only:
        check_plot_only(given, "direction")
    if way := asked_what_if(args):
        idle = OF_RETRAINS | OF_TARGETS | OF_RESULTS | recipe
        idle |= {"strategies", "direction", "random_seed", "query_text", "query_index", "show"}
        refuse_idle(given & (idle - OF_CHECKS if args.check else idle), way)
        if way == "smallest_set" and args.targets is None:
            raise Refused("--smallest_set goes with --targets")
        if way == "smallest_set" and args.check:
            raise Refused("--smallest_set names the rows; check them by --remove_rows and --check")
        return
    if args.check:
        raise Refused("--check goes with --remove_rows or --flip_labels")
    if args.query_index is not None:
        retrained = OF_TARGETS | OF_VERDICTS | OF_RETRAINS | OF_RESULTS | recipe
        refuse_idle(given & retrained, "query_index")
    elif "show" in given:
        raise Refused("--show belongs to --query_index")
    if is_single(args):
        way = "targets" if args.targets is not None else "query_text"
        known = {"retrain_queries"} if args.targets is None else set()
        refuse_idle(given & (OF_TARGETS | OF_RESULTS | known), way)
        if "strategies" in given and len(args.strategies) > 1:
            raise Refused(
                f"--{way} is checked by one score; name one in --strategies, not "
                f"{' '.join(args.strategies)}"
            )
    elif "random" not in args.strategies and (draws := given & {"num_random_draws", "random_seed"}):
        raise Refused(f"--{min(draws)} is of the arm random, which --strategies does not name")


def is_single(args: argparse.Namespace) -> bool:
    """Whether single predictions are checked."""
    return args.targets is not None or args.query_text is not None


def asked_what_if(args: argparse.Namespace) -> str | None:
    """Name of the argument by which a what-if is asked; None without one.

    Raises Refused for --smallest_set together with others.
    """
    asked = [name for name in OF_WHAT_IF if getattr(args, name)]
    if "smallest_set" in asked and len(asked) > 1:
        raise Refused(f"--smallest_set and --{asked[0]} exclude each other; ask one at a time")
    return asked[0] if asked else None


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
        help="find the fewest rows whose replayed removal turns the --targets",
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
        help=f"stored scores, {', '.join(baselines.NAMES)}; each is compared with those before it "
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
        help="check this custom query (analyze.py scores it first)",
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
        help="retrain every target at every removal (published: a flipped target stays flipped "
        "and is not retrained again)",
    )


def removals_of(args: argparse.Namespace) -> Removals:
    """Removals and seeds of the study."""
    return Removals(
        counts=args.removals,
        num_targets=args.num_targets,
        base_seeds=range(args.base_seed, args.base_seed + args.num_base_seeds),
        retrain_seeds=range(args.retrain_seed, args.retrain_seed + args.num_retrain_seeds),
        carry_forward=args.carry_forward,
        direction=args.direction,
        max_targets=args.max_targets,
    )


def make_arms(args, run: Run, train, queries, found: dict) -> dict[str, Arm]:
    """Arms by name: functions of a query that return training rows in removal order, by draw.

    found: stored scores.
    """
    models = models_of(run, args.model_name_or_path)
    arms: dict[str, Arm] = {}
    draws = args.random_seed, args.num_random_draws
    for name in args.strategies:
        if name == "random" and args.direction == "harmful":
            arms[name] = counterfactual.by_classes(train, arms[args.strategies[0]], *draws)
        elif name == "random":
            arms[name] = counterfactual.by_chance(train, queries, *draws)
        elif name in baselines.NAMES:
            scores = baselines.baseline_scores(name, queries, train, models)
            arms[name] = by_score(scores, args.direction)
        elif (why := why_unusable(run, name, found, args.max_queries)) is None:
            arms[name] = by_score(found[name].values(), args.direction)
        elif arms and args.strategies is ARMS:
            print(f"{name} is left out: {why}", file=sys.stderr)
        else:  # the first arm, or one that was named
            raise Refused(f"cannot remove by {name}: {why}")
    return arms


def why_unusable(run: Run, name: str, found: dict, max_queries: int) -> str | None:
    """Reason, and remedy, why there are no usable scores of this name; None if there are.

    found: of `find_scores`.
    """
    why = found[name].stale if name in found else "there are no such scores"
    return why and f"{why}; {remedy(run, name, found, max_queries)}"


def check_sizes(args, train, queries) -> None:
    """Raises Refused for a regression, and if more rows are removed than there are (for random: of
    the smallest class).
    """
    if train.task.regression:
        raise Refused(
            f"{args.dataset_name} is a regression task: it has margins, but no prediction that "
            "could flip"
        )
    most = len(train) - 1  # at least one row is left to train on
    if "random" in args.strategies and args.direction == "helpful":
        sizes = [int((train.labels == label).sum()) for label in np.unique(queries.labels)]
        most = min(most, *sizes)
    if args.query_index is None and args.removals[-1] > most:
        raise Refused(
            f"--removals {args.removals[-1]} is more than the {most} training rows that can go "
            "(random removes rows of the target's class)"
        )


def open_study_of(args, run: Run, rows: tuple):
    """The run opened for retraining. rows: training rows, and queries that retrains predict."""
    return open_study(
        run,
        rows,
        recipe_of(vars(args), args.dataset_name, run.recipe),
        max_queries=args.max_queries,
        model_name_or_path=args.model_name_or_path,
        jobs_per_device=args.jobs_per_device,
        retrains=not args.dry_run and args.query_index is None,
    )


def check_predictions(args, run: Run, train, valid, found: dict) -> None:
    """Checks single predictions by retraining; stores and prints a verdict on each.

    found: stored scores.
    """
    name = args.strategies[0]
    check = Check(name, removals_of(args), args.num_random_draws, args.random_seed)
    queries = valid.first(args.max_queries)
    known = valid
    suffix = ""
    replays = what_if.stored_replay(run, train, queries, found)
    if args.query_text is not None:
        questions, target = verdict.custom_target(run, name, args.query_text, args.query_label)
        known = questions.data
        suffix = questions.suffix
        replays = replays and replays.of_questions(questions)
        targets = [target]
    elif why := why_unusable(run, name, found, args.max_queries):
        raise Refused(f"cannot check by {name}: {why}")
    else:
        targets = verdict.validation_targets(queries, found[name].values(), args.targets)
    study = open_study_of(args, run, (train, known))
    made = verdict.run_check(study, targets, check, replays, args.dry_run)
    if made is None or rank_and_size()[0] > 0:
        return
    for one in made:
        path = verdict.save_verdict(run, one, suffix)
        print(f"\n{verdicts.text(one)}\n  stored in {path}")


def answer_what_if(args, run: Run, train, valid, found: dict) -> None:
    """Replays a change of the training rows, and with --check retrains; prints both.

    found: stored scores.
    """
    queries = valid.first(args.max_queries)
    places = [queries.place_of(number, "targets") for number in args.targets or []]
    edit = what_if.read_edit(train, args.remove_rows, args.flip_labels)
    influence = what_if.stored_replay(run, train, queries, found)
    if influence is None:
        raise what_if.no_replay(run, found, args.max_queries)
    print(f"replaying in the checkpoints of {influence.name}")
    if args.smallest_set:
        scores = found[influence.name].values()
        for place in places:
            rows = what_if.smallest_set(influence, place, scores[place])
            print(f"\n{verdicts.smallest_text(queries, train, place, rows)}")
        return
    answers = {"replayed": what_if.what_if(influence, edit)}
    if args.check:
        check_recipe_known(run)
        study = open_study_of(args, run, (train, valid))
        seeds = list(removals_of(args).retrain_seeds)
        measured = what_if.retrained(study, edit, seeds, args.dry_run)
        if measured is not None:
            answers["measured"] = measured
    if rank_and_size()[0] == 0:
        print(f"\n{verdicts.what_if_text(edit, queries, places, answers)}")


def main(argv=None) -> None:
    """Retrains what is missing, counts flips, stores and prints. Raises Refused on bad input."""
    quiet_libraries()
    args = parse_args(argv)
    end = "_harmful" if args.direction == "harmful" else ""
    folder = args.checkpoint_dir / args.dataset_name
    place = results.place_of(STUDY, folder, args.results_dir, args.figure_path, end)
    if args.plot_only:
        results.redraw(place, plotting.draw_counterfactual)
        return
    run = Run.open(args.checkpoint_dir, args.dataset_name, args.dataset_path)
    asked = asked_what_if(args)
    if asked is None:
        check_recipe_known(run)
    plan = removals_of(args)
    train, valid = run.rows(max(args.max_queries, args.retrain_queries))
    queries = valid.first(args.max_queries)
    index = None
    if args.query_index is not None:
        index = queries.place_of(args.query_index, "query_index")
    found = find_scores(run, queries.fingerprint())
    specs = [found[name].spec for name in args.strategies if name in found]
    if args.check:
        specs = [one.spec for one in found.values() if one.spec.factor_strategy == "replay"]
    shared = sorted({*seeds_of(run, specs)} & {*plan.retrain_seeds})
    if shared and index is None:
        raise Refused(
            f"a scored model was trained with seed {shared[0]}, which --retrain_seed would use "
            "again"
        )
    if asked:
        answer_what_if(args, run, train, valid, found)
        return
    if is_single(args):
        check_predictions(args, run, train, valid, found)
        return
    if index is None and not args.dry_run:
        place.check(run.fingerprints(queries))
    check_sizes(args, train, queries)
    arms = make_arms(args, run, train, queries, found)
    if index is not None:
        show_removed(queries, train, arms, index, args.show)
        return
    study = open_study_of(args, run, (train, valid))
    result = run_study(study, plan, arms, args.dry_run)
    if result is None or rank_and_size()[0] > 0:
        return
    result |= {
        "dataset": args.dataset_name,
        "strategies": list(arms),
        "random_seed": args.random_seed,
        "recipe": study.retrain.recipe,
    }
    print(tables.counterfactual_text(result))
    results.save(
        result,
        place,
        markdown=tables.counterfactual_markdown(result),
        draw=plotting.draw_counterfactual,
        arguments=vars(args),
        device=study.retrain.device,
        fingerprints=run.fingerprints(queries),
        compact=True,
    )


if __name__ == "__main__":
    sys.exit(run_script(main))
