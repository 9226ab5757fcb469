"""Scores corrected by retrains: what a score says of the rows, and what random subsets have shown
of them since.

Margins are taken to be sums over the kept rows. What a row adds to a query's margin has a normal
prior: its mean is the score times a slope of the query's own, its covariance the Gram matrix of the
rows' gradients (see `influence.gram`), so that rows with like gradients are corrected alike.
Retrains on random subsets then give the posterior mean: Gaussian process regression on masks with
an explicit basis (Rasmussen and Williams 2006, sections 2.2 and 2.7). A slope is not below zero:
few retrains do not turn a score round. Slopes, scales and the noise, relative to the prior and the
same for all queries, are those of the highest likelihood.

A corrected score has seen the retrains. So it is judged on masks that were held out, beside the
score as it was. Symbols: M masks, N training rows, Q queries. masks (M, N), 1 = kept; alike (N, M),
the Gram matrix times the masks.
"""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import helmert

from attribution.evidence import stats
from attribution.files import Refused

FOLDS = 5
LEAST_MASKS = 50  # ten a fold
PARTITIONS = 5  # ways to form folds
SPARE = 5  # masks of a fold beyond the columns that are controlled for
NOISES = np.logspace(-2.5, 3.5, 31)  # variance of the noise by the mean prior variance of a margin


@dataclass(frozen=True)
class Retrains:
    """What retrains on M masks have shown, and how alike the prior takes them to be."""

    chosen: np.ndarray  # (M, N): masks less their mean
    wanted: np.ndarray  # (M, Q): margins less their mean
    alike: np.ndarray  # (N, M), in units in which the mean of `values` is 1
    basis: np.ndarray  # (M, M - 1): directions among masks that are independent before the retrains
    values: np.ndarray  # (M - 1,): prior variance of a margin in each direction

    @classmethod
    def of(cls, alike: np.ndarray, masks: np.ndarray, margins: np.ndarray) -> "Retrains":
        """From mean margins (M, Q) of masks (M, N), and the Gram matrix times the masks (N, M)."""
        chosen = masks - masks.mean(0)
        alike = alike - alike.mean(1, keepdims=True)
        contrasts = helmert(len(masks))  # (M - 1, M): all but the mean, which was taken out
        values, basis = np.linalg.eigh(contrasts @ chosen @ alike @ contrasts.T)
        values = np.maximum(values, 0.0)
        size = values.mean() or 1.0
        return cls(
            chosen, margins - margins.mean(0), alike / size, contrasts.T @ basis, values / size
        )

    def correct(self, scores: np.ndarray) -> np.ndarray:
        """Scores (Q, N) corrected by these retrains, in units of the margin: (Q, N) float64."""
        sums = self.chosen @ np.asarray(scores, np.float64).T
        x, y = (self.basis.T @ part for part in (sums, self.wanted))
        noise, slopes = most_likely(self.values, x, y)
        weights = self.basis @ ((y - slopes * x) / (self.values + noise)[:, None])
        return slopes[:, None] * scores + (self.alike @ weights).T


def most_likely(values: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """(noise, slopes (Q,), none below 0) of the highest likelihood of y (K, Q) = slopes x (K, Q)
    and normal errors.

    values: (K,), the prior variance of each row of y; queries differ in their scale alone.
    """
    best, found = -np.inf, (1.0, np.zeros(x.shape[1]))
    for noise in NOISES:
        variance = (values + noise)[:, None]
        squares = (x * x / variance).sum(0)
        slopes = np.divide(
            (x * y / variance).sum(0), squares, out=np.zeros(len(squares)), where=squares > 0
        ).clip(0)
        scale = ((y - slopes * x) ** 2 / variance).mean(0)
        likelihood = -(len(y) * np.log(scale[scale > 0]) + np.log(variance).sum()).sum() / 2
        if likelihood > best:
            best, found = likelihood, (noise, slopes)
    return found


def check_masks(count: int) -> None:
    """Raises Refused where so many different masks are too few to be held out in turn."""
    if count < LEAST_MASKS:
        raise Refused(
            f"--correct holds out a fifth of the masks in turn; it needs {LEAST_MASKS}, not {count}"
        )


def folds_of(masks: np.ndarray, partition: int) -> list[np.ndarray]:
    """Positions of the masks (M, N) in each fold; the same mask drawn twice is in one fold."""
    _, which = np.unique(masks, axis=0, return_inverse=True)
    order = np.random.default_rng(partition).permutation(which.max() + 1)
    return [np.flatnonzero(np.isin(which, order[k::FOLDS])) for k in range(FOLDS)]


def cross_validate(
    scores: np.ndarray,
    alike: np.ndarray,
    masks: np.ndarray,
    margins: np.ndarray,
    controls: np.ndarray | None,
    draws: stats.Draws,
) -> dict:
    """LDS of scores (Q, N) as they are, corrected, and of the same correction of nothing, on the
    same held-out masks.

    margins: means (M, Q). controls: columns (M, K) of the balanced kind, or None. Correlations are
    over the masks of one fold, averaged over folds, PARTITIONS and queries; draws give the
    intervals. Returns kind -> {"lds", "interval", "corrected", "corrected_interval", "difference",
    "difference_interval", "alone"}; balanced only where folds have SPARE more masks than columns.
    """
    kinds: dict[str, np.ndarray | None] = {"plain": None}
    if controls is not None and len(masks) // FOLDS >= controls.shape[1] + SPARE:
        kinds["balanced"] = controls
    found: dict[str, list[np.ndarray]] = {kind: [] for kind in kinds}
    for partition in range(PARTITIONS):
        folds = folds_of(masks, partition)
        sums = [predictions(scores, alike, masks, margins, fold) for fold in folds]
        for kind, columns in kinds.items():
            found[kind].append(judge(sums, folds, margins, columns, draws))
    return {kind: summary(np.mean(judged, axis=0)) for kind, judged in found.items()}


def predictions(
    scores: np.ndarray, alike: np.ndarray, masks: np.ndarray, margins: np.ndarray, fold: np.ndarray
) -> list[np.ndarray]:
    """Sums (masks of the fold, Q) of scores, of corrected ones and of corrected nothing, from the
    other masks alone.
    """
    rest = np.setdiff1d(np.arange(len(masks)), fold)
    retrains = Retrains.of(alike[:, rest], masks[rest], margins[rest])
    corrected = [retrains.correct(given) for given in (scores, np.zeros(scores.shape, np.float32))]
    return [masks[fold] @ values.T for values in (scores, *corrected)]


def judge(
    sums: list[list[np.ndarray]],
    folds: list[np.ndarray],
    margins: np.ndarray,
    columns: np.ndarray | None,
    draws: stats.Draws,
) -> np.ndarray:
    """(3, 1 + B): the LDS of each of the `predictions` of each fold, and the same in every draw."""
    truths = [
        stats.make_truth(margins[fold], None if columns is None else columns[fold])
        for fold in folds
    ]
    valid = np.all([truth.valid for truth in truths], axis=0)
    drawn = stats.Draws(draws.masks[:, np.concatenate(folds)], draws.queries)
    together = stats.Truth(
        np.concatenate([truth.ranks for truth in truths]), np.ones((len(margins), 1)), valid
    )
    lines = []
    for of_folds in zip(*sums, strict=True):
        agreed = [
            stats.agreement_of(values, truth)
            for values, truth in zip(of_folds, truths, strict=True)
        ]
        per_query = np.mean([one.per_query for one in agreed], axis=0)
        whole = stats.Agreement(per_query, np.concatenate([one.predicted for one in agreed]), 0)
        lines.append([whole.mean, *stats.bootstrap(whole, together, drawn)])
    return np.array(lines)


def summary(judged: np.ndarray) -> dict:
    """What `cross_validate` returns of one kind, from `judge`."""
    (plain, corrected_one, alone), samples = judged[:, 0], judged[:, 1:]
    return {
        "lds": float(plain),
        "interval": stats.interval(samples[0]),
        "corrected": float(corrected_one),
        "corrected_interval": stats.interval(samples[1]),
        "difference": float(corrected_one - plain),
        "difference_interval": stats.interval(samples[1] - samples[0]),
        "alone": float(alone),
    }
