"""Calibration: margin units per unit of score, one slope for score and run, measured by retraining.

Regresses margins of models retrained on random subsets on the summed scores of the kept rows, both
centred for each query, pooled over queries. Only subsets drawn without looking at any query count:
retrains that were made for a query never calibrate anything.

Symbols: M masks, N training rows, Q queries, R repeats, B bootstrap draws.
"""

from dataclasses import dataclass

import numpy as np

from attribution.evidence import stats
from attribution.files import read_json, sha256_of
from attribution.training.run import Run
from pipeline import MARGIN

NUM_BOOTSTRAP = 500
MIN_MASKS = 10


@dataclass(frozen=True)
class Slope:
    """Margin units per unit of score, with its 95 % interval."""

    value: float
    low: float
    high: float
    masks: int
    repeats: int
    kept: float  # mean share of the rows that a subset keeps

    @property
    def usable(self) -> bool:
        """Whether the interval stays away from zero, so that a margin may be shown."""
        return self.low > 0

    def margin(self, score: float) -> tuple[float, float, float] | None:
        """(value, low, high): predicted margin of a row of this score; None if unknown."""
        if not self.usable:
            return None
        low, high = sorted((self.low * score, self.high * score))
        return self.value * score, low, high


def random_subsets(run: Run, query_rows: str) -> tuple[np.ndarray, np.ndarray] | None:
    """(masks (M, N), margins (M, R, Q)) of the largest stored ground truth of the run's recipe.

    None without one. query_rows: fingerprint of the validation rows. Reads the exports of
    evaluate_lds.py, which are of random subsets by construction.
    """
    best: tuple[np.ndarray, np.ndarray] | None = None
    wanted = {
        "recipe": run.recipe,
        "training rows": run.train_rows,
        "query rows": query_rows,
        "run's start": run.start_parts(),
        "margin": MARGIN,
    }
    for path in sorted((run.folder / "retraining").glob("*/lds_*.npz")):
        record = read_json(path.with_suffix(".json")) or {}
        made = record.get("fingerprint", {})
        fits = all(made.get(part) == value for part, value in wanted.items())
        if not fits or record.get("arrays") != sha256_of(path):
            continue
        with np.load(path, allow_pickle=False) as arrays:
            masks = arrays["masks"]
            margins = arrays["margins"]
        complete = stats.complete_masks(margins)
        masks = masks[complete]
        margins = margins[complete]
        if len(masks) >= MIN_MASKS and (best is None or margins.size > best[1].size):
            best = masks, margins
    return best


def slope(
    scores: np.ndarray, masks: np.ndarray, margins: np.ndarray, count: int = NUM_BOOTSTRAP
) -> Slope:
    """The slope of margins (M, R, Q) on sums of kept scores (Q, N), in margins a unit of score,
    with an interval.

    Least squares: the sum of x y over that of x x, over masks and queries, both centred for each
    query. Bootstrap over masks and queries (see `stats.draw`); every draw centres anew.
    """
    x = masks.astype(np.float64) @ np.asarray(scores, np.float64).T
    y = stats.mean_margins(margins)
    x = x - x.mean(0)
    y = y - y.mean(0)
    draws = stats.draw(len(masks), x.shape[1], count)
    w = draws.masks / draws.masks.sum(1, keepdims=True)
    products = (draws.queries * (w @ (x * y) - (w @ x) * (w @ y))).sum(1)
    squares = (draws.queries * (w @ (x * x) - (w @ x) ** 2)).sum(1)
    total = float((x * x).sum())
    value = float((x * y).sum()) / total if total > 0 else 0.0
    low, high = stats.interval(products / np.maximum(squares, 1e-300)) if total > 0 else (0.0, 0.0)
    return Slope(value, low, high, len(masks), margins.shape[1], float(masks.mean()))
