"""GLUE's metrics behind the interface of `evaluate`, without fetching metric code from the hub."""

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from attribution.data.dataset import GlueDataset

ONE_SIDED = 1.645  # standard deviations that chance exceeds once in twenty


def _correlation(function):
    """Correlation of two columns; 0 where one of them is constant, for which none is defined."""

    def correlate(references, predictions) -> float:
        if np.ptp(references) == 0 or np.ptp(predictions) == 0:
            return 0.0
        return function(references, predictions).statistic

    return correlate


METRICS = {
    "accuracy": accuracy_score,
    "f1": f1_score,
    "macro_f1": lambda references, predictions: f1_score(
        references, predictions, average="macro", zero_division=0
    ),
    "matthews_correlation": matthews_corrcoef,
    "pearson": _correlation(pearsonr),
    "spearmanr": _correlation(spearmanr),
}


class GlueMetric(evaluate.Metric):
    """The named metrics of a task, computed together from predictions and references."""

    def __init__(self, names: tuple[str, ...], regression: bool, **kwargs) -> None:
        self.names = names
        self.value_type = "float32" if regression else "int64"
        super().__init__(experiment_id="-".join(names), keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        feature = datasets.Value(self.value_type)
        return evaluate.MetricInfo(
            description="GLUE's own metrics (arXiv:1804.07461, table 1)",
            citation="",
            inputs_description="predictions and references, one a row",
            features=datasets.Features({"predictions": feature, "references": feature}),
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        return {name: float(METRICS[name](references, predictions)) for name in self.names}


def doubts(results: dict[str, dict], validation: dict[str, GlueDataset]) -> list[str]:
    """A sentence for every validation split on which the model does no better than one that always
    says the same.

    results: split -> metrics. One-sided at 5 %: the accuracy against the share of the most frequent
    class, by the normal approximation; a correlation (Pearson's; Matthews', which is that of two
    binary columns) against 0, by Fisher's transformation (Fisher 1921: atanh r has standard
    deviation 1 / sqrt(n - 3)).
    """
    found = []
    for split, data in validation.items():
        result, count = results[split], max(len(data), 4)
        if "accuracy" in result:
            counts = np.bincount(data.labels, minlength=data.task.num_labels)
            share = float(counts.max() / counts.sum())
            name, least = "accuracy", share + ONE_SIDED * (share * (1 - share) / count) ** 0.5
            beside = (
                f"the {share:.3f} of always saying {data.task.class_names[int(counts.argmax())]!r}"
            )
        else:
            name = next(name for name in ("pearson", "matthews_correlation") if name in result)
            least, beside = float(np.tanh(ONE_SIDED / (count - 3) ** 0.5)), "0"
        if result[name] < least:
            found.append(
                f"{split}: the {name.replace('_', ' ')} of {result[name]:.3f} cannot be told from "
                f"{beside}; scores explain guesses then"
            )
    return found
