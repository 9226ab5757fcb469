"""Removal of the most helpful rows: what to retrain next, and what came out.

Symbols: S targets, D draws of an arm (1, except random), L removals, R retrain seeds. Margins of an arm are
(S, D, L, R), NaN where nothing was retrained.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from attribution.evidence.retraining import Job, announce, launched, run_jobs
from attribution.evidence.stats import interval, wilson
from attribution.evidence.study import Study
from attribution.files import Refused

NUM_BOOTSTRAP = 2000
Arm = Callable[[int], list[np.ndarray]]  # a query's number -> for every draw, training rows in removal order


# --- arms ----------------------------------------------------------------------------------------------


def by_score(scores: np.ndarray) -> Arm:
    """The arm that removes the rows with the highest of these scores (Q, N)."""
    return lambda query: [most_helpful(scores[query])]


def by_chance(train, queries, seed: int, draws: int) -> Arm:
    """The arm that removes random training rows of the target's class."""

    def orders(query: int) -> list[np.ndarray]:
        rows = np.flatnonzero(train.labels == queries.labels[query])
        return [shuffled(rows, seed, query, draw) for draw in range(draws)]

    return orders


def most_helpful(scores: np.ndarray) -> np.ndarray:
    """Training rows from the highest score (N,) to the lowest, ties by row number."""
    return np.argsort(-scores.astype(np.float64), kind="stable")


def shuffled(rows: np.ndarray, seed: int, query: int, draw: int) -> np.ndarray:
    """The rows in an order that is a function of seed, query and draw."""
    return np.random.default_rng([seed, query, draw]).permutation(rows)


# --- the study -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Removals:
    """How many rows are removed from which targets, and with which seeds is retrained."""

    counts: list[int]  # increasing
    num_targets: int  # targets are sought among the first so many queries
    base_seeds: range  # a target is a query that models of all these seeds classify correctly
    retrain_seeds: range
    carry_forward: bool  # a flipped target counts as flipped at every larger removal and is not retrained


@dataclass
class Plan:
    """Which subsets are to be retrained at each removal, and their margins as they come in.

    orders: arm -> for every target, for every draw, training rows in the order of their removal.
    """

    orders: dict[str, list[list[np.ndarray]]]
    removals: list[int]
    everything: np.ndarray
    seeds: list[int]
    margins: dict[str, np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        sizes = {name: (len(targets), len(targets[0])) for name, targets in self.orders.items()}
        tail = len(self.removals), len(self.seeds)
        self.margins = {name: np.full((*size, *tail), np.nan) for name, size in sizes.items()}

    def _places(self):
        for name, targets in self.orders.items():
            for t, draws in enumerate(targets):
                for d in range(len(draws)):
                    yield name, t, d

    def _jobs(self, place: tuple, level: int) -> list[Job]:
        name, t, d = place
        kept = np.delete(self.everything, self.orders[name][t][d][: self.removals[level]])
        return [Job(kept, seed) for seed in self.seeds]

    def all_jobs(self) -> list[Job]:
        """Every job that there may be, if no target flips before the last removal."""
        levels = range(len(self.removals))
        return [job for place in self._places() for level in levels for job in self._jobs(place, level)]

    def jobs(self, level: int, carry_forward: bool) -> dict[tuple, list[Job]]:
        """(arm, target, draw) -> jobs, one a seed, of what is to be retrained at this removal."""
        return {
            place: self._jobs(place, level) for place in self._places()
            if not (carry_forward and self._flipped_before(place, level))
        }  # fmt: skip

    def spared(self, level: int, carry_forward: bool) -> int:
        """Retrains that this removal does not need."""
        return carry_forward * len(self.seeds) * sum(self._flipped_before(place, level) for place in self._places())

    def _flipped_before(self, place: tuple, level: int) -> bool:
        name, t, d = place
        return bool(flipped(self.margins[name][t, d, :level]).any())

    def record(self, place: tuple, level: int, margins: np.ndarray) -> None:
        """Takes the margins (R,) of a target at a removal."""
        name, t, d = place
        self.margins[name][t, d, level] = margins


def base_runs(study: Study, removals: Removals) -> np.ndarray:
    """Margins (base seeds, queries sought for targets) of models trained on everything."""
    everything = np.arange(len(study.train))
    jobs = [Job(everything, seed) for seed in removals.base_seeds]
    margins = run_jobs(study.store, jobs, study.retrain, study.workers, "base runs")
    return margins[:, : removals.num_targets]


@dataclass(frozen=True)
class Outcome:
    """Margins of every target: `base` (S, R) with nothing removed, and arm -> (S, D, L, R); what was removed."""

    targets: np.ndarray
    base: np.ndarray
    arms: dict[str, np.ndarray]
    orders: dict[str, list[list[np.ndarray]]]


def run_study(
    study: Study, removals: Removals, arms: dict[str, Arm], base: np.ndarray, dry_run: bool
) -> Outcome | None:
    """Retrains what is missing; None after a dry run. base: as `base_runs` returns it.

    Raises Refused where no query is classified correctly by all base seeds.
    """
    targets = np.flatnonzero((base > 0).all(0))
    if len(targets) == 0:
        raise Refused(
            f"no validation row is classified correctly by all {len(removals.base_seeds)} base seeds "
            f"(their accuracy is {(base > 0).mean():.2f})"
        )
    everything, seeds = np.arange(len(study.train)), list(removals.retrain_seeds)
    orders = {name: [arm(int(q)) for q in targets] for name, arm in arms.items()}
    plan = Plan(orders, removals.counts, everything, seeds)
    jobs = [Job(everything, seed) for seed in seeds]
    if not announce(study.store, jobs + plan.all_jobs(), study.retrain, study.workers, dry_run):
        return None
    start = run_jobs(study.store, jobs, study.retrain, study.workers, "nothing removed")[:, targets].T
    for level in range(len(removals.counts)):
        run_level(study, plan, level, targets, removals.carry_forward)
    return Outcome(targets, start, plan.margins, orders)


def run_level(study: Study, plan: Plan, level: int, targets: np.ndarray, carry_forward: bool) -> None:
    """Retrains what one removal needs, and records it in the plan."""
    wanted, count = plan.jobs(level, carry_forward), plan.removals[level]
    if launched()[0] == 0:
        spared = plan.spared(level, carry_forward)
        print(f"removing {count}: {len(wanted) * len(plan.seeds):,} retrains, {spared:,} spared by carry-forward")
    jobs = [job for place in wanted.values() for job in place]
    margins = run_jobs(study.store, jobs, study.retrain, study.workers, f"{count} removed")
    margins = margins.reshape(len(wanted), len(plan.seeds), -1)
    for place, values in zip(wanted, margins, strict=True):
        plan.record(place, level, values[:, targets[place[1]]])


# --- what came out -------------------------------------------------------------------------------------


def summarize(study: Study, removals: Removals, base: np.ndarray, outcome: Outcome) -> dict:
    """Everything that is reported: every margin, every removed row, shares and intervals."""
    most = removals.counts[-1]
    return {
        "removals": [0, *removals.counts], "carry_forward": removals.carry_forward,
        "targets": outcome.targets.tolist(), "sought": min(removals.num_targets, len(study.queries)),
        "base_accuracy": float((base > 0).mean()), "base_run_margins": base.tolist(), "rows": len(study.train),
        "base_seeds": list(removals.base_seeds), "retrain_seeds": list(removals.retrain_seeds),
        "base_margins": outcome.base.tolist(),
        "margins": {name: listed(values) for name, values in outcome.arms.items()},
        "removed": {
            name: [[order[:most].tolist() for order in draws] for draws in rows]
            for name, rows in outcome.orders.items()
        },
        "curves": curves(outcome.base, outcome.arms),
    }  # fmt: skip


def flipped(margins: np.ndarray) -> np.ndarray:
    """(..., R) -> (...,): fewer than half of the retrains classify the target correctly; False where none was made."""
    there = np.isfinite(margins).any(-1)
    return there & ((margins > 0).mean(-1) < 0.5)


def states(base: np.ndarray, margins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(flipped, margin change) of an arm, both (S, D, 1 + L), with nothing removed in front.

    A target that was carried forward counts as flipped and keeps its last margin. Changes are to the mean margin
    (S, R) of the same seeds with nothing removed.
    """
    base = np.asarray(base, dtype=np.float64)
    start = np.broadcast_to(base[:, None, None], (*margins.shape[:2], 1, margins.shape[3]))
    whole = np.concatenate([start, margins], axis=2)
    flips, change = flipped(whole), whole.mean(-1)
    for level in range(1, whole.shape[2]):
        carried = ~np.isfinite(whole[:, :, level]).any(-1)
        flips[:, :, level] |= carried
        change[:, :, level] = np.where(carried, change[:, :, level - 1], change[:, :, level])
    return flips, change - base.mean(-1)[:, None, None]


def curves(base: np.ndarray, arms: dict[str, np.ndarray]) -> dict:
    """Arm -> at every removal: share flipped (Wilson), mean margin change, and both minus the first arm's (bootstrap).

    Bootstrap over targets, the same draws for every arm: differences are paired. Draws of an arm are averaged first.
    """
    generator = np.random.default_rng(0)
    count, result, reference = len(base), {}, None
    picks = generator.integers(count, size=(NUM_BOOTSTRAP, count))
    for name, margins in arms.items():
        flips, change = (values.mean(1) for values in states(base, margins))  # (S, 1 + L)
        reference = (flips, change) if reference is None else reference
        curve = {
            "flipped": flips.mean(0).tolist(),
            "flipped_interval": [wilson(share * count, count) for share in flips.mean(0)],
            "margin_change": change.mean(0).tolist(),
            "margin_change_interval": _intervals(change, picks),
        }
        for key, values, of in (("flipped", flips, reference[0]), ("margin_change", change, reference[1])):
            curve[f"{key}_difference"] = (values - of).mean(0).tolist()
            curve[f"{key}_difference_interval"] = _intervals(values - of, picks)
        result[name] = curve
    return result


def _intervals(values: np.ndarray, picks: np.ndarray) -> list[tuple[float, float]]:
    """Percentile intervals of the mean over targets of values (S, L), for every column."""
    return [interval(values[:, level][picks].mean(1)) for level in range(values.shape[1])]


def listed(margins: np.ndarray) -> list:
    """Nested lists with None where nothing was retrained, for JSON."""
    values = margins.astype(object)
    values[~np.isfinite(margins)] = None
    return values.tolist()
