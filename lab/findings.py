"""Wrong labels: rankings of the training rows against a record of which labels are wrong.

Symbols: N training rows.
"""

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from attribution.data.dataset import GlueDataset
from attribution.evidence.stats import interval
from attribution.files import Refused
from attribution.training.fit import predict
from pipeline import compute_margin

TOP = (0.05, 0.1, 0.2)  # shares of the rows that are looked at
MEASURES = ("auroc", *(f"recall at {share:.0%}" for share in TOP))
NUM_BOOTSTRAP = 1000


def found(
    ranking: np.ndarray, wrong: np.ndarray, num_bootstrap: int = NUM_BOOTSTRAP, seed: int = 0
) -> dict:
    """AUROC and recall of a ranking (N,), suspicious rows high, for wrong labels (N,), with 95 %
    intervals.

    AUROC: the chance that a wrong row ranks above a right one. Recall: the share of the wrong rows
    among the top shares of all rows. Intervals: bootstrap over rows. Raises Refused for a ranking
    that is not finite.
    """
    if not np.isfinite(ranking).all():
        raise Refused("a ranking of the rows is not finite: a model behind it diverged")
    among = [within_top(ranking, round(share * len(wrong))) for share in TOP]

    def measure(rows: np.ndarray) -> list[float]:
        recalls = (float(np.mean(top[rows][wrong[rows]])) for top in among)
        return [float(roc_auc_score(wrong[rows], ranking[rows])), *recalls]

    generator = np.random.default_rng(seed)
    samples = []
    for _ in range(num_bootstrap):
        rows = generator.integers(len(wrong), size=len(wrong))
        if 0 < wrong[rows].sum() < len(rows):
            samples.append(measure(rows))
    values = measure(np.arange(len(wrong)))
    return {
        name: {"value": value, "interval": interval(drawn)}
        for name, value, drawn in zip(MEASURES, values, np.array(samples).T, strict=True)
    }


def within_top(ranking: np.ndarray, count: int) -> np.ndarray:
    """(N,): the chance of each row to be among the first `count` of a ranking (N,), ties broken at
    random.
    """
    least = np.sort(ranking)[len(ranking) - count] if count else np.inf
    above = ranking > least
    tied = ranking == least
    return above + tied * ((count - above.sum()) / max(tied.sum(), 1))


def loss_of_margin(margins: np.ndarray) -> np.ndarray:
    """Cross-entropy in nats of the label whose margin this is: the margin is the log-odds of the
    label.
    """
    return np.logaddexp(0.0, -margins.astype(np.float64))


def row_losses(model: torch.nn.Module, train: GlueDataset) -> np.ndarray:
    """(N,): the loss of each training row under the model, in nats."""
    return loss_of_margin(
        compute_margin(predict(model, train), torch.from_numpy(train.labels)).numpy()
    )
