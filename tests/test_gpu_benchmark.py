"""The GPU benchmark keeps what it measured, scales its estimate by the card, and refuses where there is none."""

import argparse
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from running import analyze_quickly, benchmark, refusal
from safetensors.numpy import save_file


@pytest.fixture
def gpu():
    return benchmark("gpu")


def test_each_measurement_is_kept_and_not_made_again(gpu, tmp_path, monkeypatch):
    commands = []

    def run(command, check):
        commands.append([str(part) for part in command[1:]])
        if "analyze.py" in commands[-1][0]:
            name = "ekfac_half" if "--use_half_precision" in command else "ekfac"
            scores = tmp_path / "sst2/influence/scores" / name
            scores.mkdir(parents=True, exist_ok=True)
            seconds = {"covariance": 1.0, "lambda": 2.0, "pairwise": 3.0, "eigendecomposition": 4.0, "all": 10.0}
            (scores / "pairwise_scores.json").write_text(json.dumps({"seconds": seconds}))
            save_file({"all_modules": np.random.rand(3, 9).astype("f")}, scores / "pairwise_scores.safetensors")
        else:
            (tmp_path / "sst2").mkdir()
            (tmp_path / "sst2/run.json").write_text("{}")

    monkeypatch.setattr(gpu, "subprocess", SimpleNamespace(run=run))
    args = argparse.Namespace(
        work_dir=tmp_path, model_name_or_path=None, dataset_path="glue", random_weights=False, precisions=["float32"]
    )
    assert set(gpu.measure(args)) == {"float32"} and len(commands) == 2
    args.precisions = ["float32", "bfloat16"]
    result = gpu.measure(args)
    assert len(commands) == 3 and result["float32"]["Spearman"] == pytest.approx(1)
    assert result["bfloat16"]["whole process"] >= 0 and "--use_half_precision" in commands[2]


def test_a_card_that_is_twice_as_fast_takes_half_the_time(gpu):
    twice = gpu.estimate({kind: 2 * rate for kind, rate in gpu.A100.items()})
    for precision, seconds in gpu.estimate().items():
        for phase in ("covariance", "lambda", "pairwise"):
            assert twice[precision][phase] == pytest.approx(seconds[phase] / 2)


def test_rates_are_multiply_adds_and_bytes_a_second(gpu):
    rates = gpu.card_rates("cpu", 64, 2)
    assert set(rates) == set(gpu.A100) and all(rate > 0 for rate in rates.values())
    assert torch.get_float32_matmul_precision() == "highest"


def test_without_a_gpu_only_the_estimate_is_made(gpu, capsys, tmp_path):
    assert "there is no GPU here" in refusal(capsys, gpu.main, ["--results_dir", str(tmp_path)])
    gpu.main(["--estimate", "--results_dir", str(tmp_path)])
    assert (tmp_path / "gpu_estimate.json").exists()


def test_seconds_are_stored_by_phase_however_many_partitions(run_copy):
    for flags in (["--stock"], []):
        analyze_quickly(run_copy, "--data_partitions", "3", "--train_batch_size", "4", *flags)
        name = "ekfac_stock" if flags else "ekfac"
        record = run_copy / f"demo/influence/scores/{name}_damping0.0001/pairwise_scores.json"
        seconds = json.loads(record.read_text())["seconds"]
        assert set(seconds) == {"covariance", "eigendecomposition", "lambda", "pairwise", "all"}
        assert seconds["all"] >= max(value for phase, value in seconds.items() if phase != "all")
