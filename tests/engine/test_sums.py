"""Sums over the data set lose no digits, whatever their products are computed in; what was stored
still counts.
"""

import pytest
import torch
from running import analyze_quickly, close, influence_of, refusal, scores_of
from safetensors.torch import load_file

import analyze
from attribution.engine import trackers
from attribution.engine.contractions import add_squares
from attribution.files import Refused

# Parts of the fingerprints of factors and full-rank scores since the first version with float64
# covariances.
FACTOR_PARTS = {
    "weights",
    "training rows",
    "strategy",
    "precision",
    "covariance type",
    "path",
    "seed",
}
SCORE_PARTS = FACTOR_PARTS | {"damping", "query rows", "rank", "rank seed"}


def test_fingerprints_of_factors_and_full_rank_scores_have_the_parts_that_they_had(run_copy):
    influence = influence_of(run_copy)
    assert set(influence.factor_parts) == FACTOR_PARTS and set(influence.score_parts) == SCORE_PARTS


def test_products_in_float32_are_another_fingerprint_where_sums_are_in_float64(run_copy):
    asked = ["--covariance_products", "float32"]
    assert influence_of(run_copy, *asked).factor_parts["covariance products"] == "float32"
    for other in (["--covariance_dtype", "float32"], ["--factor_strategy", "diagonal"]):
        assert "covariance products" not in influence_of(run_copy, *asked, *other).factor_parts
    analyze_quickly(run_copy)
    with pytest.raises(Refused, match="other covariance products"):
        analyze_quickly(run_copy, *asked)


def test_products_in_float32_are_summed_in_float64_and_the_scores_stay(run_copy):
    analyze_quickly(run_copy, "--train_batch_size", "2")
    expected = scores_of(run_copy)
    analyze_quickly(
        run_copy, "--train_batch_size", "2", "--covariance_products", "float32", "--overwrite"
    )
    folder = run_copy / "demo/influence/factors/ekfac"
    for name in ("activation_covariance", "gradient_covariance"):
        assert all(
            value.dtype == torch.float64
            for value in load_file(folder / f"{name}.safetensors").values()
        )
    found = scores_of(run_copy)
    assert not torch.equal(found, expected) and close(found, expected, 1e-3)


def test_stock_kronfluence_has_no_products_of_its_own(run_copy, capsys):
    asked = [
        "--dataset_name",
        "demo",
        "--checkpoint_dir",
        str(run_copy),
        "--stock",
        "--covariance_products",
        "float32",
    ]
    assert "--covariance_products is ours" in refusal(capsys, analyze.main, asked)


def test_covariances_are_never_multiplied_in_tf32(run_copy, monkeypatch):
    """With --tf32 torch is told "high"; in a covariance's product it is not."""
    seen, real = set(), trackers.gram
    monkeypatch.setattr(
        trackers, "gram", lambda x: seen.add(torch.get_float32_matmul_precision()) or real(x)
    )
    try:
        analyze_quickly(run_copy, "--tf32", "--covariance_products", "float32")
        assert seen == {"highest"} and torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_a_float64_sum_of_squares_goes_on_where_a_float32_sum_stalls():
    g, a, total = torch.ones(1, 2, 3), torch.full((1, 2, 4), 0.5), {}
    for dtype in (torch.float32, torch.float64):
        total[dtype] = torch.full((3, 4), 2.0**24, dtype=dtype)
        for _ in range(8):
            add_squares(total[dtype], g, a, 100)
    assert (total[torch.float32] == 2.0**24).all() and (total[torch.float64] == 2.0**24 + 8).all()


def test_lambda_is_stored_in_float32(run_copy):
    analyze_quickly(run_copy)
    stored = load_file(run_copy / "demo/influence/factors/ekfac/lambda_matrix.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float32}
