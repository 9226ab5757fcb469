"""Removal of the most helpful (or harmful) rows: which rows go, and what is retrained.

Symbols: S targets, D draws of an arm (1, except random), L removals, R retrain seeds. Margins and
correctness (1 or 0) of an arm are (S, D, L, R), NaN where nothing was retrained, and where a
retrain diverged, which says nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from attribution.evidence.retraining import announce, run_jobs
from attribution.evidence.stats import interval, wilson
from attribution.evidence.store import Job, Results
from attribution.evidence.study import Study
from attribution.files import Refused
from attribution.processes import rank_and_size

NUM_BOOTSTRAP = 2000
TURNED = {"helpful": "flipped", "harmful": "mended"}  # which rows go -> what becomes of a target
Arm = Callable[
    [int], list[np.ndarray]
]  # a query's number -> for every draw, training rows in removal order


# --- arms -----------------------------------------------------------------------------------------


def by_score(scores: np.ndarray, direction: str = "helpful") -> Arm:
    """The arm that removes the rows with the highest of these scores (Q, N), or of harmful ones
    with the lowest.
    """
    return lambda query: [most_helpful(scores[query] if direction == "helpful" else -scores[query])]


def by_chance(train, queries, seed: int, draws: int) -> Arm:
    """The arm that removes random training rows of the target's class."""

    def orders(query: int) -> list[np.ndarray]:
        rows = np.flatnonzero(train.labels == queries.labels[query])
        return [shuffled(rows, seed, query, draw) for draw in range(draws)]

    return orders


def by_classes(train, arm: Arm, seed: int, draws: int) -> Arm:
    """The arm that removes random rows, at every removal as many of each class as the other arm
    removes.
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


def most_helpful(scores: np.ndarray) -> np.ndarray:
    """Training rows from the highest score (N,) to the lowest, ties by row number."""
    return np.argsort(-scores.astype(np.float64), kind="stable")


def shuffled(rows: np.ndarray, seed: int, query: int, draw: int) -> np.ndarray:
    """The rows in an order that is a function of seed, query and draw."""
    return np.random.default_rng([seed, query, draw]).permutation(rows)


# --- the study ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Removals:
    """How many rows are removed from which targets, and with which seeds is retrained."""

    counts: list[int]  # increasing
    num_targets: int  # targets are sought among the first so many queries
    # a target is a query that models of all these seeds classify correctly (harmful: wrongly)
    base_seeds: range
    retrain_seeds: range
    # a flipped (mended) target counts as such at every larger removal and is not retrained
    carry_forward: bool
    direction: str = "helpful"
    max_targets: int | None = None  # the first so many of them; None: all


@dataclass
class Plan:
    """Which subsets are to be retrained at each removal, and what comes in.

    orders: arm -> for every target, for every draw, training rows in the order of their removal.
    """

    orders: dict[str, list[list[np.ndarray]]]
    removals: list[int]
    everything: np.ndarray
    seeds: list[int]
    direction: str = "helpful"
    margins: dict[str, np.ndarray] = field(init=False)
    correct: dict[str, np.ndarray] = field(init=False)
    diverged: int = 0  # retrains

    def __post_init__(self) -> None:
        sizes = {name: (len(targets), len(targets[0])) for name, targets in self.orders.items()}
        tail = len(self.removals), len(self.seeds)
        self.margins = {name: np.full((*size, *tail), np.nan) for name, size in sizes.items()}
        self.correct = {name: values.copy() for name, values in self.margins.items()}

    def _places(self):
        for name, targets in self.orders.items():
            for t, draws in enumerate(targets):
                for d in range(len(draws)):
                    yield name, t, d

    def _jobs(self, place: tuple, level: int) -> list[Job]:
        name, t, d = place
        kept = np.delete(self.everything, self.orders[name][t][d][: self.removals[level]])
        return [Job.of(kept, seed) for seed in self.seeds]

    def all_jobs(self) -> list[Job]:
        """Every job that there may be, if no target flips before the last removal."""
        levels = range(len(self.removals))
        return [
            job for place in self._places() for level in levels for job in self._jobs(place, level)
        ]

    def jobs(self, level: int, carry_forward: bool) -> dict[tuple, list[Job]]:
        """(arm, target, draw) -> jobs, one a seed, of what is to be retrained at this removal."""
        return {
            place: self._jobs(place, level)
            for place in self._places()
            if not (carry_forward and self._turned_before(place, level))
        }

    def spared(self, level: int, carry_forward: bool) -> int:
        """Retrains that this removal does not need."""
        return (
            carry_forward
            * len(self.seeds)
            * sum(self._turned_before(place, level) for place in self._places())
        )

    def _turned_before(self, place: tuple, level: int) -> bool:
        name, t, d = place
        return bool(turned(self.correct[name][t, d, :level], self.direction).any())

    def record(self, place: tuple, level: int, margins: np.ndarray, correct: np.ndarray) -> None:
        """Takes margins and correctness (R,) of a target at a removal."""
        name, t, d = place
        self.margins[name][t, d, level], self.correct[name][t, d, level] = (
            margins,
            converged(margins, correct),
        )
        self.diverged += int((~np.isfinite(margins)).sum())


def base_runs(study: Study, removals: Removals) -> Results:
    """What models trained on everything, one a base seed, say about the queries sought for targets."""
    everything = np.arange(len(study.train))
    jobs = [Job.of(everything, seed) for seed in removals.base_seeds]
    results = run_jobs(study.store, jobs, study.retrain, study.workers, "base runs")
    return Results(*(values[:, : removals.num_targets] for values in vars(results).values()))


@dataclass(frozen=True)
class Outcome:
    """What retraining says about every target: `base` (S, R) with nothing removed, arms (S, D, L,
    R).
    """

    targets: np.ndarray
    base_margins: np.ndarray
    base_correct: np.ndarray
    plan: Plan


def run_study(
    study: Study, removals: Removals, arms: dict[str, Arm], base: Results, dry_run: bool
) -> Outcome | None:
    """Retrains what is missing; None after a dry run. base: as `base_runs` returns it.

    Raises Refused where no query is classified correctly (harmful: wrongly) by all base seeds.
    """
    wanted = removals.direction == "helpful"
    targets = np.flatnonzero((base.correct == wanted).all(0))[: removals.max_targets]
    if len(targets) == 0:
        raise Refused(
            f"no validation row is classified {'correctly' if wanted else 'wrongly'} by all "
            f"{len(removals.base_seeds)} base seeds (their accuracy is {base.correct.mean():.2f})"
        )
    everything, seeds = np.arange(len(study.train)), list(removals.retrain_seeds)
    orders = {name: [arm(int(q)) for q in targets] for name, arm in arms.items()}
    plan = Plan(orders, removals.counts, everything, seeds, removals.direction)
    jobs = [Job.of(everything, seed) for seed in seeds]
    if not announce(study.store, jobs + plan.all_jobs(), study.retrain, study.workers, dry_run):
        return None
    start = run_jobs(study.store, jobs, study.retrain, study.workers, "nothing removed")
    before = start.margins[:, targets].T
    if not np.isfinite(before).any(-1).all():
        raise Refused(
            "all retrains with nothing removed diverged, so nothing can be compared with them"
        )
    for level in range(len(removals.counts)):
        run_level(study, plan, level, targets, removals.carry_forward)
    return Outcome(targets, before, converged(before, start.correct[:, targets].T), plan)


def run_level(
    study: Study, plan: Plan, level: int, targets: np.ndarray, carry_forward: bool
) -> None:
    """Retrains what one removal needs, and records it in the plan."""
    wanted, count = plan.jobs(level, carry_forward), plan.removals[level]
    if rank_and_size()[0] == 0:
        spared = plan.spared(level, carry_forward)
        print(
            f"removing {count}: {len(wanted) * len(plan.seeds):,} retrains, {spared:,} spared by "
            "carry-forward"
        )
    jobs = [job for place in wanted.values() for job in place]
    results = run_jobs(study.store, jobs, study.retrain, study.workers, f"{count} removed")
    shape = len(wanted), len(plan.seeds), len(study.queries)
    margins, correct = results.margins.reshape(shape), results.correct.reshape(shape)
    for i, place in enumerate(wanted):
        target = targets[place[1]]
        plan.record(place, level, margins[i, :, target], correct[i, :, target])


def summarize(study: Study, removals: Removals, base: Results, outcome: Outcome) -> dict:
    """Everything that is reported: every margin, whether it was right, every removed row, shares
    and intervals.
    """
    most, plan = removals.counts[-1], outcome.plan
    result = {
        "removals": [0, *removals.counts],
        "carry_forward": removals.carry_forward,
        "direction": removals.direction,
        "targets": outcome.targets.tolist(),
        "sought": min(removals.num_targets, len(study.queries)),
        "base_accuracy": float(base.correct.mean()),
        "base_run_margins": listed(base.margins),
        "base_run_correct": base.correct.astype(int).tolist(),
        "rows": len(study.train),
        "base_seeds": list(removals.base_seeds),
        "retrain_seeds": list(removals.retrain_seeds),
        "base_margins": listed(outcome.base_margins),
        "base_correct": listed(outcome.base_correct),
        "diverged": plan.diverged,
        "margins": {name: listed(values) for name, values in plan.margins.items()},
        "correct": {name: listed(values) for name, values in plan.correct.items()},
        "removed": {
            name: [[order[:most].tolist() for order in draws] for draws in rows]
            for name, rows in plan.orders.items()
        },
    }
    return result | {"curves": curves(result)}


# --- results ------------------------------------------------------------------------------------


def listed(margins: np.ndarray) -> list:
    """Nested lists with None where nothing was retrained, for JSON."""
    values = margins.astype(object)
    values[~np.isfinite(margins)] = None
    return values.tolist()


def converged(margins: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Correctness as 1 or 0, NaN where the margin says that the retrain diverged."""
    return np.where(np.isfinite(margins), correct, np.nan)


def turned(correct: np.ndarray, direction: str) -> np.ndarray:
    """(..., R) -> (...,): fewer (harmful: more) than half of the retrains are right; False where
    there is none.

    correct: 1 or 0; NaN does not count.
    """
    there = np.isfinite(correct)
    share = (correct > 0).sum(-1) / np.maximum(there.sum(-1), 1)
    return there.any(-1) & (share < 0.5 if direction == "helpful" else share > 0.5)


def states(
    base: tuple[np.ndarray, np.ndarray],
    arm: tuple[np.ndarray, np.ndarray],
    direction: str = "helpful",
) -> tuple[np.ndarray, np.ndarray]:
    """(flipped or mended, margin change) of an arm, both (S, D, 1 + L), with nothing removed in
    front.

    base: margins and correctness (S, R) of the same seeds with nothing removed; arm: those of the
    arm (S, D, L, R). A target that was carried forward stays turned and keeps its last change; one
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
    direction = result.get("direction", "helpful")
    found = {}
    for name, margins in result["margins"].items():
        flips, change = states(
            base, (_floats(margins), _floats(result["correct"][name])), direction
        )
        found[name] = {TURNED[direction]: flips.mean(1), "margin_change": change.mean(1)}
    return found


def curves(result: dict) -> dict:
    """Arm -> at every removal: share flipped or mended (Wilson), mean margin change (bootstrap over
    targets).
    """
    found = {}
    for name, values in per_target(result).items():
        (what, flips), (_, change) = values.items()
        found[name] = {
            what: flips.mean(0).tolist(),
            f"{what}_interval": [wilson(share * len(flips), len(flips)) for share in flips.mean(0)],
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
        found[name, before] = {}
        for key in values[name]:
            apart = values[name][key] - values[before][key]
            found[name, before] |= {
                key: apart.mean(0).tolist(),
                f"{key}_interval": _intervals(apart),
            }
    return found


def _floats(nested: list) -> np.ndarray:
    """The opposite of `listed`."""
    return np.array(nested, dtype=np.float64)


def _intervals(values: np.ndarray) -> list[tuple[float, float]]:
    """Percentile intervals of the mean over targets of values (S, 1 + L), for every column; always
    the same draws.
    """
    picks = np.random.default_rng(0).integers(len(values), size=(NUM_BOOTSTRAP, len(values)))
    return [interval(column[picks].mean(1)) for column in values.T]
