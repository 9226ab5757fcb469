"""Predicted and measured changes are compared removal by removal."""

import numpy as np
import pytest

from lab.predicted import agreement, draw, points_of, predicted_markdown, summary


def verdicts(slope: float) -> list[dict]:
    """Verdicts on 12 queries whose measured changes are `slope` times the predicted ones."""
    generator = np.random.default_rng(0)
    found = []
    for query in range(12):
        arms = {}
        for arm, size in (("replay", 1.0), ("random, same classes", 0.1)):
            arms[arm] = []
            for removed in (20, 60):
                predicted = -size * removed / 20 * (1 + generator.random())
                change = slope * predicted
                level = {"removed": removed, "predicted": [predicted, None], "change": change}
                arms[arm].append(level | {"interval": [change - 0.1, change + 0.1]})
        found.append({"query": query, "score": "replay", "arms": arms})
    return found


def test_slope_and_correlation_are_those_of_the_points():
    points = points_of(verdicts(1.5))
    assert len(points) == 48
    found = summary(points)
    assert set(found) == {"20 rows", "60 rows", "the score's rows", "with random rows"}
    for one in found.values():
        assert one["slope"][0] == pytest.approx(1.5) and one["pearson"][0] == pytest.approx(1)
        low, high = one["slope"][1]
        assert low <= 1.5 + 1e-9 and high >= 1.5 - 1e-9
    assert found["20 rows"]["points"] == 12


def test_removals_without_a_prediction_or_a_finite_retrain_are_left_out():
    made = verdicts(1.0)
    made[0]["arms"]["replay"][0]["predicted"] = None
    made[1]["arms"]["replay"][1]["change"] = float("nan")
    assert len(points_of(made)) == 46


def test_the_table_and_the_figure_are_made_of_the_same_result(tmp_path):
    points = points_of(verdicts(0.5))
    result = {"dataset": "demo", "queries": 12, "points": points, "agreement": summary(points)}
    assert "0.50 [0.50, 0.50]" in predicted_markdown(result)
    draw(result, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000
    assert agreement(points)["queries"] == 12
