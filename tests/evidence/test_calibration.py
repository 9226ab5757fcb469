"""A slope is what it was made with, its interval covers it, and no score without worth gets a
margin.
"""

from dataclasses import replace

import numpy as np
import pytest

from attribution.evidence.calibration import MIN_MASKS, Slope, random_subsets, slope
from attribution.files import sha256_of, write_json, write_npz
from attribution.training.run import Run
from pipeline import MARGIN, TASKS

M, N, Q, R = 40, 60, 25, 2


def made(worth: float, noise: float = 1.0, seed: int = 0):
    """(scores, masks, margins) where a unit of score is worth so much margin; every query has a
    level of its own.
    """
    generator = np.random.default_rng(seed)
    scores = generator.standard_normal((Q, N)) * 1e4
    masks = (generator.random((M, N)) < 0.5).astype(np.uint8)
    level = generator.standard_normal(Q) * 10
    margins = (
        (masks @ scores.T)[:, None] * worth + level + noise * generator.standard_normal((M, R, Q))
    )
    return scores, masks, margins.astype(np.float32)


def test_the_slope_is_recovered_whatever_the_level_of_a_query():
    exact = slope(*made(1e-5, noise=0.0))
    assert exact.value == pytest.approx(1e-5, rel=1e-4) and exact.low == pytest.approx(
        1e-5, rel=1e-3
    )
    noisy = slope(*made(1e-5))
    assert noisy.low < 1e-5 < noisy.high and noisy.usable
    assert (noisy.masks, noisy.repeats) == (M, R) and noisy.kept == pytest.approx(0.5, abs=0.05)


def test_the_interval_covers_the_truth_in_most_of_many_worlds():
    found = [slope(*made(1e-5, 5.0, seed), count=200) for seed in range(40)]
    assert sum(one.low < 1e-5 < one.high for one in found) >= 33


def test_scores_that_say_nothing_get_no_margin():
    usable = [slope(*made(0.0, 1.0, seed), count=200).usable for seed in range(20)]
    assert sum(usable) <= 3  # 2.5 % in expectation
    assert Slope(1.0, 0.0, 2.0, M, R, 0.5).margin(3.0) is None
    assert Slope(-2.0, -3.0, -1.0, M, R, 0.5).margin(3.0) is None
    assert Slope(2.0, 1.0, 3.0, M, R, 0.5).margin(-2.0) == (-4.0, -6.0, -2.0)
    assert not slope(np.zeros((Q, N)), *made(1.0)[1:]).usable


def test_only_random_subsets_of_this_recipe_start_rows_and_queries_calibrate(tmp_path):
    """Retrains that were made for a query are in the same store, and are not read."""
    _, masks, margins = made(1.0)
    run = Run(
        folder=tmp_path,
        dataset_name="demo",
        task=TASKS["demo"],
        weights="trained",
        train_rows="rows",
        tokenizer="tokenizer",
        max_length=8,
        inputs=[],
        files={},
        num_labels=2,
        recipe={"learning_rate": 1.0},
        start="weights",
    )
    place = tmp_path / "retraining/abc"
    write_npz(place / "lds_x.npz", masks=masks, margins=margins)
    made_from = {"recipe": run.recipe, "training rows": "rows", "query rows": "queries"}
    made_from |= {"run's start": run.start_parts(), "margin": MARGIN}
    arrays = {"arrays": sha256_of(place / "lds_x.npz")}
    for part in made_from:
        write_json(place / "lds_x.json", {"fingerprint": made_from | {part: "other"}} | arrays)
        assert random_subsets(run, "queries") is None
    write_json(
        place / "lds_x.json",
        {"fingerprint": made_from, "arrays": "of another study: killed between the two"},
    )
    assert random_subsets(run, "queries") is None
    write_json(place / "lds_x.json", {"fingerprint": made_from} | arrays)
    for change in ({"start": "other"}, {"num_hidden_layers": 1}, {"new_head": True}):
        assert random_subsets(replace(run, **change), "queries") is None
    write_npz(place / "ab/retrain_for_a_query.npz", masks=masks, margins=margins)
    found = random_subsets(run, "queries")
    assert (
        found is not None and np.array_equal(found[0], masks) and np.array_equal(found[1], margins)
    )
    write_npz(place / "lds_x.npz", masks=masks[: MIN_MASKS - 1], margins=margins[: MIN_MASKS - 1])
    write_json(
        place / "lds_x.json", {"fingerprint": made_from, "arrays": sha256_of(place / "lds_x.npz")}
    )
    assert random_subsets(run, "queries") is None
