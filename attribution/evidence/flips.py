"""What came out of removals: which targets flipped, how far their margins moved, and how two arms
compare.

`result` is what run_counterfactual.py writes as JSON. Symbols as in `counterfactual`: S targets, D
draws of an arm, L removals, R retrain seeds. None in the JSON is NaN here: nothing was retrained,
or the retrain diverged.
"""

from itertools import combinations

import numpy as np

from attribution.evidence.stats import interval, wilson

NUM_BOOTSTRAP = 2000
TURNED = {"helpful": "flipped", "harmful": "mended"}  # which rows go -> what becomes of a target


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
