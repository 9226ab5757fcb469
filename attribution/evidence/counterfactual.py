"""Removal of the most helpful (or harmful) rows, retraining, and the predictions that flip.

Symbols: S targets, D draws of an arm (1, except random), L removals, R retrain seeds. Margins and
correctness (1 or 0) of an arm are (S, D, L, R), NaN where nothing was retrained, and where a
retrain diverged, which does not count.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from attribution.evidence.arguments import TURNED
from attribution.evidence.stats import interval, wilson
from attribution.evidence.store import Job
from attribution.evidence.study import Study
from attribution.files import Refused
from attribution.influence.stored import most_helpful
from attribution.processes import rank_and_size

NUM_BOOTSTRAP = 2000
# A query's number -> for every draw, training rows in the order of their removal.
Arm = Callable[[int], list[np.ndarray]]


# --- arms -----------------------------------------------------------------------------------------


def by_score(scores: np.ndarray, direction: str = "helpful") -> Arm:
    """The arm that removes the rows with the highest of these scores (Q, N), or, of harmful
    rows, with the lowest.
    """
    return lambda query: [most_helpful(scores[query], direction)]


def by_chance(train, queries, seed: int, draws: int) -> Arm:
    """The arm that removes random training rows of the target's class."""
    return lambda query: [
        shuffled(np.flatnonzero(train.labels == queries.labels[query]), seed, query, draw)
        for draw in range(draws)
    ]


def by_classes(train, arm: Arm, seed: int, draws: int) -> Arm:
    """The arm that removes random rows, at every removal as many of each class as the given
    arm removes.
    """
    return lambda query: [
        same_groups(train.labels, arm(query)[0], seed, query, draw) for draw in range(draws)
    ]


def same_groups(
    groups: np.ndarray, order: np.ndarray, seed: int, query: int, draw: int
) -> np.ndarray:
    """Random rows in the place of those in `order`, each of the same group (N,): a function of
    seed, query and draw.
    """
    rows = np.empty_like(order)
    for group in np.unique(groups[order]):
        places = groups[order] == group
        rows[places] = shuffled(np.flatnonzero(groups == group), seed, query, draw)[: places.sum()]
    return rows


def shuffled(rows: np.ndarray, seed: int, query: int, draw: int) -> np.ndarray:
    """The rows in an order that is a function of seed, query and draw."""
    return np.random.default_rng([seed, query, draw]).permutation(rows)


# --- the study ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Removals:
    """Numbers of removed rows, targets and seeds of the study."""

    counts: list[int]  # increasing
    num_targets: int  # queries, from the first on, among which targets are sought
    # A target is a query that models of all these seeds classify correctly (harmful: wrongly).
    base_seeds: range
    retrain_seeds: range
    # A flipped (mended) target counts as such at every larger removal and is not retrained.
    carry_forward: bool
    direction: str = "helpful"
    max_targets: int | None = None  # the first of them; None: all


def run_study(study: Study, removals: Removals, arms: dict[str, Arm], dry_run: bool) -> dict | None:
    """Margins, correctness and removed rows of every target, with shares and intervals.

    None after a dry run. Raises Refused if no query is classified correctly (harmful: wrongly) by
    all base seeds, or if all retrains with nothing removed diverged.
    """
    everything = np.arange(len(study.train))
    counts = removals.counts
    seeds = list(removals.retrain_seeds)
    bases = [Job.of(everything, seed) for seed in removals.base_seeds]
    base = study.run_jobs(bases, "base runs")
    kept = np.isfinite(base.margins).all(1)  # base seeds that did not diverge
    if not kept.any():
        raise Refused(
            "the models of all base seeds diverged, so there are no targets; lower --learning_rate"
        )
    base_seeds = np.array(removals.base_seeds)[kept].tolist()
    base_margins = base.margins[kept, : removals.num_targets]
    base_correct = base.correct[kept, : removals.num_targets]
    wanted = removals.direction == "helpful"
    targets = np.flatnonzero((base_correct == wanted).all(0))[: removals.max_targets]
    if len(targets) == 0:
        raise Refused(
            f"no validation row is classified {'correctly' if wanted else 'wrongly'} by all "
            f"{len(base_seeds)} base seeds (their accuracy is {base_correct.mean():.2f})"
        )
    # For every target and draw, training rows in the order of their removal.
    orders = {name: [arm(int(query)) for query in targets] for name, arm in arms.items()}
    starts = {seed: Job.of(everything, seed) for seed in seeds}
    jobs = {
        (name, t, d, level, r): Job.of(np.delete(everything, order[:count]), seed)
        for name, draws_of_targets in orders.items()
        for t, draws in enumerate(draws_of_targets)
        for d, order in enumerate(draws)
        for level, count in enumerate(counts)
        for r, seed in enumerate(seeds)
    }
    if not study.announce([*starts.values(), *jobs.values()], dry_run):
        return None
    start = study.run_keyed(starts, "nothing removed")
    before = np.stack([found[targets] for found in start.values()], axis=1)
    if not np.isfinite(before[..., 0]).any(-1).all():
        raise Refused(
            "all retrains with nothing removed diverged, so nothing can be compared with them"
        )
    found = run_levels(study, removals, jobs, targets)
    result = {
        "removals": [0, *counts],
        "carry_forward": removals.carry_forward,
        "direction": removals.direction,
        "targets": targets.tolist(),
        "sought": base_margins.shape[1],
        "base_accuracy": float(base_correct.mean()),
        "base_run_margins": listed(base_margins),
        "base_run_correct": base_correct.astype(int).tolist(),
        "rows": len(everything),
        "base_seeds": base_seeds,
        "diverged_base_seeds": sorted({*removals.base_seeds} - {*base_seeds}),
        "retrain_seeds": seeds,
        "base_margins": listed(before[..., 0]),
        "base_correct": listed(before[..., 1]),
        "diverged": sum(not np.isfinite(margin) for margin, _ in found.values()),
        "margins": {},
        "correct": {},
        "removed": {
            name: [[order[: counts[-1]].tolist() for order in draws] for draws in rows]
            for name, rows in orders.items()
        },
    }
    for name, rows in orders.items():
        values = np.full((len(rows), len(rows[0]), len(counts), len(seeds), 2), np.nan)
        for (arm, *place), value in found.items():
            if arm == name:
                values[*place] = value
        result["margins"][name] = listed(values[..., 0])
        result["correct"][name] = listed(values[..., 1])
    return result | {"curves": curves(result)}


def run_levels(
    study: Study, removals: Removals, jobs: dict[tuple, Job], targets: np.ndarray
) -> dict[tuple, np.ndarray]:
    """Key of each job that was needed -> (margin, correctness) of its target.

    jobs: (arm, target, draw, level, repeat) -> job. A target carried forward needs no more of them.
    """
    found: dict[tuple, np.ndarray] = {}
    settled: set[tuple] = set()  # (arm, target, draw) that flipped and are carried forward
    for level, count in enumerate(removals.counts):
        of_level = {key: job for key, job in jobs.items() if key[3] == level}
        needed = {key: job for key, job in of_level.items() if key[:3] not in settled}
        if rank_and_size()[0] == 0:
            print(
                f"removing {count}: {len(needed):,} retrains, {len(of_level) - len(needed):,} "
                "spared by carry-forward"
            )
        for key, values in study.run_keyed(needed, f"{count} removed").items():
            found[key] = values[targets[key[1]]]
        if removals.carry_forward:
            repeats = range(len(removals.retrain_seeds))
            for place in {key[:3] for key in needed}:
                correct = np.array([found[*place, level, r][1] for r in repeats])
                if turned(correct, removals.direction):
                    settled.add(place)
    return found


# --- results ------------------------------------------------------------------------------------


def listed(margins: np.ndarray) -> list:
    """Nested lists for JSON, with None for missing and diverged retrains."""
    values = margins.astype(object)
    values[~np.isfinite(margins)] = None
    return values.tolist()


def is_right(correct: np.ndarray, before: bool) -> np.ndarray:
    """(..., R) -> (...,): whether a prediction is right: more than half of its retrains are.

    Where exactly half of them are, and where all diverged, it stays as it was before. correct: 1 or
    0; NaN (diverged) does not count.
    """
    right = (correct > 0).sum(-1)
    wrong = (correct == 0).sum(-1)
    return right >= wrong if before else right > wrong


def turned(correct: np.ndarray, direction: str) -> np.ndarray:
    """(..., R) -> (...,): whether a target, right before, flipped (harmful: wrong before, was
    mended). correct: as for `is_right`.
    """
    before = direction == "helpful"
    return is_right(correct, before) != before


def states(
    base: tuple[np.ndarray, np.ndarray],
    arm: tuple[np.ndarray, np.ndarray],
    direction: str = "helpful",
) -> tuple[np.ndarray, np.ndarray]:
    """(flipped or mended, margin change) of an arm, both (S, D, 1 + L), with nothing removed in
    front.

    base: margins and correctness (S, R) of the same seeds with nothing removed; arm: those of the
    arm (S, D, L, R). A target that was carried forward stays flipped and keeps its last change; one
    whose retrains all diverged stays as before. Changes are paired: means over seeds of the
    differences from base.
    """
    draws, repeats = arm[0].shape[1], arm[0].shape[3]
    starts = [
        np.broadcast_to(np.asarray(x, np.float64)[:, None, None], (len(x), draws, 1, repeats))
        for x in base
    ]
    margins, correct = (np.concatenate(pair, axis=2) for pair in zip(starts, arm, strict=True))
    differences = margins - margins[:, :, :1]
    there = np.isfinite(differences)
    flips = turned(correct, direction)
    change = np.where(there, differences, 0.0).sum(-1) / np.maximum(there.sum(-1), 1)
    for level in range(1, flips.shape[2]):
        kept = ~there[:, :, level].any(-1)
        flips[kept, level], change[kept, level] = flips[kept, level - 1], change[kept, level - 1]
    return flips, change


def per_target(result: dict) -> dict[str, dict[str, np.ndarray]]:
    """Arm -> whether each target flipped (or was mended) and its margin's change, both (S, 1 + L);
    draws averaged.
    """
    base = _floats(result["base_margins"]), _floats(result["base_correct"])
    direction = result["direction"]
    found = {}
    for name, margins in result["margins"].items():
        arm = _floats(margins), _floats(result["correct"][name])
        flips, change = states(base, arm, direction)
        found[name] = {TURNED[direction]: flips.mean(1), "margin_change": change.mean(1)}
    return found


def curves(result: dict) -> dict:
    """Arm -> at every removal: share flipped or mended (Wilson), mean margin change (bootstrap over
    targets).
    """
    found = {}
    for name, values in per_target(result).items():
        (fate, flips), (_, change) = values.items()
        found[name] = {
            fate: flips.mean(0).tolist(),
            f"{fate}_interval": [wilson(share * len(flips), len(flips)) for share in flips.mean(0)],
            "margin_change": change.mean(0).tolist(),
            "margin_change_interval": _intervals(change),
        }
    return found


def differences(result: dict) -> dict[tuple[str, str], dict]:
    """(arm, arm before it) -> mean difference of what `per_target` returns at every removal, with
    paired intervals.

    Bootstrap over targets; a target's two values stay together.
    """
    values = per_target(result)
    found: dict[tuple[str, str], dict] = {}
    for before, name in combinations(result["strategies"], 2):
        pair: dict = {}
        for key in values[name]:
            apart = values[name][key] - values[before][key]
            pair[key] = apart.mean(0).tolist()
            pair[f"{key}_interval"] = _intervals(apart)
        found[name, before] = pair
    return found


def _floats(nested: list) -> np.ndarray:
    """Inverse of `listed`."""
    return np.array(nested, dtype=np.float64)


def _intervals(values: np.ndarray) -> list[tuple[float, float]]:
    """Percentile intervals of the mean over targets of values (S, 1 + L), for every column; always
    the same draws.
    """
    picks = np.random.default_rng(0).integers(len(values), size=(NUM_BOOTSTRAP, len(values)))
    return [interval(column[picks].mean(1)) for column in values.T]
