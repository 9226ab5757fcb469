"""Scores have the right sign and the right order, whatever the batches, the memory and the
launcher.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from running import QUICK, analyze_quickly, close, in_parts, launched, scores_of
from safetensors.torch import load_file

import analyze
import train
from attribution.engine.task import InfluenceTask
from attribution.evidence.stats import mean_spearman
from attribution.training.fit import fit, predict
from pipeline import compute_margin, construct_bert, get_glue_dataset


def test_columns_do_not_depend_on_batch_size_or_partitions_and_equal_stock(run_copy, monkeypatch):
    sampled = ("--fisher", "sampled")  # as kronfluence does
    name = "ekfac_sampled_damping0.0001"
    analyze_quickly(run_copy, *sampled, "--train_batch_size", "2", "--query_batch_size", "2")
    first = scores_of(run_copy, name)
    assert first.shape == (9, 120) and first.dtype == torch.float32
    in_parts(monkeypatch, 3)
    other = ("--train_batch_size", "64", "--overwrite")
    analyze_quickly(run_copy, *sampled, *other)
    assert close(scores_of(run_copy, name), first)
    analyze_quickly(run_copy, "--stock", "--train_batch_size", "16")
    assert close(scores_of(run_copy, "ekfac_stock_damping0.0001"), first)


def test_covariance_sums_in_float64_free_the_scores_from_the_batches(run_copy):
    """At the smallest damping rounding of float32 sums mixes eigenvectors of close eigenvalues,
    batch by batch.
    """
    distance = {}
    for dtype in ("float32", "float64"):
        scores = []
        for batch in ("2", "64"):
            precision = ["--damping_factor", "1e-8", "--covariance_dtype", dtype]
            analyze_quickly(run_copy, *precision, "--train_batch_size", batch, "--overwrite")
            scores.append(scores_of(run_copy, "ekfac"))
        distance[dtype] = ((scores[0] - scores[1]).norm() / scores[1].norm()).item()
    assert distance["float64"] < min(distance["float32"] / 5, 3e-4), distance


def test_out_of_memory_halves_the_budget_and_the_scores_stay(run_copy, monkeypatch, capsys):
    analyze_quickly(run_copy)
    expected = scores_of(run_copy)
    whole, failed = InfluenceTask.compute_train_loss, []

    def compute_train_loss(self, batch, model, sample=False):
        if sample and self.phase == "lambda" and (tokens := batch["input_ids"].numel()) > 256:
            failed.append(tokens)
            raise torch.OutOfMemoryError("no memory")
        return whole(self, batch, model, sample)

    monkeypatch.setattr(InfluenceTask, "compute_train_loss", compute_train_loss)
    analyze_quickly(run_copy, "--overwrite")
    assert len(failed) == 2 and "batches of 256 tokens" in capsys.readouterr().out
    assert close(scores_of(run_copy), expected)


@pytest.mark.parametrize("strategy", ["identity", "diagonal", "kfac"])
def test_every_strategy_is_stored_under_its_name(run_copy, strategy):
    analyze_quickly(run_copy, "--factor_strategy", strategy)
    scores = scores_of(run_copy, strategy + ("" if strategy == "identity" else "_damping0.0001"))
    assert scores.shape == (9, 120) and scores.abs().sum() > 0 and scores.isfinite().all()


def test_half_precision_and_low_rank_agree_with_float32(run_copy):
    for extra in ([], ["--use_half_precision"], ["--query_gradient_rank", "16"]):
        analyze_quickly(run_copy, *extra)
    for name in ("ekfac_half_damping0.0001", "ekfac_rank16_damping0.0001"):
        assert mean_spearman(scores_of(run_copy, name).numpy(), scores_of(run_copy).numpy()) > 0.99


def test_self_influence_is_positive_and_kept(run_copy, capsys):
    analyze_quickly(run_copy)
    analyze_quickly(run_copy, "--self_influence", "--overwrite", "--profile")
    out = capsys.readouterr().out
    assert "planted flips; chance gives" in out
    assert (
        next(line for line in out.splitlines() if "Fit Covariance" in line).split("|")[3].strip()
        == "1"
    )
    folder = run_copy / "demo/influence/scores/ekfac_damping0.0001"
    assert (load_file(folder / "self_scores.safetensors")["all_modules"] > 0).all()


def test_self_influence_as_json_is_one_object_a_row_and_nothing_else(run_copy, capsys):
    arguments = ["--self_influence", "--format", "json", "--profile"]
    analyze_quickly(run_copy, *arguments, "--factor_strategy", "identity")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    scores = load_file(run_copy / "demo/influence/scores/identity/self_scores.safetensors")
    order = scores["all_modules"].argsort(descending=True, stable=True)
    assert [row["row"] for row in rows] == order.tolist()
    data = get_glue_dataset("demo", "train", max_samples=120)
    for row in rows:
        assert row["texts"] == [data.text(row["row"])] and row["file_row"] is None
        assert row["given_label"] == data.label_name(row["row"])
        assert row["scores"] == "identity" and row["ranking"] == "self_influence"
    assert (run_copy / "demo/influence/scores/identity/pairwise_scores.json").exists()


def test_removing_helpful_rows_lowers_and_harmful_rows_raises_the_margin(tmp_path):
    """The sign, end to end: 30 rows removed for the summed margin of 20 queries, over 3 seeds."""
    train.main(["--dataset_name", "demo", "--checkpoint_dir", str(tmp_path)])
    analyze.main(
        [
            "--dataset_name",
            "demo",
            "--checkpoint_dir",
            str(tmp_path),
            "--max_queries",
            "20",
            "--damping_factor",
            "1e-4",
        ]
    )
    order = scores_of(tmp_path).sum(0).argsort(descending=True).numpy()
    data, queries = (
        get_glue_dataset("demo", "train"),
        get_glue_dataset("demo", "valid", max_samples=20),
    )
    recipe = json.loads((tmp_path / "demo/run.json").read_text())["recipe"]
    margins = {}
    for name, removed in (("none", []), ("helpful", order[:30]), ("harmful", order[-30:])):
        kept = np.setdiff1d(np.arange(len(data)), removed)
        per_seed = []
        for seed in (11, 12, 13):
            model = fit(construct_bert("demo", seed=seed), data, kept, seed=seed, **recipe)
            logits = predict(model, queries)
            per_seed.append(compute_margin(logits, torch.from_numpy(queries.labels)).mean().item())
        margins[name] = np.mean(per_seed)
    assert margins["helpful"] < margins["none"] < margins["harmful"], margins


def test_the_profile_is_printed(run_copy, capsys):
    analyze_quickly(run_copy, "--profile")
    out = capsys.readouterr().out
    assert all(
        word in out
        for word in ("Mean duration", "Num calls", "Total time", "Percentage", "Fit Lambda")
    )


def test_accelerates_launcher_gives_the_scores_of_one_process(run_copy):
    """On the CPU it starts one process, whatever --num_processes says."""
    arguments = [*QUICK, "--checkpoint_dir", str(run_copy)]
    done = launched(
        "accelerate", "launch", "--num_processes", "2", "--cpu", "analyze.py", *arguments
    )
    assert done.returncode == 0, done.stderr
    scores = scores_of(run_copy)
    shutil.rmtree(run_copy / "demo/influence")
    analyze_quickly(run_copy)
    assert close(scores_of(run_copy), scores)
