"""Does a score predict what retraining does? The linear datamodeling score (LDS) of every stored score.

    python evaluate_lds.py --dataset_name demo                 # retrains what is missing, then the table
    python evaluate_lds.py --dataset_name rte --num_masks 100 --num_repeats 5 --alpha 0.5 --checkpoint_dir ./checkpoints
    python evaluate_lds.py --dataset_name rte --masks_path masks.pt --margins_path margins.pt    # ground truth of others
    python evaluate_lds.py --dataset_name rte --query_index 79       # query, top influential row, its LDS
    accelerate launch --num_processes 8 evaluate_lds.py --dataset_name rte    # retrains are shared out

For M random subsets of the training rows (share alpha kept), the Spearman correlation, a query, between the
summed scores of the kept rows and the margin of models retrained on them (mean over R repeats), reported as
the mean over queries (TRAK, arXiv:2303.14186, section 2). Scores come from analyze.py; start it first.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from analyze import MAX_QUERIES, factors_name, open_data, open_run
from attribution import baselines, plotting, report, stats, tables
from attribution.ground_truth import check_margins, check_masks, draw_masks, load_array
from attribution.reading import describe, stored_scores
from attribution.retraining import RETRAIN_SEED, Job, Store, announce, default_workers, launched, run_jobs
from attribution.store import (
    Refused,
    check_positive,
    differing_parts,
    read_json,
    run_script,
    write_json,
    write_npz,
)
from pipeline import quiet_libraries
from train import Retrainer, add_recipe_arguments, check_recipe, choose_device, recipe_of, represent

REFERENCE = factors_name("ekfac")


def parse_args(argv=None) -> argparse.Namespace:
    """The command line, checked. Raises Refused for values that no run could use."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    # What is evaluated.
    add("--dataset_name", required=True, help="the task that train.py and analyze.py were run for")
    add("--dataset_path", help="folder or hub id of the data set (as in training)")
    add("--checkpoint_dir", type=Path, default=Path("checkpoints"), help="where runs live, one folder a data set")
    add("--max_queries", type=int, default=MAX_QUERIES, help=f"as in analyze.py: the first so many validation rows ({MAX_QUERIES})")
    add("--combine", nargs="+", action="append", default=[], metavar="SCORE", help="also evaluate the mean of these scores; may be given again")
    add("--combine_by", choices=("zscore", "rank"), default="zscore", help="what makes a query's scores comparable before the mean (zscore)")
    add("--ensemble", nargs="+", type=Path, default=[], metavar="DIR", help="other checkpoint folders, same data and recipe, other seeds: also evaluate the mean of all scores")
    # Ground truth.
    add("--num_masks", type=int, default=100, help="random subsets M (100, as published)")
    add("--num_repeats", type=int, default=5, help="retrains of each subset R, other seeds (5, as published)")
    add("--alpha", type=float, default=0.5, help="share of the rows that a subset keeps (0.5, as published)")
    add("--stratify", action="store_true", help="subsets keep the same share of every class")
    add("--mask_seed", type=int, default=0, help="of the subsets (0)")
    add("--retrain_seed", type=int, default=RETRAIN_SEED, help=f"seed of the first repeat; the next ones count up; not that of a scored model ({RETRAIN_SEED})")
    add("--masks_path", type=Path, help="foreign subsets (M, N), 1 = kept: .npy, .npz or .pt")
    add("--margins_path", type=Path, help="foreign margins (M, R, Q) or (M, Q): .npy, .npz or .pt")
    # How it runs.
    add("--jobs_per_device", type=int, help="retrains at the same time: a GPU's processes (1), or on a CPU processes of one thread each (one a core)")
    add("--dry_run", action="store_true", help="say how many retrains are missing and how long they may take, then stop")
    # What is shown.
    add("--query_index", type=int, help="show this query, its top influential row and its LDS; retrains nothing")
    add("--num_bootstrap", type=int, default=2000, help="bootstrap draws behind an interval (2000)")
    add("--results_dir", type=Path, default=Path("results"), help="lds_DATASET_NAME.json and .md go here (results)")
    add("--figure_path", type=Path, default=Path("figure/lds.png"), help="where the figure goes (figure/lds.png)")
    add("--plot_only", action="store_true", help="draw the figure again from the JSON")
    add_recipe_arguments(parser, default="that of run.json")
    args = parser.parse_args(argv)
    check_positive(args, "max_queries", "num_repeats", "num_bootstrap", "jobs_per_device")
    check_recipe(args)
    if args.num_masks < stats.MIN_MASKS:
        raise Refused(f"--num_masks must be at least {stats.MIN_MASKS}, not {args.num_masks}")
    if not 0 < args.alpha < 1:
        raise Refused(f"--alpha must lie between 0 and 1, not {args.alpha}")
    if (args.masks_path is None) != (args.margins_path is None):
        raise Refused("--masks_path and --margins_path belong together; give both")
    return args


def retrain_seeds(args) -> range:
    return range(args.retrain_seed, args.retrain_seed + args.num_repeats)


# --- ground truth --------------------------------------------------------------------------------------


def own_truth(args, folder: Path, retrain: Retrainer, wait: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """(masks (M, N), margins (M, R, Q)) from the store; what is missing is retrained. None: not to be evaluated."""
    train, queries = retrain.train, retrain.queries
    if args.stratify and train.task.regression:
        raise Refused("--stratify needs classes; a regression task has none")
    masks = draw_masks(len(train), args.num_masks, args.alpha, args.mask_seed, train.labels if args.stratify else None)
    if not masks.any(1).all() or masks.all(1).any():
        raise Refused(f"--alpha {args.alpha} of {len(train)} rows keeps none or all of them")
    check_masks(masks, len(train))
    seeds = retrain_seeds(args)
    jobs = [Job(np.flatnonzero(mask), seed) for mask in masks for seed in seeds]
    store = Store(folder / "retraining", retrain.fingerprint(), len(queries))
    if not wait and store.missing(jobs):
        raise Refused(f"{len(store.missing(jobs))} retrains are missing; run the same command without --query_index")
    workers = args.jobs_per_device or default_workers(retrain.device, retrain.num_parameters)
    if not announce(store, jobs, retrain, workers, args.dry_run):
        return None
    margins = run_jobs(store, jobs, retrain, workers).reshape(len(masks), len(seeds), len(queries))
    if launched()[0] > 0:
        return None
    drawn = f"alpha{args.alpha:g}{'_stratified' * args.stratify}_seed{args.mask_seed}"
    name = f"lds_{args.num_masks}x{args.num_repeats}_{drawn}_retrain{args.retrain_seed}"
    write_npz(store.folder / f"{name}.npz", masks=masks, margins=margins)
    write_json(store.folder / f"{name}.json", {"fingerprint": retrain.fingerprint()})
    return masks, margins


def foreign_truth(args, retrain: Retrainer) -> tuple[np.ndarray, np.ndarray]:
    """(masks (M, N), margins (M, R, Q)) from files. Raises Refused where they cannot belong to this run."""
    fingerprint = retrain.fingerprint()
    for path in (args.masks_path, args.margins_path):
        record = read_json(path.with_suffix(".json"))
        if record is None:
            print(f"{path} carries no fingerprint: only its shape is checked")
        elif parts := differing_parts(record.get("fingerprint", {}), fingerprint):
            raise Refused(f"{path} was made with another {' and another '.join(parts)} than this run")
    masks = check_masks(load_array(args.masks_path, "masks"), len(retrain.train))
    return masks, check_margins(load_array(args.margins_path, "margins"), len(masks), len(retrain.queries))


# --- scores --------------------------------------------------------------------------------------------


def open_scores(folder: Path, run: dict, query_rows: str) -> dict[str, np.ndarray]:
    """Name -> scores (Q, N) of everything that fits this run; what does not is left out, and that is said."""
    scores, stale = stored_scores(folder, run, query_rows)
    for name, reason in stale.items():
        print(f"{name}: left out, {reason}", file=sys.stderr)
    return scores


def add_ensembles(args, run: dict, scores: dict[str, np.ndarray], query_rows: str) -> list[int]:
    """Adds the mean over checkpoints of every score that all of them have; returns the seeds of the others."""
    others, seeds = [], []
    for directory in args.ensemble:
        folder, other = open_run(directory, args.dataset_name)
        for part in ("train_rows", "recipe"):
            if other[part] != run[part]:
                raise Refused(f"--ensemble {directory} has another {part.replace('_', ' ')} than {args.checkpoint_dir}")
        if other["weights"] == run["weights"]:
            raise Refused(f"--ensemble {directory} has the same weights as another member; train it with another --seed")
        others.append(open_scores(folder, other, query_rows))
        seeds.append(other["seed"])
    shared = [name for name in scores if others and all(name in other for other in others)]
    if others and not shared:
        raise Refused("the checkpoints of --ensemble share no stored score; run analyze.py on each of them")
    for name in shared:
        scores[f"{name}, {len(others) + 1} seeds"] = np.mean([scores[name], *(other[name] for other in others)], axis=0)
    return seeds


def collect_scores(args, folder: Path, run: dict, train, queries) -> tuple[dict[str, np.ndarray], list[int]]:
    """Name -> scores (Q, N): stored ones, baselines, ensembles and combinations; seeds of the models behind them."""
    scores = open_scores(folder, run, queries.fingerprint())
    if not scores:
        print(f"no stored scores; make them with: python analyze.py --dataset_name {args.dataset_name} --checkpoint_dir {args.checkpoint_dir}")
    seeds = [run["seed"], *add_ensembles(args, run, scores, queries.fingerprint())]
    for name in baselines.NAMES:
        values = baselines.baseline_scores(name, queries, train, lambda: represent(folder, choose_device(), queries, train))
        if values is not None:
            scores[name] = values
    for names in args.combine:
        if unknown := [name for name in names if name not in scores]:
            raise Refused(f"--combine: there is no score {unknown[0]!r}; there are {', '.join(scores)}")
        scores[" + ".join(names)] = stats.combine([scores[name] for name in names], args.combine_by)
    return scores, seeds


# --- the table -----------------------------------------------------------------------------------------


def evaluate(scores: dict[str, np.ndarray], masks: np.ndarray, margins: np.ndarray, labels, num_bootstrap: int) -> dict:
    """Everything that is reported, as plain numbers. labels (N,): classes to control for, or None."""
    complete = stats.complete_masks(margins)
    missing = int((~np.isfinite(margins)).any(2).sum())
    masks, margins = masks[complete], margins[complete]
    if len(masks) < stats.MIN_MASKS:
        raise Refused(f"only {len(masks)} masks have finite margins; a correlation needs {stats.MIN_MASKS}")
    controls = {"plain": None} | ({} if labels is None else {"balanced": stats.kept_counts(masks, labels)})
    draws = stats.draw(len(masks), margins.shape[2], num_bootstrap)
    means = stats.mean_margins(margins)
    result = {
        "masks": len(masks), "incomplete_masks": int((~complete).sum()), "missing_repeats": missing,
        "repeats": margins.shape[1], "queries": margins.shape[2], "rows": masks.shape[1], "alpha": float(masks.mean()),
        "scores": {name: {} for name in scores}, "ceiling": {}, "constant_queries": {}, "chance": {},
    }  # fmt: skip
    for kind, columns in controls.items():
        truth = stats.make_truth(means, columns)
        agreements = {name: stats.agreement(values, masks, truth) for name, values in scores.items()}
        samples = {name: stats.bootstrap(agreed, truth, draws) for name, agreed in agreements.items()}
        result["ceiling"][kind] = stats.noise_ceiling(margins, columns)
        result["constant_queries"][kind] = int((~truth.valid).sum())
        result["chance"][kind] = stats.chance(agreements["random"], truth)
        for name, agreed in agreements.items():
            entry = {"lds": agreed.mean, "interval": stats.interval(samples[name]), "constant": agreed.constant}
            if REFERENCE in scores and name != REFERENCE:
                entry["difference"] = agreed.mean - agreements[REFERENCE].mean
                entry["difference_interval"] = stats.interval(samples[name] - samples[REFERENCE])
            result["scores"][name][kind] = entry
    for name, values in scores.items():
        both = REFERENCE in scores
        result["scores"][name]["spearman_with_ekfac"] = stats.mean_spearman(values, scores[REFERENCE]) if both else None
    result["growth"] = growth(scores, masks, means, draws)
    return result


def growth(scores: dict[str, np.ndarray], masks: np.ndarray, means: np.ndarray, draws: stats.Draws) -> dict:
    """LDS on the first masks only, with intervals: whether there are enough of them."""
    counts = sorted({max(stats.MIN_MASKS, round(len(masks) * share)) for share in (0.1, 0.2, 0.3, 0.5, 0.7, 0.85, 1.0)})
    lines = {name: [] for name in scores}
    for count in counts:
        truth = stats.make_truth(means[:count])
        draws = stats.draw(count, means.shape[1], 300)
        for name, values in scores.items():
            agreed = stats.agreement(values, masks[:count], truth)
            lines[name].append([agreed.mean, *stats.interval(stats.bootstrap(agreed, truth, draws))])
    return {"masks": counts, "lines": lines}


def show_query(args, folder: Path, run: dict, retrain: Retrainer, masks: np.ndarray, margins: np.ndarray) -> None:
    """Prints a query, its top influential row, and how well the stored ekfac scores predict its margins."""
    train, queries, q = retrain.train, retrain.queries, args.query_index
    if not 0 <= q < len(queries):
        raise Refused(f"--query_index must be from 0 to {len(queries) - 1}, not {q}")
    scores = open_scores(folder, run, queries.fingerprint())
    name = REFERENCE if REFERENCE in scores else next(iter(scores), None)
    if name is None:
        raise Refused(f"no stored scores; make them with: python analyze.py --dataset_name {args.dataset_name}")
    agreed = stats.agreement(scores[name], masks, stats.make_truth(stats.mean_margins(margins)))
    top = int(np.argmax(scores[name][q]))
    print(f"query {q} [{queries.label_name(q)}]: {queries.text(q)}\n  most influential by {name}:")
    print(describe(train, top, float(scores[name][q, top])))
    print(f"  LDS of {name} for this query: {agreed.per_query[q]:.3f} ({len(masks)} masks; mean over queries {agreed.mean:.3f})")


def main(argv=None) -> None:
    """Retrains what is missing, evaluates, stores and prints. Raises Refused on bad input."""
    quiet_libraries()
    args = parse_args(argv)
    stem = args.results_dir / f"lds_{args.dataset_name}"
    if args.plot_only:
        report.redraw(stem, args.figure_path, plotting.draw_lds)
        return
    folder, run = open_run(args.checkpoint_dir, args.dataset_name)
    train, queries = open_data(folder, run, args.dataset_path, args.max_queries)
    recipe = recipe_of(args, run["recipe"])
    retrain = Retrainer(run, train, queries, recipe, choose_device())
    if args.masks_path:
        truth = foreign_truth(args, retrain)
    else:
        truth = own_truth(args, folder, retrain, wait=args.query_index is None)
    if truth is None:
        return
    if args.query_index is not None:
        show_query(args, folder, run, retrain, *truth)
        return
    labels = None if train.task.regression else train.labels
    scores, seeds = collect_scores(args, folder, run, train, queries)
    result = evaluate(scores, *truth, labels, args.num_bootstrap)
    result |= {"dataset": args.dataset_name, "stratified": args.stratify, "foreign": args.masks_path is not None}
    result["shared_seeds"] = [] if args.masks_path else sorted(set(seeds) & set(retrain_seeds(args)))
    result |= {"recipe": recipe, "evaluation": run["evaluation"], "retrained_accuracy": float((truth[1] > 0).mean())}
    print(tables.lds_text(result))
    report.save(
        result, stem, args.figure_path, markdown=tables.lds_markdown(result), draw=plotting.draw_lds,
        arguments=vars(args), device=retrain.device,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_script(main))
