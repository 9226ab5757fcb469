"""The metrics are GLUE's, through the interface of evaluate."""

import numpy as np
import pytest

from attribution.training.metrics import GlueMetric


def test_classification_metrics_equal_their_formulas_on_a_table_of_counts():
    # 3 true positives, 1 false positive, 2 false negatives, 4 true negatives.
    references = np.array([1] * 3 + [0] + [1] * 2 + [0] * 4)
    predictions = np.array([1] * 3 + [1] + [0] * 2 + [0] * 4)
    result = GlueMetric(("accuracy", "f1", "matthews_correlation"), regression=False).compute(
        predictions=predictions, references=references
    )
    assert result["accuracy"] == pytest.approx(0.7)
    assert result["f1"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    assert result["matthews_correlation"] == pytest.approx((3 * 4 - 1 * 2) / np.sqrt(4 * 5 * 5 * 6))


def test_correlations_see_lines_ranks_and_constants():
    metric = GlueMetric(("pearson", "spearmanr"), regression=True)
    x = np.arange(5.0)
    assert metric.compute(predictions=x**3, references=x)["spearmanr"] == pytest.approx(1)
    assert metric.compute(predictions=2 * x + 1, references=x)["pearson"] == pytest.approx(1)
    assert metric.compute(predictions=np.ones(5), references=x) == {"pearson": 0.0, "spearmanr": 0.0}
