"""The linear datamodeling score of many scores against one ground truth, with everything that
stands beside it.

Symbols: M masks, N training rows, Q queries, R repeats, K columns that are controlled for.
"""

from dataclasses import dataclass, field

import numpy as np

from attribution.evidence import stats
from attribution.files import Refused

REFERENCE = "ekfac"  # the score that others are compared with
TOP = 10  # rows of a query that count as its largest


@dataclass(frozen=True)
class Evidence:
    """What retraining on M subsets said, and what scores are to be controlled for."""

    masks: np.ndarray  # (M, N), 1 = kept
    margins: np.ndarray  # (M, R, Q)
    controls: np.ndarray | None = (
        None  # (M, K): kept rows of each class, or the sum of their labels
    )
    outputs: np.ndarray | None = None  # (M, R, Q), of a regression
    residuals: np.ndarray | None = (
        None  # (Q,): label minus output of the scored model, of a regression
    )

    def of(self, chosen: np.ndarray) -> "Evidence":
        """The same of some masks only."""
        controls = None if self.controls is None else self.controls[chosen]
        outputs = None if self.outputs is None else self.outputs[chosen]
        return Evidence(self.masks[chosen], self.margins[chosen], controls, outputs, self.residuals)

    def kinds(self) -> dict[str, tuple]:
        """Kind -> (what retrains said (M, R, Q), controls, sign of each query's scores (Q,)).

        plain: margins; balanced: the same, controlled; output: a regression's own output. Its
        gradient is the margin's divided by twice the residual, so that a score of the margin
        predicts it up to the residual's sign. Members have residuals of their own; what they say of
        the output together is `Beside.outputs`.
        """
        one = np.ones(self.margins.shape[2])
        found: dict[str, tuple] = {"plain": (self.margins, None, one)}
        if self.controls is not None:
            found["balanced"] = (self.margins, self.controls, one)
        if self.outputs is not None and self.residuals is not None:
            found["output"] = (self.outputs, None, np.sign(self.residuals))
        return found


@dataclass(frozen=True)
class Beside:
    """Scores that are not evaluated as rows of the table, but stand beside those that are."""

    starts: dict[str, np.ndarray] = field(
        default_factory=dict
    )  # name -> (Q, N) of the model before fine-tuning
    singles: dict[str, list[np.ndarray]] = field(
        default_factory=dict
    )  # name -> (Q, N) of each member
    outputs: dict[str, np.ndarray] = field(
        default_factory=dict
    )  # name -> (Q, N): what members say of the output


def usable_masks(margins: np.ndarray) -> np.ndarray:
    """(M,) bool: masks for which margins (M, R, Q) are complete. Raises Refused where they are too
    few to correlate.
    """
    complete = stats.complete_masks(margins)
    if complete.sum() < stats.MIN_MASKS:
        raise Refused(
            f"only {complete.sum()} masks have finite margins; a correlation needs "
            f"{stats.MIN_MASKS}"
        )
    return complete


def evaluate(
    scores: dict[str, np.ndarray],
    evidence: Evidence,
    num_bootstrap: int,
    beside: Beside | None = None,
) -> dict:
    """Everything that is reported, as plain numbers. scores: name -> (Q, N); `random` is among
    them.
    """
    beside = beside or Beside()
    complete = usable_masks(evidence.margins)
    missing = int((~np.isfinite(evidence.margins)).any(2).sum())
    evidence = evidence.of(complete)
    masks, margins = evidence.masks, evidence.margins
    draws = stats.draw(len(masks), margins.shape[2], num_bootstrap)
    result = {
        "masks": len(masks),
        "incomplete_masks": int((~complete).sum()),
        "missing_repeats": missing,
        "repeats": margins.shape[1],
        "queries": margins.shape[2],
        "rows": masks.shape[1],
        "alpha": float(masks.mean()),
        "scores": {
            name: beside_score(name, values, scores, beside) for name, values in scores.items()
        },
        "ceiling": {},
        "ceiling_interval": {},
        "agreement": {},
        "ceiling_known": {},
        "constant_queries": {},
        "chance": {},
    }
    for kind, (truth, columns, sign) in evidence.kinds().items():
        add_kind(result, kind, scores, masks, (truth, columns, sign), draws, beside)
    result["growth"] = growth(scores, masks, stats.mean_margins(margins))
    return result


def beside_score(
    name: str, values: np.ndarray, scores: dict[str, np.ndarray], beside: Beside
) -> dict:
    """What is said of a score without any retrain: rows at the top, agreement with EKFAC and with
    its own start.
    """
    top = np.argsort(-np.abs(values), axis=1, kind="stable")[:, :TOP]
    entry: dict = {
        "rows_at_top": len(np.unique(top)),
        "spearman_with_ekfac": None,
        "spearman_with_start": None,
    }
    if REFERENCE in scores:
        entry["spearman_with_ekfac"] = stats.mean_spearman(values, scores[REFERENCE])
    if name in beside.starts:
        entry["spearman_with_start"] = stats.mean_spearman(values, beside.starts[name])
    return entry


def add_kind(
    result: dict,
    kind: str,
    scores: dict[str, np.ndarray],
    masks: np.ndarray,
    evidence: tuple,
    draws: stats.Draws,
    beside: Beside,
) -> None:
    """Adds one column of the table. evidence: a value of `Evidence.kinds`."""
    margins, columns, sign = evidence
    truth = stats.make_truth(stats.mean_margins(margins), columns)
    asked = {name: values * sign[:, None] for name, values in scores.items()}
    asked |= beside.outputs if kind == "output" else {}
    agreements = {name: stats.agreement(values, masks, truth) for name, values in asked.items()}
    samples = {name: stats.bootstrap(agreed, truth, draws) for name, agreed in agreements.items()}
    ceiling = stats.ceiling_of(margins, draws, columns)
    result["ceiling"][kind] = ceiling and ceiling.value
    result["ceiling_interval"][kind] = ceiling and stats.interval(ceiling.draws)
    result["ceiling_known"][kind] = ceiling is not None and ceiling.known
    result["agreement"][kind] = ceiling and [ceiling.agreement, *stats.interval(ceiling.agreements)]
    result["constant_queries"][kind] = int((~truth.valid).sum())
    result["chance"][kind] = max(stats.chance(agreed, truth) for agreed in agreements.values())
    for name, agreed in agreements.items():
        entry = {
            "lds": agreed.mean,
            "interval": stats.interval(samples[name]),
            "constant": agreed.constant,
        }
        if REFERENCE in scores and name != REFERENCE:
            entry["difference"] = agreed.mean - agreements[REFERENCE].mean
            entry["difference_interval"] = stats.interval(samples[name] - samples[REFERENCE])
        entry |= stats.share_of_ceiling(agreed.mean, samples[name], ceiling)
        if name in beside.singles and kind != "output":
            entry["single"] = [
                stats.agreement(one, masks, truth).mean for one in beside.singles[name]
            ]
        result["scores"][name][kind] = entry


def growth(scores: dict[str, np.ndarray], masks: np.ndarray, means: np.ndarray) -> dict:
    """LDS on the first masks only, with intervals: whether there are enough of them."""
    counts = sorted(
        {
            max(stats.MIN_MASKS, round(len(masks) * share))
            for share in (0.1, 0.2, 0.3, 0.5, 0.7, 0.85, 1.0)
        }
    )
    lines: dict[str, list] = {name: [] for name in scores}
    for count in counts:
        truth = stats.make_truth(means[:count])
        draws = stats.draw(count, means.shape[1], 300)
        for name, values in scores.items():
            agreed = stats.agreement(values, masks[:count], truth)
            lines[name].append(
                [agreed.mean, *stats.interval(stats.bootstrap(agreed, truth, draws))]
            )
    return {"masks": counts, "lines": lines}
