"""Is the answer true for this prediction? Its most helpful (or harmful) rows are removed and the
model is retrained.

A verdict says by how much the margin was predicted to change, by how much it changed, and whether
the prediction flipped (or was mended). Beside the score's rows go as many random rows of the same
classes.

Symbols: N training rows, L removals, R retrain seeds, D draws of the random arm.
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from attribution.evidence.calibration import Slope
from attribution.evidence.counterfactual import alike, most_helpful
from attribution.evidence.flips import TURNED, converged, listed
from attribution.evidence.retraining import announce, run_jobs
from attribution.evidence.store import Job, Results
from attribution.evidence.study import Study
from attribution.files import Refused

DIRECTIONS = tuple(TURNED)
MIN_SEEDS = 5
CONTROL = {
    False: "random, same classes",
    True: "random, same tenths of the label",
}  # whether it is a regression
TENTHS = np.linspace(0.1, 0.9, 9)


@dataclass(frozen=True)
class Target:
    """One query that is to be checked."""

    place: int  # among the study's queries
    scores: np.ndarray  # (N,)
    about: dict  # query (its number or None), texts, label, target: goes into the verdict as it is


@dataclass(frozen=True)
class Check:
    """What is removed, and how often is retrained."""

    score: str  # the name of the scores
    direction: str  # one of DIRECTIONS
    counts: list[int]  # L, increasing
    seeds: list[int]  # R, at least MIN_SEEDS
    base_seeds: list[int]
    draws: int
    random_seed: int


def groups_of(train) -> np.ndarray:
    """(N,) the class of every training row, or of a regression's label its tenth."""
    if not train.task.regression:
        return train.labels
    return np.digitize(train.labels, np.quantile(train.labels, TENTHS))


def removed_rows(train, target: Target, check: Check) -> dict[str, list[list[np.ndarray]]]:
    """Arm -> for every removal (L), for every draw, the rows that go."""
    order = most_helpful(target.scores if check.direction == "helpful" else -target.scores)
    groups, tops = groups_of(train), [order[:count] for count in check.counts]
    controls = [
        [
            np.sort(alike(groups, top, check.random_seed, target.place, draw))
            for draw in range(check.draws)
        ]
        for top in tops
    ]
    return {check.score: [[top] for top in tops], CONTROL[train.task.regression]: controls}


def run_check(
    study: Study, targets: list[Target], check: Check, slope: Slope | None, dry_run: bool
) -> list[dict] | None:
    """The verdict on each target; None after a dry run. What is stored is not retrained.

    slope: of the score, measured on random subsets; None where it is not known. Raises Refused
    where more rows are to go than there are.
    """
    count = len(study.train)
    if check.counts[-1] >= count:
        raise Refused(f"--removals {check.counts[-1]} is not less than the {count} training rows")
    everything = np.arange(count)
    arms = [removed_rows(study.train, target, check) for target in targets]
    starts = [Job.of(everything, seed) for seed in [*check.base_seeds, *check.seeds]]
    jobs = [
        Job.of(np.delete(everything, rows), seed)
        for arm in arms
        for levels in arm.values()
        for draws in levels
        for rows in draws
        for seed in check.seeds
    ]
    if not announce(study.store, starts + jobs, study.retrain, study.workers, dry_run):
        return None
    start = run_jobs(study.store, starts, study.retrain, study.workers, "nothing removed")
    results = iter_rows(
        run_jobs(study.store, jobs, study.retrain, study.workers, "rows removed"), len(check.seeds)
    )
    return [
        judge(study, target, check, arm, start, results, slope)
        for target, arm in zip(targets, arms, strict=True)
    ]


def iter_rows(results: Results, size: int):
    """(margins, correct), both (R, Q), of one set of removed rows after the other."""
    for first in range(0, len(results.margins), size):
        yield results.margins[first : first + size], results.correct[first : first + size]


def judge(
    study: Study,
    target: Target,
    check: Check,
    arms: dict,
    start: Results,
    results,
    slope: Slope | None,
) -> dict:
    """The verdict on one target. results: of `iter_rows`, this target's next."""
    bases, place = len(check.base_seeds), target.place
    right = converged(start.margins[:, place], start.correct[:, place])
    before = start.margins[bases:, place]
    verdict = target.about | {
        "score": check.score,
        "direction": check.direction,
        "removals": check.counts,
        "seeds": check.seeds,
        "base_right": [int(np.nansum(right[:bases])), bases],
        "margins": listed(before),
        "right": listed(right[bases:]),
        "arms": {},
        "regression": study.train.task.regression,
    }
    for name, levels in arms.items():
        verdict["arms"][name] = []
        for rows in levels:
            drawn = [next(results) for _ in rows]
            after = np.mean([margins[:, place] for margins, _ in drawn], axis=0)
            correct = np.mean(
                [converged(margins, correct)[:, place] for margins, correct in drawn], axis=0
            )
            change, interval = paired(after - before)
            total = float(np.sum(target.scores[rows[0]], dtype=np.float64))
            predicted = slope.margin(-total) if slope is not None and name == check.score else None
            verdict["arms"][name].append(
                {
                    "removed": len(rows[0]),
                    "rows": [part.tolist() for part in rows],
                    "change": change,
                    "interval": interval,
                    "right": share_right(correct),
                    "predicted": predicted,
                    "outcome": None if verdict["regression"] else outcome(right[bases:], correct),
                }
            )
    return verdict


def paired(differences: np.ndarray, level: float = 0.95) -> tuple[float, list[float] | None]:
    """(mean, t interval) of differences (R,) paired by seed; those of retrains that diverged are
    left out.
    """
    values = differences[np.isfinite(differences)]
    if len(values) < 2:
        return (float(values.mean()) if len(values) else float("nan")), None
    half = float(
        student.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    )
    mean = float(values.mean())
    return mean, [mean - half, mean + half]


def share_right(correct: np.ndarray) -> float | None:
    """The share of retrains (R,) that are right, those that diverged (NaN) left out; None where all
    did.
    """
    there = correct[np.isfinite(correct)]
    return float(there.mean()) if there.size else None


def outcome(before: np.ndarray, after: np.ndarray) -> str:
    """What became of the prediction: right or wrong means at least, or fewer than, half of the
    retrains (R,) right.
    """
    share_before, share_after = share_right(before), share_right(after)
    if share_before is None or share_after is None:
        return "not known: the retrains diverged"
    was, is_now = share_before >= 0.5, share_after >= 0.5
    if was == is_now:
        return "stays right" if was else "stays wrong"
    return "mended" if is_now else "flipped"
