"""The metrics are GLUE's."""

import numpy as np
import pytest

from attribution.data.tasks import TASKS
from attribution.training.metrics import compute_metrics, doubts


def test_classification_metrics_equal_their_formulas_on_a_table_of_counts():
    # 3 true positives, 1 false positive, 2 false negatives, 4 true negatives.
    references = np.array([1] * 3 + [0] + [1] * 2 + [0] * 4)
    predictions = np.array([1] * 3 + [1] + [0] * 2 + [0] * 4)
    names = ("accuracy", "f1", "matthews_correlation")
    result = compute_metrics(names, predictions, references)
    assert result["accuracy"] == pytest.approx(0.7)
    assert result["f1"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    assert result["matthews_correlation"] == pytest.approx((3 * 4 - 1 * 2) / np.sqrt(4 * 5 * 5 * 6))


def test_correlations_see_lines_ranks_and_constants():
    names = ("pearson", "spearmanr")
    x = np.arange(5.0)
    assert compute_metrics(names, x**3, x)["spearmanr"] == pytest.approx(1)
    assert compute_metrics(names, 2 * x + 1, x)["pearson"] == pytest.approx(1)
    assert compute_metrics(names, np.ones(5), x) == {"pearson": 0.0, "spearmanr": 0.0}


class Rows:
    """As much of a data set as `doubts` looks at."""

    def __init__(self, task: str, labels: list) -> None:
        self.task, self.labels = TASKS[task], np.array(labels)

    def __len__(self) -> int:
        return len(self.labels)


@pytest.mark.parametrize(
    ("task", "labels", "metrics", "wanted"),
    [
        (
            "sst2",
            [0] * 50 + [1] * 50,
            {"accuracy": 0.57},
            "accuracy of 0.570 cannot be told from the 0.500 of always",
        ),
        ("sst2", [0] * 50 + [1] * 50, {"accuracy": 0.59}, None),
        ("sst2", [0] * 50 + [1] * 50, {"accuracy": 0.1}, "accuracy of 0.100 is below the 0.500 of"),
        ("sst2", [0] * 10 + [1] * 90, {"accuracy": 0.9}, "always saying 'positive'"),
        (
            "cola",
            [0] * 50 + [1] * 50,
            {"matthews_correlation": 0.15},
            "matthews correlation of 0.150",
        ),
        ("cola", [0] * 50 + [1] * 50, {"matthews_correlation": 0.18}, None),
        (
            "stsb",
            [1.0] * 100,
            {"pearson": 0.1, "spearmanr": 0.5},
            "pearson of 0.100 cannot be told from 0;",
        ),
        (
            "stsb",
            [1.0] * 100,
            {"pearson": -0.5, "spearmanr": -0.5},
            "pearson of -0.500 is below 0;",
        ),
        ("stsb", [1.0] * 100, {"pearson": 0.6, "spearmanr": 0.5}, None),
    ],
)
def test_a_model_that_only_guesses_is_doubted(task, labels, metrics, wanted):
    found = doubts({"validation": metrics}, {"validation": Rows(task, labels)})
    assert len(found) == (wanted is not None) and (wanted or "") in "".join(found)
