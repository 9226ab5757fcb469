"""The linear datamodeling score of many scores against one ground truth, with everything that stands beside it.

Symbols: M masks, N training rows, Q queries, R repeats.
"""

import numpy as np

from attribution.evidence import stats
from attribution.files import Refused

REFERENCE = "ekfac"  # the score that others are compared with


def evaluate(scores: dict[str, np.ndarray], masks: np.ndarray, margins: np.ndarray, labels, num_bootstrap: int) -> dict:
    """Everything that is reported, as plain numbers. labels (N,): classes to control for, or None."""
    complete = stats.complete_masks(margins)
    missing = int((~np.isfinite(margins)).any(2).sum())
    masks, margins = masks[complete], margins[complete]
    if len(masks) < stats.MIN_MASKS:
        raise Refused(f"only {len(masks)} masks have finite margins; a correlation needs {stats.MIN_MASKS}")
    controls = {"plain": None} | ({} if labels is None else {"balanced": stats.kept_counts(masks, labels)})
    draws = stats.draw(len(masks), margins.shape[2], num_bootstrap)
    means = stats.mean_margins(margins)
    result = {
        "masks": len(masks), "incomplete_masks": int((~complete).sum()), "missing_repeats": missing,
        "repeats": margins.shape[1], "queries": margins.shape[2], "rows": masks.shape[1], "alpha": float(masks.mean()),
        "scores": {name: {} for name in scores}, "ceiling": {}, "constant_queries": {}, "chance": {},
    }  # fmt: skip
    for kind, columns in controls.items():
        truth = stats.make_truth(means, columns)
        agreements = {name: stats.agreement(values, masks, truth) for name, values in scores.items()}
        samples = {name: stats.bootstrap(agreed, truth, draws) for name, agreed in agreements.items()}
        result["ceiling"][kind] = stats.noise_ceiling(margins, columns)
        result["constant_queries"][kind] = int((~truth.valid).sum())
        result["chance"][kind] = stats.chance(agreements["random"], truth)
        for name, agreed in agreements.items():
            entry = {"lds": agreed.mean, "interval": stats.interval(samples[name]), "constant": agreed.constant}
            if REFERENCE in scores and name != REFERENCE:
                entry["difference"] = agreed.mean - agreements[REFERENCE].mean
                entry["difference_interval"] = stats.interval(samples[name] - samples[REFERENCE])
            result["scores"][name][kind] = entry
    for name, values in scores.items():
        both = REFERENCE in scores
        result["scores"][name]["spearman_with_ekfac"] = stats.mean_spearman(values, scores[REFERENCE]) if both else None
    result["growth"] = growth(scores, masks, means, draws)
    return result


def growth(scores: dict[str, np.ndarray], masks: np.ndarray, means: np.ndarray, draws: stats.Draws) -> dict:
    """LDS on the first masks only, with intervals: whether there are enough of them."""
    counts = sorted({max(stats.MIN_MASKS, round(len(masks) * share)) for share in (0.1, 0.2, 0.3, 0.5, 0.7, 0.85, 1.0)})
    lines: dict[str, list] = {name: [] for name in scores}
    for count in counts:
        truth = stats.make_truth(means[:count])
        draws = stats.draw(count, means.shape[1], 300)
        for name, values in scores.items():
            agreed = stats.agreement(values, masks[:count], truth)
            lines[name].append([agreed.mean, *stats.interval(stats.bootstrap(agreed, truth, draws))])
    return {"masks": counts, "lines": lines}
