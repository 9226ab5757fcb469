"""Sums over the data set lose no digits, whatever dtype products have; fingerprints of results."""

import pytest
import torch
from running import DEMO, analyze_quickly, close, influence_of, refusal, scores_of
from safetensors.torch import load_file

import analyze
from attribution.engine import trackers
from attribution.engine.contractions import add_squares
from attribution.files import Refused

# Parts of the fingerprints of factors, self-influence and pairwise scores: named after settings.
FACTOR_PARTS = {
    "weights",
    "training rows",
    "factor strategy",
    "fisher",
    "use half precision",
    "stock",
    "seed",
    "covariance dtype",
    "tf32",
    "max factor rows",
}
SELF_PARTS = FACTOR_PARTS | {"damping factor"}
PAIRWISE_PARTS = SELF_PARTS | {"query gradient rank", "query rows", "margin"}


def test_fingerprints_are_of_weights_rows_and_the_settings_that_matter(run_copy):
    (exact,) = influence_of(run_copy).analyses
    assert set(exact.factor_parts) == FACTOR_PARTS - {"seed"}
    sampled = ("--fisher", "sampled")
    (analysis,) = influence_of(run_copy, *sampled).analyses
    assert set(analysis.factor_parts) == FACTOR_PARTS
    assert set(analysis.scores.parts["self"]) == SELF_PARTS
    assert set(analysis.scores.parts["pairwise"]) == PAIRWISE_PARTS
    (low_rank,) = influence_of(run_copy, *sampled, "--query_gradient_rank", "4").analyses
    assert set(low_rank.scores.parts["self"]) == SELF_PARTS
    assert set(low_rank.scores.parts["pairwise"]) == PAIRWISE_PARTS | {"seed of low rank"}


def test_products_in_float32_are_another_fingerprint_where_there_are_covariances(run_copy):
    def part(*arguments: str):
        return influence_of(run_copy, *arguments).analyses[0].factor_parts["covariance dtype"]

    mixed = ["--covariance_dtype", "mixed"]
    assert part() == "float64" and part(*mixed) == "mixed"
    assert part("--covariance_dtype", "float32") == "float32"
    assert part(*mixed, "--factor_strategy", "diagonal") is None
    analyze_quickly(run_copy)
    with pytest.raises(Refused, match="covariance dtype"):
        analyze_quickly(run_copy, *mixed)


def test_products_in_float32_are_summed_in_float64_and_the_scores_stay(run_copy):
    analyze_quickly(run_copy, "--train_batch_size", "2")
    expected = scores_of(run_copy)
    analyze_quickly(
        run_copy, "--train_batch_size", "2", "--covariance_dtype", "mixed", "--overwrite"
    )
    folder = run_copy / "demo/influence/factors/ekfac"
    for name in ("activation_covariance", "gradient_covariance"):
        assert all(
            value.dtype == torch.float64
            for value in load_file(folder / f"{name}.safetensors").values()
        )
    found = scores_of(run_copy)
    assert not torch.equal(found, expected) and close(found, expected, 1e-3)


def test_stock_kronfluence_has_no_mixed_covariances(run_copy, capsys):
    flags = ["--checkpoint_dir", str(run_copy), "--stock", "--covariance_dtype", "mixed"]
    assert "--covariance_dtype mixed is ours" in refusal(capsys, analyze.main, [*DEMO, *flags])


def test_covariances_are_never_multiplied_in_tf32(run_copy, monkeypatch):
    """With --tf32 torch is told "high"; in a covariance's product it is not."""
    seen, real = set(), trackers.gram
    monkeypatch.setattr(
        trackers, "gram", lambda x: seen.add(torch.get_float32_matmul_precision()) or real(x)
    )
    try:
        analyze_quickly(run_copy, "--tf32", "--covariance_dtype", "mixed")
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
