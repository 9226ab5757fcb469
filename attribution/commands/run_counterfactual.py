"""Outline of run_counterfactual.py: the study of removals, verdicts, what-ifs."""

import argparse
import shlex
import sys

import numpy as np

from attribution.evidence import baselines, counterfactual, verdict, what_if
from attribution.evidence.arguments import ARMS, BASELINES, asked_what_if, is_single
from attribution.evidence.counterfactual import Arm, Removals, by_score, run_study
from attribution.evidence.kept_verdicts import save_verdict
from attribution.evidence.study import check_recipe_known, models_of, open_study
from attribution.evidence.verdict import Check
from attribution.files import Refused, printable
from attribution.influence.stored import find_scores, remedy, seeds_of
from attribution.processes import rank_and_size
from attribution.show import plotting, results, tables, verdicts
from attribution.show.asking import scored_rows
from attribution.show.listing import headline
from attribution.show.results import Place
from attribution.show.scored import counterfactual_command
from attribution.show.what_if import doubt_text, smallest_text, what_if_text
from attribution.training.arguments import custom_flags
from attribution.training.queries import ask
from attribution.training.recipe import recipe_of
from attribution.training.run import Run
from pipeline import quiet_libraries


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
        elif name in BASELINES:
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


def refuse_regression(args, train) -> None:
    """Raises Refused for a regression, whose predictions do not turn."""
    if train.task.regression:
        raise Refused(
            f"{args.dataset_name} is a regression task: it has margins, but no prediction that "
            "could flip"
        )


def check_sizes(args, train, queries) -> None:
    """Raises Refused for a regression, and if more rows are removed than there are (for random: of
    the smallest class).
    """
    refuse_regression(args, train)
    most = len(train) - 1  # at least one row is left to train on
    if "random" in args.strategies and args.direction == "helpful":
        sizes = [int((train.labels == label).sum()) for label in np.unique(queries.labels)]
        most = min(most, *sizes)
    if args.removals[-1] > most:
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
        retrains=not args.dry_run,
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
        path = save_verdict(run, one, suffix)
        print(f"\n{verdicts.text(one)}\n  stored in {path}")


def answer_what_if(args, run: Run, train, valid, found: dict) -> None:
    """Replays a change of the training rows, and with --check retrains; prints both.

    found: stored scores.
    """
    queries = valid.first(args.max_queries)
    numbers = args.targets or []
    targets = {queries.place_of(number, "targets"): f"--targets {number}" for number in numbers}
    edit = what_if.read_edit(train, args.remove_rows, args.flip_labels)
    influence = what_if.stored_replay(run, train, queries, found)
    if influence is None:
        raise what_if.no_replay(run, found, args.max_queries)
    print(f"replaying in the checkpoints of {influence.name}")
    likeness = (influence.scores.record("pairwise") or {}).get("likeness")
    doubt = doubt_text(run, args.max_queries, len(influence.analyses), likeness)
    known = valid
    custom = args.query_text is not None
    if custom:
        questions = ask(run, [args.query_text], [args.query_label])
        influence = influence.of_questions(questions)
        queries = known = questions.data
        targets = {0: custom_flags(args.query_text, args.query_label)}
    if args.smallest_set:
        refuse_regression(args, train)
        scores = influence.compute("pairwise")
        assert scores is not None  # a what-if is computed by each process alone
        logits = questions.logits if custom else scored_rows(influence, scores).logits
        said = logits.argmax(-1)
        command = counterfactual_command(run, args.max_queries)
        for flag in ("dataset_path", "model_name_or_path"):
            if (value := getattr(args, flag)) is not None:
                command += f" --{flag} {shlex.quote(value)}"
        for place, flags in targets.items():
            right = bool(said[place] == queries.labels[place])
            smallest = what_if.smallest_set(influence, place, scores[place], right)
            title = headline(queries, place, custom)
            asked = f"{command} {flags}" if run.recipe else None
            label = printable(queries.label_name(place))
            print(f"\n{smallest_text(title, label, train, smallest, asked, right)}")
        if doubt:
            print(doubt)
        return
    answers = {"replayed": what_if.what_if(influence, edit)}
    if args.check:
        check_recipe_known(run)
        study = open_study_of(args, run, (train, known))
        seeds = list(removals_of(args).retrain_seeds)
        measured = what_if.retrained(study, edit, seeds, args.dry_run)
        if measured is not None:
            answers["measured"] = measured
    if rank_and_size()[0] == 0:
        print(f"\n{what_if_text(edit, train, queries, list(targets), answers, custom)}")
        if doubt:
            print(doubt)


def run_counterfactual(args: argparse.Namespace, run: Run, place: Place) -> None:
    """Retrains what is missing, counts flips, stores and prints. Raises Refused on bad input."""
    quiet_libraries()
    run.tell_doubts()
    asked = asked_what_if(args)
    if asked is None:
        check_recipe_known(run)
    plan = removals_of(args)
    train, valid = run.rows(max(args.max_queries, args.retrain_queries))
    queries = valid.first(args.max_queries)
    found = find_scores(run, queries.fingerprint())
    specs = [found[name].spec for name in args.strategies if name in found]
    if args.check:
        specs = [one.spec for one in found.values() if one.spec.factor_strategy == "replay"]
    shared = sorted({*seeds_of(run, specs)} & {*plan.retrain_seeds})
    if shared:
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
    place.check(run.fingerprints(queries), args.dry_run)
    check_sizes(args, train, queries)
    arms = make_arms(args, run, train, queries, found)
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
