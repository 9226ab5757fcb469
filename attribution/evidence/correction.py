"""Scores corrected by retrains: what a score says of the rows, and what random subsets have shown of them since.

Margins are taken to be sums over the kept rows. What a row adds to a query's margin has a normal prior: its mean is the
score times one number a query, and its covariance that of the rows' gradients (see `influence.gram`), so that rows with
like gradients are corrected alike. Retrains on random subsets then give the posterior mean: Gaussian process regression
on masks with an explicit basis (Rasmussen and Williams 2006, sections 2.2 and 2.7). The noise, relative to the prior,
is that of the highest likelihood, one number for all queries; a query's scale follows in closed form.

A corrected score has seen the retrains. So it is judged on masks that were held out, beside the score as it was.
Symbols: M masks, N training rows, Q queries. masks (M, N), 1 = kept; alike (N, M), the Gram matrix times the masks.
"""

import numpy as np
from scipy.linalg import helmert

from attribution.evidence import stats
from attribution.files import Refused

FOLDS = 5
LEAST_MASKS = 25  # five a fold
NOISES = np.logspace(-2.5, 3.5, 31)  # variance of the noise by the mean prior variance of a margin


def corrected(scores: np.ndarray, alike: np.ndarray, masks: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """Scores (Q, N) corrected by mean margins (M, Q) of these masks, in units of the margin: (Q, N) float64."""
    chosen = masks - masks.mean(0)
    alike = alike - alike.mean(1, keepdims=True)
    sums, wanted = chosen @ np.asarray(scores, np.float64).T, margins - margins.mean(0)
    contrasts = helmert(len(masks))  # (M - 1, M): all but the mean, which was taken out
    values, basis = np.linalg.eigh(contrasts @ chosen @ alike @ contrasts.T)
    values, basis = np.maximum(values, 0.0), contrasts.T @ basis
    size = values.mean() or 1.0
    values, alike = values / size, alike / size
    x, y = (basis.T @ part for part in (sums, wanted))
    noise, slopes = most_likely(values, x, y)
    weights = basis @ ((y - slopes * x) / (values + noise)[:, None])
    return slopes[:, None] * scores + (alike @ weights).T


def most_likely(values: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """(noise, slopes (Q,)) of the highest likelihood of y (K, Q), by generalized least squares on x (K, Q).

    values: (K,), the prior variance of each row of y; queries differ in their scale alone.
    """
    best, found = -np.inf, (1.0, np.zeros(x.shape[1]))
    for noise in NOISES:
        variance = (values + noise)[:, None]
        squares = (x * x / variance).sum(0)
        slopes = np.divide((x * y / variance).sum(0), squares, out=np.zeros(len(squares)), where=squares > 0)
        scale = ((y - slopes * x) ** 2 / variance).mean(0)
        likelihood = -(len(y) * np.log(scale[scale > 0]) + np.log(variance).sum()).sum() / 2
        if likelihood > best:
            best, found = likelihood, (noise, slopes)
    return found


def check_masks(count: int) -> None:
    """Raises Refused where masks are too few to be held out in turn."""
    if count < LEAST_MASKS:
        raise Refused(f"--correct holds out a fifth of the masks in turn; it needs {LEAST_MASKS}, not {count}")


def cross_validate(
    scores: np.ndarray, alike: np.ndarray, masks: np.ndarray, margins: np.ndarray, controls: np.ndarray | None,
    draws: stats.Draws,
) -> dict:  # fmt: skip
    """LDS of scores (Q, N) as they are, corrected, and of retrains alone, on the same held-out masks.

    margins: means (M, Q). controls: columns (M, K) of the balanced kind, or None. Correlations are over the masks of
    one fold, averaged over folds and queries; draws give the intervals. Returns kind -> {"lds", "interval",
    "corrected", "corrected_interval", "difference", "difference_interval", "alone"}.
    """
    order = np.random.default_rng(0).permutation(len(masks))
    folds = [np.sort(order[k::FOLDS]) for k in range(FOLDS)]
    kept = [np.setdiff1d(order, fold) for fold in folds]
    zero = np.zeros_like(scores)
    ways = {
        "": [scores] * FOLDS,
        "corrected": [corrected(scores, alike[:, rest], masks[rest], margins[rest]) for rest in kept],
        "alone": [corrected(zero, alike[:, rest], masks[rest], margins[rest]) for rest in kept],
    }
    return {
        kind: judge(ways, folds, masks, margins, columns, draws)
        for kind, columns in (("plain", None), ("balanced", controls))
        if kind == "plain" or columns is not None
    }


def judge(
    ways: dict[str, list[np.ndarray]], folds: list[np.ndarray], masks: np.ndarray, margins: np.ndarray,
    columns: np.ndarray | None, draws: stats.Draws,
) -> dict:  # fmt: skip
    """One kind of `cross_validate`. ways: name -> scores of each fold."""
    truths = [stats.make_truth(margins[fold], None if columns is None else columns[fold]) for fold in folds]
    valid = np.all([truth.valid for truth in truths], axis=0)
    drawn = stats.Draws(draws.masks[:, np.concatenate(folds)], draws.queries)
    together = stats.Truth(np.concatenate([truth.ranks for truth in truths]), np.ones((len(masks), 1)), valid)
    lds, samples = {}, {}
    for name, of_folds in ways.items():
        agreed = [
            stats.agreement(values, masks[fold], truth)
            for values, fold, truth in zip(of_folds, folds, truths, strict=True)
        ]
        per_query = np.mean([one.per_query for one in agreed], axis=0)
        whole = stats.Agreement(per_query, np.concatenate([one.predicted for one in agreed]), 0)
        lds[name], samples[name] = whole.mean, stats.bootstrap(whole, together, drawn)
    return {
        "lds": lds[""], "interval": stats.interval(samples[""]),
        "corrected": lds["corrected"], "corrected_interval": stats.interval(samples["corrected"]),
        "difference": lds["corrected"] - lds[""],
        "difference_interval": stats.interval(samples["corrected"] - samples[""]),
        "alone": lds["alone"],
    }  # fmt: skip
