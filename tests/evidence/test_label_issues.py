"""Scores of labels are probabilities of the given labels, and issues are other predictions."""

import numpy as np
import pytest
import torch

from attribution.data.duplicates import Relatives
from attribution.data.rows import Rows
from attribution.data.tasks import GlueTask
from attribution.evidence.label_issues import Ranking, label_issues
from attribution.replay.descent import outputs_of
from pipeline import compute_margin

N = 30


class Labelled(Rows):
    """Rows without tokens."""

    def __init__(self, task: GlueTask, labels: np.ndarray) -> None:
        self.task = task
        self.labels = labels

    def columns(self) -> list[list[str]]:
        return [[f"text {row}" for row in range(N)]]


def issues_of(num_labels: int):
    """(issues in the order of the rows, logits (N, C), labels (N,))."""
    draw = np.random.default_rng(num_labels)
    names = ("no", "yes", "perhaps")[:num_labels] if num_labels > 1 else ()
    labels = draw.normal(size=N) if num_labels == 1 else draw.integers(num_labels, size=N)
    logits = draw.normal(size=(N, num_labels)) * 3
    outputs = logits @ outputs_of(num_labels).numpy()
    train = Labelled(GlueTask(("text",), num_labels, names), labels)
    ranking = Ranking("loss", outputs, np.arange(N))
    return label_issues(train, ranking, [Relatives([], [])] * N), logits, labels


@pytest.mark.parametrize("num_labels", [2, 3])
def test_a_score_is_the_probability_of_the_given_label_whose_log_odds_are_the_margin(num_labels):
    issues, logits, labels = issues_of(num_labels)
    margins = compute_margin(torch.from_numpy(logits), torch.from_numpy(labels))
    expected = 1 / (1 + np.exp(-margins.numpy()))
    assert [one.label_score for one in issues] == pytest.approx(expected.tolist(), rel=1e-6)
    names = ("no", "yes", "perhaps")
    for one, row, label in zip(issues, logits, labels, strict=True):
        assert (one.given_label, one.predicted_label) == (names[label], names[row.argmax()])
        assert one.is_label_issue == (label != row.argmax())
    assert 0 < sum(one.is_label_issue for one in issues) < N


def test_a_regression_has_values_and_minus_the_squared_error_and_no_issues():
    issues, logits, labels = issues_of(1)
    for one, row, label in zip(issues, logits, labels, strict=True):
        assert (one.given_label, one.predicted_label) == (label, row[0])
        assert one.label_score == pytest.approx(-((row[0] - label) ** 2))
        assert one.is_label_issue is None
