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
import sys
from pathlib import Path

import numpy as np

from analyze import MAX_QUERIES, open_data, open_run
from attribution import baselines, counterfactual, plotting, report, tables
from attribution.reading import describe, stored_scores
from attribution.retraining import RETRAIN_SEED, Job, Store, announce, default_workers, launched, run_jobs
from attribution.store import Refused, check_positive, run_script
from pipeline import quiet_libraries
from train import Retrainer, add_recipe_arguments, check_recipe, choose_device, recipe_of, represent

REMOVALS = (20, 40, 60, 80, 100, 120)


def parse_args(argv=None) -> argparse.Namespace:
    """The command line, checked. Raises Refused for values that no run could use."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    # What is removed, and from what.
    add("--dataset_name", required=True, help="the task that train.py and analyze.py were run for")
    add("--dataset_path", help="folder or hub id of the data set (as in training)")
    add("--checkpoint_dir", type=Path, default=Path("checkpoints"), help="where runs live, one folder a data set")
    add("--max_queries", type=int, default=MAX_QUERIES, help=f"as in analyze.py: the first so many validation rows ({MAX_QUERIES})")
    add("--strategies", nargs="+", default=["ekfac", "identity", "tfidf", "random"], metavar="ARM", help="stored scores, random, tfidf, tfidf2 or representation; others are compared with the first (ekfac identity tfidf random)")
    add("--num_targets", type=int, default=100, help="targets are sought among the first so many validation rows (100, as published)")
    add("--removals", type=int, nargs="+", default=list(REMOVALS), help="numbers of removed rows, increasing (20 to 120, as published)")
    add("--num_random_draws", type=int, default=1, help="draws that the random arm averages (1)")
    add("--random_seed", type=int, default=0, help="of the random arm (0)")
    # Retrains.
    add("--num_base_seeds", type=int, default=5, help="seeds that must all classify a target correctly (5, as published)")
    add("--num_retrain_seeds", type=int, default=3, help="retrains for every removal (3, as published)")
    add("--base_seed", type=int, default=0, help="the first base seed (0)")
    add("--retrain_seed", type=int, default=RETRAIN_SEED, help=f"the first retrain seed; none may be a base seed or that of the scored model ({RETRAIN_SEED})")
    add("--no_carry_forward", dest="carry_forward", action="store_false", help="retrain every target at every removal (published: a flipped target stays flipped and is not retrained again)")
    # How it runs.
    add("--jobs_per_device", type=int, help="retrains at the same time: a GPU's processes (1), or on a CPU processes of one thread each (one a core)")
    add("--dry_run", action="store_true", help="say how many retrains are missing and how long they may take, then stop")
    # What is shown.
    add("--query_index", type=int, help="print the rows that each arm would remove for this query; retrains nothing")
    add("--show", type=int, default=20, help="rows printed with --query_index (20)")
    add("--results_dir", type=Path, default=Path("results"), help="counterfactual_DATASET_NAME.json and .md go here (results)")
    add("--figure_path", type=Path, default=Path("figure/counterfactual.png"), help="where the figure goes (figure/counterfactual.png)")
    add("--plot_only", action="store_true", help="draw the figure again from the JSON")
    add_recipe_arguments(parser, default="that of run.json")
    args = parser.parse_args(argv)
    check_positive(args, "max_queries", "num_targets", "num_random_draws", "num_base_seeds", "num_retrain_seeds", "jobs_per_device", "show")
    check_recipe(args)
    if args.removals[0] < 1 or any(a >= b for a, b in zip(args.removals, args.removals[1:], strict=False)):
        raise Refused(f"--removals must be above 0 and increasing, not {' '.join(map(str, args.removals))}")
    if len(set(args.strategies)) < len(args.strategies):
        raise Refused("--strategies names an arm twice")
    if set(base_seeds(args)) & set(retrain_seeds(args)):
        raise Refused("retrain seeds must be others than base seeds; change --retrain_seed")
    return args


def base_seeds(args) -> range:
    return range(args.base_seed, args.base_seed + args.num_base_seeds)


def retrain_seeds(args) -> range:
    return range(args.retrain_seed, args.retrain_seed + args.num_retrain_seeds)


# --- arms ----------------------------------------------------------------------------------------------


def make_arms(args, folder: Path, run: dict, train, queries) -> dict:
    """Arm -> function of a query that returns its removal orders, a list of training rows for every draw."""
    scores, stale = stored_scores(folder, run, queries.fingerprint())

    def by_score(values: np.ndarray):
        return lambda q: [counterfactual.most_helpful(values[q])]

    def by_chance(q: int) -> list[np.ndarray]:
        rows = np.flatnonzero(train.labels == queries.labels[q])
        return [counterfactual.shuffled(rows, args.random_seed, q, draw) for draw in range(args.num_random_draws)]

    arms = {}
    for name in args.strategies:
        if name == "random":
            arms[name] = by_chance
        elif name in baselines.NAMES:
            values = baselines.baseline_scores(name, queries, train, lambda: represent(folder, choose_device(), queries, train))
            arms[name] = by_score(values)
        elif name in scores:
            arms[name] = by_score(scores[name])
        else:
            why = stale.get(name, "there are no such scores")
            raise Refused(f"cannot remove by {name}: {why}; make them with: {analyze_command(args, name)}")
    return arms


def analyze_command(args, name: str) -> str:
    """The command that stores scores under this name."""
    strategy, *parts = name.replace("_rank", "_query_gradient_rank ").replace("_damping", "_damping_factor ").split("_")
    flags = "_".join(parts).replace("_query", " --query").replace("_damping", " --damping")
    flags = f" --{flags}".replace("--half", "--use_half_precision") if flags else ""
    limit = "" if args.max_queries == MAX_QUERIES else f" --max_queries {args.max_queries}"
    where = f"--dataset_name {args.dataset_name} --checkpoint_dir {args.checkpoint_dir}{limit}"
    return f"python analyze.py {where} --factor_strategy {strategy}{flags}"


def check_sizes(args, train, queries) -> None:
    """Raises Refused where more rows are to be removed than there are (for random: of the smallest class)."""
    most = len(train) - 1
    if "random" in args.strategies:
        most = min(int((train.labels == label).sum()) for label in np.unique(queries.labels))
    if args.removals[-1] > most:
        raise Refused(f"--removals {args.removals[-1]} is more than the {most} training rows that can go (random removes rows of the target's class)")


def show_removed(args, arms: dict, train, queries) -> None:
    """Prints the rows that each arm would remove for one query, in order."""
    q = args.query_index
    if not 0 <= q < len(queries):
        raise Refused(f"--query_index must be from 0 to {len(queries) - 1}, not {q}")
    print(f"query {q} [{queries.label_name(q)}]: {queries.text(q)}")
    for name, arm in arms.items():
        print(f"  {name} removes, in this order:")
        for row in arm(q)[0][: args.show]:
            print(describe(train, int(row)))


# --- the study -----------------------------------------------------------------------------------------


def base_runs(args, store: Store, retrain: Retrainer, workers: int) -> np.ndarray:
    """Margins (base seeds, rows sought for targets) of models trained on everything."""
    everything = np.arange(len(retrain.train))
    jobs = [Job(everything, seed) for seed in base_seeds(args)]
    return run_jobs(store, jobs, retrain, workers, "base runs")[:, : args.num_targets]


def study(args, arms: dict, targets: np.ndarray, store: Store, retrain: Retrainer, workers: int) -> dict | None:
    """Margins of every target: `base` (targets, seeds) with nothing removed, and arm -> (targets, draws, removals, seeds).

    NaN where a flipped target was carried forward. None where --dry_run was given.
    """
    everything, seeds = np.arange(len(retrain.train)), list(retrain_seeds(args))
    orders = {name: [arm(int(q)) for q in targets] for name, arm in arms.items()}
    plan = counterfactual.Plan(orders, list(args.removals), everything, seeds)
    jobs = [Job(everything, seed) for seed in seeds]
    if not announce(store, jobs + plan.all_jobs(), retrain, workers, args.dry_run):
        return None
    base = run_jobs(store, jobs, retrain, workers, "nothing removed")[:, targets].T
    for level, count in enumerate(args.removals):
        wanted = plan.jobs(level, args.carry_forward)
        if launched()[0] == 0:
            spared = plan.spared(level, args.carry_forward)
            print(f"removing {count}: {len(wanted) * len(seeds):,} retrains, {spared:,} spared by carry-forward")
        jobs = [job for places in wanted.values() for job in places]
        margins = run_jobs(store, jobs, retrain, workers, f"{count} removed").reshape(len(wanted), len(seeds), -1)
        for place, values in zip(wanted, margins, strict=True):
            plan.record(place, level, values[:, targets[place[1]]])
    return {"base": base, "arms": plan.margins, "orders": orders}


def summarize(args, train, queries, base: np.ndarray, targets: np.ndarray, outcome: dict) -> dict:
    """Everything that is reported: settings, every margin, every removed row, shares and intervals."""
    most = args.removals[-1]
    return {
        "dataset": args.dataset_name, "strategies": args.strategies, "removals": [0, *args.removals], "carry_forward": args.carry_forward,
        "targets": targets.tolist(), "sought": min(args.num_targets, len(queries)), "base_accuracy": float((base > 0).mean()),
        "base_run_margins": base.tolist(),
        "rows": len(train), "base_seeds": list(base_seeds(args)), "retrain_seeds": list(retrain_seeds(args)),
        "random_seed": args.random_seed, "base_margins": outcome["base"].tolist(),
        "margins": {name: counterfactual.listed(values) for name, values in outcome["arms"].items()},
        "removed": {name: [[order[:most].tolist() for order in draws] for draws in rows] for name, rows in outcome["orders"].items()},
        "curves": counterfactual.curves(outcome["base"], outcome["arms"]),
    }  # fmt: skip


def main(argv=None) -> None:
    """Retrains what is missing, counts flips, stores and prints. Raises Refused on bad input."""
    quiet_libraries()
    args = parse_args(argv)
    stem = args.results_dir / f"counterfactual_{args.dataset_name}"
    if args.plot_only:
        report.redraw(stem, args.figure_path, plotting.draw_counterfactual)
        return
    folder, run = open_run(args.checkpoint_dir, args.dataset_name)
    if run["seed"] in retrain_seeds(args):
        raise Refused(f"the scored model was trained with seed {run['seed']}, which --retrain_seed would use again")
    train, queries = open_data(folder, run, args.dataset_path, args.max_queries)
    if train.task.regression:
        raise Refused(f"{args.dataset_name} is a regression task: it has margins, but no prediction that could flip")
    check_sizes(args, train, queries)
    arms = make_arms(args, folder, run, train, queries)
    if args.query_index is not None:
        show_removed(args, arms, train, queries)
        return
    recipe = recipe_of(args, run["recipe"])
    retrain = Retrainer(run, train, queries, recipe, choose_device())
    workers = args.jobs_per_device or default_workers(retrain.device, retrain.num_parameters)
    store = Store(folder / "retraining", retrain.fingerprint(), len(queries))
    base = base_runs(args, store, retrain, workers)
    targets = np.flatnonzero((base > 0).all(0))  # what every base seed classifies correctly
    if len(targets) == 0:
        raise Refused(f"no validation row is classified correctly by all {args.num_base_seeds} base seeds (their accuracy is {(base > 0).mean():.2f})")
    outcome = study(args, arms, targets, store, retrain, workers)
    if outcome is None or launched()[0] > 0:
        return
    result = summarize(args, train, queries, base, targets, outcome) | {"recipe": recipe}
    print(tables.counterfactual_text(result))
    report.save(
        result, stem, args.figure_path, markdown=tables.counterfactual_markdown(result), draw=plotting.draw_counterfactual,
        arguments=vars(args), device=retrain.device, compact=True,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_script(main))
