"""How much could any score explain? A score adds up its rows; retraining need not.

    python -m lab.additive --dataset_name demo --first_query 50 --scores ekfac identity

The LDS predicts the margin of a retrained model by a sum over the rows that were kept. A margin in
which rows work together (two copies of a fact, of which one is enough) holds more than any sum can
say, and the noise ceiling counts that as signal. This measures how much. Each random half m is
retrained, and so is its complement m', with the same seeds. Of an additive margin the mean over the
two is the same for every m. So, for each query,

    odd part  (f(m) - f(m')) / 2: what a sum over rows can say (and interactions of three, five, ...
    rows),
    even part (f(m) + f(m')) / 2: what it cannot (interactions of two, four, ... rows).

Variances over masks are those of a two-way table (mask, seed) without its noise: (MS_mask -
MS_rest) / R (Searle, Casella and McCulloch 1992, chapter 4). The share of the odd part in the sum
of both, queries pooled after each was divided by its variance over all retrains, bounds what a
score could explain: it can correlate with the signal up to the square root of the share. Scores are
then compared with the odd part alone, and with its own noise ceiling.

Symbols: M masks, N training rows, Q queries, R repeats, B bootstrap draws. Retrains are stored like
all others. Writes RESULTS_DIR/additive_DATASET_NAME.json and .md.
"""

import argparse
import sys

import numpy as np

from attribution.cli import Parser, run_script
from attribution.evidence import stats
from attribution.evidence.arguments import add_start_argument
from attribution.evidence.ground_truth import Subsets
from attribution.evidence.store import Job
from attribution.evidence.study import check_recipe_known, open_study
from attribution.files import Refused
from attribution.influence.stored import scores_named
from attribution.show import results
from attribution.show.tables import markdown, share_of, with_interval
from attribution.training.arguments import add_data_arguments, add_query_arguments
from attribution.training.run import Run
from lab.common import add_results_argument, add_tuning_arguments, from_query, noise_ceiling
from pipeline import quiet_libraries


def parse_args(argv=None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__)
    group = add_data_arguments(parser)
    add_query_arguments(group)
    add_start_argument(group)
    add = parser.add_argument_group("ground truth").add_argument
    add(
        "--scores",
        nargs="+",
        default=["ekfac"],
        help="names of stored scores to compare with the odd part (ekfac)",
    )
    add_tuning_arguments(add)
    add(
        "--retrain_queries",
        type=int,
        default=0,
        help="validation rows that retrains predict (the queries)",
    )
    add("--jobs_per_device", type=int, help="retrains at the same time (as evaluate_lds.py)")
    add_results_argument(add, "additive_DATASET_NAME.json and .md")
    return parser.parse_args(argv)


def signal(margins: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(B, Q): variance over masks of margins (M, R, Q), noise taken out, where each mask is drawn
    as often as weights (B, M) say. R >= 2; it may come out negative.
    """
    repeats, share = margins.shape[1], weights / weights.sum(1, keepdims=True)
    correction = weights.sum(1) / (weights.sum(1) - 1)
    means = margins.mean(1)
    between = share @ means**2 - (share @ means) ** 2
    seeds = np.einsum("bm,mrq->brq", share, margins)  # what a seed does to all masks
    total = share @ (margins**2).mean(1) - (seeds**2).mean(1)
    rest = (total - between) / (
        repeats - 1
    )  # of one cell, over R - 1 of R degrees of freedom: already per mean
    return (between - rest) * correction[:, None]


def shares(margins: np.ndarray, others: np.ndarray, draws: stats.Draws) -> np.ndarray:
    """(B,): the odd part's share of the signal in every draw. margins, others: (M, R, Q) of masks
    and complements.
    """
    everything = np.concatenate([margins, others])
    scale = np.sqrt(np.maximum(everything.reshape(-1, margins.shape[2]).var(0), 1e-300))
    odd, even = (signal((margins + sign * others) / 2 / scale, draws.masks) for sign in (-1, 1))
    odd, even = ((part * draws.queries).sum(1) for part in (odd, even))
    return odd / np.maximum(odd + even, 1e-300)


def compare(
    masks: np.ndarray, margins: np.ndarray, others: np.ndarray, scores: dict[str, np.ndarray]
) -> dict:
    """The share of the odd part, its ceiling, and how each score (Q, N) agrees with it."""
    count, repeats, queries = margins.shape
    draws, once = (
        stats.draw(count, queries),
        stats.Draws(np.ones((1, count)), np.ones((1, queries))),
    )
    odd = (margins - others) / 2
    truth, ceiling = stats.make_truth(odd.mean(1)), stats.ceiling_of(odd, draws)
    found = {}
    for name, values in scores.items():
        agreed = stats.agreement(values, masks, truth)
        sample = stats.bootstrap(agreed, truth, draws)
        found[name] = {"lds": agreed.mean, "interval": stats.interval(sample)}
        found[name] |= stats.share_of_ceiling(agreed.mean, sample, ceiling)
    return {
        "masks": count,
        "repeats": repeats,
        "queries": queries,
        "scores": found,
        "ceiling": ceiling and ceiling.value,
        "additive": float(shares(margins, others, once)[0]),
        "interval": stats.interval(shares(margins, others, draws)),
        "ceiling of margins": noise_ceiling(np.concatenate([margins, others])),
    }


def additive_markdown(result: dict) -> str:
    """How much of the signal is a sum over rows, and how scores agree with that part."""
    share, scores = result["additive"], result["scores"].items()
    rows = [
        [name, with_interval(one["lds"], one["interval"]), share_of(one)]
        for name, one in sorted(scores, key=lambda item: -item[1]["lds"])
    ]
    rows.append(["noise ceiling of the odd part", f"{result['ceiling']:.3f}", "-"])
    low, high = result["interval"]
    bounds = [min(max(value, 0), 1) ** 0.5 for value in (share, low, high)]
    note = (
        f"{result['dataset']}: {result['masks']} masks and their complements x {result['repeats']} "
        f"repeats, {result['queries']} queries from row {result['first_query']} on. Odd part of "
        f"the signal: {share:.0%} [{low:.0%}, {high:.0%}]; so a sum over rows can correlate with "
        f"the signal up to {bounds[0]:.2f} [{bounds[1]:.2f}, {bounds[2]:.2f}]. Noise ceiling of "
        f"the margins themselves: {result['ceiling of margins']:.3f}."
    )
    return (
        markdown(["score", "LDS with the odd part [95 %]", "share of its ceiling [95 %]"], rows)
        + "\n\n"
        + note
    )


def main(argv=None) -> None:
    """Retrains what is missing, and prints the table. Raises Refused where scores are missing or
    masks cannot be.
    """
    quiet_libraries()
    args = parse_args(argv)
    if args.num_repeats < 2:
        raise Refused("noise is known from repeats: --num_repeats must be at least 2")
    place = results.Place(args.results_dir / f"additive_{args.dataset_name}")
    place.check()
    run = Run.open(args.checkpoint_dir, args.dataset_name, args.dataset_path)
    check_recipe_known(run)
    rows = run.rows(max(args.first_query + args.max_queries, args.retrain_queries))
    queries = rows[1].window(args.first_query, args.max_queries)
    stored = {
        name: scores_named(run, from_query(name, args.first_query), queries.fingerprint())
        for name in args.scores
    }
    if lost := [name for name, scores in stored.items() if scores is None]:
        raise Refused(
            f"{run.folder} has no scores {', '.join(lost)} of these queries; run analyze.py for "
            "them"
        )
    study = open_study(
        run,
        rows,
        run.recipe,
        first_query=args.first_query,
        max_queries=args.max_queries,
        model_name_or_path=args.model_name_or_path,
        jobs_per_device=args.jobs_per_device,
    )
    subsets = Subsets(args.num_masks, args.num_repeats, 0.5, args.mask_seed, args.retrain_seed)
    masks = subsets.masks(len(study.train))
    both = np.concatenate([masks, 1 - masks])
    jobs = [Job.of(np.flatnonzero(mask), seed) for mask in both for seed in subsets.retrain_seeds]
    margins = study.run_jobs(jobs).margins.astype(np.float64)
    margins = margins.reshape(2, len(masks), args.num_repeats, -1)
    result = compare(masks, margins[0], margins[1], stored)
    result |= {"dataset": args.dataset_name, "first_query": args.first_query}
    print(additive_markdown(result))
    origin = {
        "arguments": vars(args),
        "device": study.retrain.device,
        "fingerprints": run.fingerprints(queries),
    }
    results.save(result, place, markdown=additive_markdown(result), **origin)


if __name__ == "__main__":
    sys.exit(run_script(main))
