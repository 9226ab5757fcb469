"""What a sum over rows can explain is told from what it cannot, noise aside."""

import json

import numpy as np
import pytest
from running import refusal

import analyze
from attribution.evidence.ground_truth import draw_masks
from lab import additive

M, N, R, Q = 60, 40, 3, 25


def margins(
    kept: np.ndarray, sums: np.ndarray, pairs: np.ndarray, noise: float, seed: int
) -> np.ndarray:
    """(M, R, Q): sums (Q, N) over kept rows, products of the centred kept pairs, what a seed adds
    to all, and noise.
    """
    generator, centred = np.random.default_rng(seed), kept - 0.5
    seen = centred @ sums.T + 4 * np.einsum("mi,mj,qij->mq", centred, centred, pairs)
    drawn = generator.standard_normal((len(kept), R, Q)) * noise
    return seen[:, None] + np.arange(R)[:, None] * 3.0 + drawn


def study(sums_by: float, pairs_by: float, noise: float):
    generator = np.random.default_rng(0)
    masks = draw_masks(N, M, 0.5, 0).astype(np.float64)
    sums = sums_by * generator.standard_normal((Q, N))
    pairs = np.triu(generator.standard_normal((Q, N, N)), 1) * pairs_by / np.sqrt(N / 2)
    return (
        masks,
        sums,
        [margins(kept, sums, pairs, noise, i) for i, kept in enumerate((masks, 1 - masks))],
    )


@pytest.mark.parametrize(
    ("sums_by", "pairs_by", "wanted"), [(1, 0, 1.0), (0, 1, 0.0), (1, 0.5, 0.5)]
)
def test_the_odd_part_holds_sums_and_the_even_part_pairs_whatever_seeds_and_noise_add(
    sums_by, pairs_by, wanted
):
    masks, sums, (found, others) = study(sums_by, pairs_by, noise=2.0)
    result = additive.compare(masks, found, others, {"true": sums} if sums_by else {})
    assert result["additive"] == pytest.approx(wanted, abs=0.06)
    assert result["interval"][0] <= result["additive"] <= result["interval"][1]
    if pairs_by == 0:
        assert result["scores"]["true"]["share"] == pytest.approx(1, abs=0.03)


def test_the_signal_is_the_variance_of_masks_without_noise_and_seeds():
    generator = np.random.default_rng(1)
    true = generator.standard_normal((400, 1, 8))
    seen = true + np.arange(2)[:, None] * 5 + generator.standard_normal((400, 2, 8))
    (found,) = additive.signal(seen, np.ones((1, 400)))
    assert np.abs(found - true[:, 0].var(0, ddof=1)).max() < 0.25 and abs(found.mean() - 1) < 0.1


def test_complements_are_retrained_once_and_compared(run_copy, tmp_path, capsys):
    where = ["--dataset_name", "demo", "--checkpoint_dir", str(run_copy), "--max_queries", "9"]
    output = ["--jobs_per_device", "1", "--results_dir", str(tmp_path)]
    mine = [*where, *output, "--scores", "identity", "--num_masks", "3"]
    assert "at least 2" in refusal(capsys, additive.main, [*mine, "--num_repeats", "1"])
    assert "no scores identity_rank3" in refusal(
        capsys, additive.main, [*mine, "--scores", "identity_rank3"]
    )
    analyze.main([*where, "--factor_strategy", "identity"])
    additive.main(mine)
    found = json.loads((tmp_path / "additive_demo.json").read_text())
    assert (found["masks"], found["repeats"], found["queries"]) == (3, 2, 9)
    assert set(found["scores"]["identity"]) == {"lds", "interval"}, (
        "three masks do not tell the ceiling from zero"
    )
    stored = list((run_copy / "demo/retraining").rglob("*.safetensors"))
    assert len(stored) == 12
    assert "Odd part of the signal" in (tmp_path / "additive_demo.md").read_text()
    additive.main(mine)
    assert len(list((run_copy / "demo/retraining").rglob("*.safetensors"))) == 12
