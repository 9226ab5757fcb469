"""GLUE's metrics (arXiv:1804.07461, table 1), and doubts about models that hardly pass chance."""

import numpy as np

from attribution.data.dataset import GlueDataset

LEAST_SPREAD = 0.25  # of a regression's outputs, in units of the labels' standard deviation
ONE_SIDED = 1.645  # standard deviations that chance exceeds once in twenty


def _accuracy(references, predictions) -> float:
    """Share of equal labels; sklearn's, without its second of import."""
    return np.mean(np.asarray(references) == predictions)


def _of_sklearn(name: str, **options):
    """Metric of this name from sklearn, which is imported when it is computed."""

    def metric(references, predictions) -> float:
        from sklearn import metrics

        return getattr(metrics, name)(references, predictions, **options)

    return metric


def _correlation(name: str):
    """Correlation of two columns by SciPy's function of this name; 0 if one of them is constant,
    for which none is defined.
    """

    def correlate(references, predictions) -> float:
        from scipy import stats

        if np.ptp(references) == 0 or np.ptp(predictions) == 0:
            return 0.0
        return getattr(stats, name)(np.float64(references), np.float64(predictions)).statistic

    return correlate


METRICS = {
    "accuracy": _accuracy,
    "f1": _of_sklearn("f1_score"),
    "macro_f1": _of_sklearn("f1_score", average="macro", zero_division=0),
    "matthews_correlation": _of_sklearn("matthews_corrcoef"),
    "pearson": _correlation("pearsonr"),
    "spearmanr": _correlation("spearmanr"),
}


def compute_metrics(
    names: tuple[str, ...], predictions: np.ndarray, references: np.ndarray
) -> dict[str, float]:
    """Metrics of these names, of predictions (N,) against references (N,)."""
    return {name: float(METRICS[name](references, predictions)) for name in names}


def doubts(results: dict[str, dict], validation: dict[str, GlueDataset]) -> list[str]:
    """Sentences about the validation splits on which the model does no better than a constant
    answer.

    results: split -> metrics. One-sided at 5 %: the accuracy against the share of the most frequent
    class, by the normal approximation; a correlation (Pearson's; Matthews', which is Pearson's of
    two binary columns) against 0, by Fisher's transformation (Fisher 1921: atanh r has standard
    deviation 1 / sqrt(n - 3)). A regression whose outputs hardly vary is doubted whatever they
    correlate with.
    """
    found = []
    for split, data in validation.items():
        result = results[split]
        count = max(len(data), 4)
        names = ("accuracy", "pearson", "matthews_correlation")
        name = next(name for name in names if name in result)
        if name == "accuracy":
            counts = np.bincount(data.labels)
            share = float(counts.max() / counts.sum())
            least = share + ONE_SIDED * (share * (1 - share) / count) ** 0.5
            frequent = data.task.class_names[int(counts.argmax())]
            chance = f"the {share:.3f} of always saying {frequent!r}"
        else:
            share = 0.0
            least = float(np.tanh(ONE_SIDED / (count - 3) ** 0.5))
            chance = "0"
        if result[name] < least:
            below = result[name] < 2 * share - least
            compared = "is below" if below else "cannot be told from"
            found.append(
                f"{split}: the {name.replace('_', ' ')} of {result[name]:.3f} {compared} {chance}; "
                "scores explain guesses then"
            )
        spread = result.get("spread", 1.0)
        if spread < LEAST_SPREAD:
            found.append(
                f"{split}: the outputs vary {spread:.2f} times as much as the labels, so they are "
                "nearly constant; train longer, or with a higher --learning_rate"
            )
    return found


def worth(result: dict, data: GlueDataset) -> str:
    """What the accuracy of a split is worth, in words; empty for other metrics."""
    if "accuracy" not in result:
        return ""
    counts = np.bincount(data.labels)
    frequent = data.task.name_of(int(counts.argmax()))
    right = round(result["accuracy"] * len(data))
    return (
        f"{right:,} of {len(data):,} are right; always saying {frequent!r} gets "
        f"{counts.max():,} right"
    )
