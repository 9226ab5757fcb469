"""Correlations with ground truth, their intervals, and what noise allows. NumPy and SciPy only.

Symbols: M masks, N training rows, Q queries, R repeats, K classes, B bootstrap draws. Masks (M, N)
hold 1 for a kept row; scores (Q, N); margins (M, R, Q), where NaN says that a repeat is missing.
The linear datamodeling score of a query is the Spearman correlation, over masks, between the summed
scores of the kept rows and the mean margin of the models retrained on them (TRAK, arXiv:2303.14186,
section 2).
"""

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, rankdata, sem
from scipy.stats import t as student

from attribution.evidence.arguments import MIN_MASKS

# a share of the ceiling is shown where the interval of the ceiling begins above this part of it
LEAST_CEILING = 0.2


@dataclass(frozen=True)
class Truth:
    """Ground truth, ready to be correlated with: ranks of mean margins, and their controls."""

    # (M, Q), standardized ranks of mean margins; zero for a query whose margins do not vary.
    ranks: np.ndarray
    # (M, K'), orthonormal columns that are regressed out of ranks; at least the constant.
    basis: np.ndarray
    valid: np.ndarray  # (Q,), whether the query's margins vary (once controlled)


def mean_margins(margins: np.ndarray) -> np.ndarray:
    """(M, R, Q) -> (M, Q): the mean over the repeats that are there; NaN where there is none."""
    there = np.isfinite(margins)
    total = np.where(there, margins, 0.0).sum(1, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return total / there.sum(1)


def complete_masks(margins: np.ndarray) -> np.ndarray:
    """(M,): masks for which every query has at least one repeat."""
    return np.isfinite(margins).any(1).all(1)


def kept_counts(masks: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(M, K): how many rows of each class a mask keeps."""
    return np.stack(
        [masks[:, labels == label].sum(1) for label in np.unique(labels)], axis=1
    ).astype(np.float64)


def make_truth(margins: np.ndarray, controls: np.ndarray | None = None) -> Truth:
    """Ground truth from margins (M, Q), controlled for columns (M, K) by partial rank correlation.

    Partial Spearman correlation: ranks of both sides, with the ranks of the controls regressed out
    by least squares.
    """
    basis = _basis(len(margins), controls)
    ranks, valid = _standardize(margins, basis)
    return Truth(ranks, basis, valid)


def _basis(count: int, controls: np.ndarray | None) -> np.ndarray:
    """Orthonormal columns (M, K') that span the constant and the ranks of the controls."""
    columns = [np.ones((count, 1))]
    if controls is not None and controls.size:
        ranks = rankdata(controls, axis=0)
        columns.append((ranks - ranks.mean(0)) / count)
    u, s, _ = np.linalg.svd(np.concatenate(columns, axis=1), full_matrices=False)
    return u[:, s > 1e-9 * s[0]]


def _standardize(values: np.ndarray, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ranks (M, Q) of each column, projected off the basis, with norm 1; whether anything was left
    (Q,)).
    """
    ranks = rankdata(values, axis=0)
    ranks -= basis @ (basis.T @ ranks)
    norms = np.linalg.norm(ranks, axis=0)
    valid = norms > 1e-8 * len(ranks) ** 1.5
    return ranks / np.where(valid, norms, 1.0) * valid, valid


@dataclass(frozen=True)
class Agreement:
    """Agreement of one set of scores with ground truth."""

    # (Q,) correlation; 0 if the prediction is constant, NaN if the margins are.
    per_query: np.ndarray
    predicted: np.ndarray  # (M, Q) standardized ranks of the predictions
    constant: int  # queries whose prediction is the same for every mask

    @property
    def mean(self) -> float:
        """The LDS: the mean over queries, those without a defined correlation left out."""
        known = np.isfinite(self.per_query).any()
        return float(np.nanmean(self.per_query)) if known else float("nan")


def agreement(scores: np.ndarray, masks: np.ndarray, truth: Truth) -> Agreement:
    """LDS of scores (Q, N) for every query; see `Truth` for what it is controlled for."""
    predictions = masks.astype(np.float64) @ np.asarray(scores, dtype=np.float64).T
    # Sums that differ in the last bits only are equal: ranks of rounding errors would look like an
    # opinion.
    scale = np.abs(scores).sum(1, dtype=np.float64)
    grid = np.maximum(scale * 1e-12, np.finfo(np.float64).tiny)
    predicted, valid = _standardize(np.round(predictions / grid), truth.basis)
    per_query = np.where(truth.valid, (predicted * truth.ranks).sum(0), np.nan)
    return Agreement(per_query, predicted, int((~valid).sum()))


@dataclass(frozen=True)
class Draws:
    """Bootstrap weights, shared by all scores so that differences between them are paired."""

    masks: np.ndarray  # (B, M), how often each mask was drawn
    queries: np.ndarray  # (B, Q)


def draw(num_masks: int, num_queries: int, count: int = 2000, seed: int = 0) -> Draws:
    """Masks and queries, both drawn with replacement: the pigeonhole bootstrap (Owen 2007,
    arXiv:0712.1111).
    """
    generator = np.random.default_rng(seed)

    def weights(size: int) -> np.ndarray:
        return generator.multinomial(size, np.full(size, 1 / size), count).astype(np.float64)

    masks = weights(num_masks)
    return Draws(masks, weights(num_queries))


def bootstrap(result: Agreement, truth: Truth, draws: Draws) -> np.ndarray:
    """(B,): the mean agreement over queries, those without a defined one left out, in every draw;
    NaN without any.
    """
    correlations = weighted_correlations(result.predicted, truth.ranks, draws)
    return _means(correlations, draws.queries * truth.valid)


def _means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(B,): means of values (B, Q) with these weights; NaN where all weights of a draw are zero."""
    with np.errstate(invalid="ignore"):
        return (values * weights).sum(1) / weights.sum(1)


def weighted_correlations(x: np.ndarray, y: np.ndarray, draws: Draws) -> np.ndarray:
    """(B, Q): correlation of the columns of x with those of y (M, Q) in every draw of masks.

    Of ranks, which stay those of all masks; means and norms are those of the draw. (Ranks within
    each draw move the ends of the intervals in results/ by at most 0.006, and are ten times as
    slow.)
    """
    w = draws.masks / np.maximum(draws.masks.sum(1, keepdims=True), 1.0)
    mean_x = w @ x
    mean_y = w @ y
    covariance = w @ (x * y) - mean_x * mean_y
    variance = (w @ (x * x) - mean_x**2) * (w @ (y * y) - mean_y**2)
    return covariance / np.sqrt(np.maximum(variance, 1e-12 / len(x) ** 2))


def interval(samples: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of bootstrap samples (B,), those that are NaN left out; NaN where
    all are.
    """
    there = samples[~np.isnan(samples)]
    low, high = np.quantile(there, [0.025, 0.975]) if there.size else (np.nan, np.nan)
    return float(low), float(high)


def chance(result: Agreement, truth: Truth, count: int = 500, seed: int = 0) -> float:
    """Half width of the 95 % interval of the mean agreement where masks are permuted against
    margins.
    """
    generator = np.random.default_rng(seed)
    weights = truth.valid / max(truth.valid.sum(), 1)
    orders = (generator.permutation(len(truth.ranks)) for _ in range(count))
    means = [(result.predicted[order] * truth.ranks).sum(0) @ weights for order in orders]
    return float(np.quantile(np.abs(means), 0.95))


@dataclass(frozen=True)
class Ceiling:
    """A noise ceiling, and how far two retrains on the same rows agree at all."""

    value: float
    draws: np.ndarray  # (B,), the value in every draw
    agreement: float  # Spearman correlation over masks of two repeats: mean over pairs and queries
    agreements: np.ndarray  # (B,)

    @property
    def known(self) -> bool:
        """Whether there is a signal: repeats agree, and the interval of the ceiling does not come
        near zero.

        Noise alone also has a ceiling above zero, because a query's negative correlation counts as
        0.
        """
        return (
            interval(self.agreements)[0] > 0
            and interval(self.draws)[0] > LEAST_CEILING * self.value
        )


def ceiling_of(
    margins: np.ndarray, draws: Draws, controls: np.ndarray | None = None
) -> Ceiling | None:
    """Noise ceiling: the highest LDS that scores can reach against means of R repeats.

    The mean over queries of the square root of each query's reliability of the mean, R r / (1 + (R
    - 1) r) (Spearman 1910, Brown 1910), with r the mean Spearman correlation, over pairs of
    repeats, between the margins of two repeats; a negative r counts as 0. Its bias for few repeats:
    lab/ceiling.py. None for one repeat, too few masks, or margins that never vary.
    """
    repeats = margins.shape[1]
    complete = np.isfinite(margins).all((1, 2))
    if repeats < 2 or complete.sum() < MIN_MASKS:
        return None
    basis = _basis(int(complete.sum()), None if controls is None else controls[complete])
    found = [_standardize(repeat, basis) for repeat in margins[complete].transpose(1, 0, 2)]
    valid = np.all([varies for _, varies in found], axis=0)
    if not valid.any():
        return None
    pairs = [(found[i][0], found[j][0]) for i in range(repeats) for j in range(i)]
    agreements = np.stack([(a * b).sum(0) for a, b in pairs])[:, valid]
    drawn = Draws(draws.masks[:, complete], draws.queries)
    sampled = [weighted_correlations(a, b, drawn) for a, b in pairs]
    weights = draws.queries * valid
    return Ceiling(
        float(_reliability(agreements, repeats).mean()),
        _means(_reliability(sampled, repeats), weights),
        float(agreements.mean()),
        _means(np.mean(sampled, axis=0), weights),
    )


def share_of_ceiling(lds: float, sample: np.ndarray, ceiling: Ceiling | None) -> dict:
    """{"share", "share_interval"}: an LDS divided by the noise ceiling; nothing where that is not
    known.

    sample: the LDS in the bootstrap draws (B,) of the ceiling.
    """
    if ceiling is None or not ceiling.known:
        return {}
    return {
        "share": lds / ceiling.value,
        "share_interval": interval(sample / np.maximum(ceiling.draws, 1e-12)),
    }


def _reliability(pairs, repeats: int) -> np.ndarray:
    """Square root of the reliability of a mean of repeats, from the correlations of their
    pairs (arrays of one shape).
    """
    r = np.maximum(np.mean(pairs, axis=0), 0.0)
    return np.sqrt(repeats * r / (1 + (repeats - 1) * r))


def mean_spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over rows of the Spearman correlation of a (Q, N) with b (Q, N); constant rows count as
    0.
    """
    basis = _basis(a.shape[1], None)
    return float((_standardize(a.T, basis)[0] * _standardize(b.T, basis)[0]).sum(0).mean())


def wilson(hits: float, count: int) -> tuple[float, float]:
    """95 % interval of a share hits / count (Wilson 1927); (0, 1) where nothing was counted."""
    if count == 0:
        return 0.0, 1.0
    z = norm.ppf(0.975)
    share = hits / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(share * (1 - share) / count + z * z / (4 * count**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def t_interval(differences: np.ndarray) -> tuple[float, list[float] | None]:
    """(mean, its 95 % interval by Student's t) of differences (R,), those that are not finite left
    out; no interval of a single one.
    """
    values = differences[np.isfinite(differences)]
    mean = float(values.mean()) if values.size else float("nan")
    if len(values) < 2:
        return mean, None
    half = float(student.ppf(0.975, len(values) - 1) * sem(values))
    return mean, [mean - half, mean + half]


def count_to_tell(mean: float, half: float, count: int, most: int) -> int | None:
    """Fewest values of this mean and spread whose 95 % interval by Student's t leaves out 0; None
    if that takes more than `most`.

    half: half the width of the interval of `count` values.
    """
    counts = np.arange(2, max(count, most) + 1)
    quantiles = student.ppf(0.975, counts - 1) / student.ppf(0.975, count - 1)
    enough = counts[half * quantiles * np.sqrt(count / counts) < abs(mean)]
    return int(enough[0]) if enough.size else None
