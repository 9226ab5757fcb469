"""Removal of the most helpful rows: what to retrain next, and what came out.

Symbols: S targets, D draws of an arm (1, except random), L removals, R retrain seeds. Margins of an arm are
(S, D, L, R), NaN where nothing was retrained.
"""

from dataclasses import dataclass, field

import numpy as np

from attribution.retraining import Job
from attribution.stats import interval, wilson

NUM_BOOTSTRAP = 2000


def most_helpful(scores: np.ndarray) -> np.ndarray:
    """Training rows from the highest score (N,) to the lowest, ties by row number."""
    return np.argsort(-scores.astype(np.float64), kind="stable")


def shuffled(rows: np.ndarray, seed: int, query: int, draw: int) -> np.ndarray:
    """The rows in an order that is a function of seed, query and draw."""
    return np.random.default_rng([seed, query, draw]).permutation(rows)


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
        self.margins = {name: np.full((*size, len(self.removals), len(self.seeds)), np.nan) for name, size in sizes.items()}

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
        return [job for place in self._places() for level in range(len(self.removals)) for job in self._jobs(place, level)]

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
    return np.where(np.isfinite(margins), margins.astype(object), None).tolist()
