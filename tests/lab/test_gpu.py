"""The GPU benchmark keeps what it measured, scales its estimate by the card, and refuses where
there is none.
"""

import argparse
import json
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from running import analyze_quickly, refusal, save_tables
from safetensors.numpy import save_file

import analyze
import train
from attribution.files import write_json
from lab import gpu
from lab.estimates import A100


def test_each_measurement_is_kept_and_not_made_again(tmp_path, monkeypatch):
    commands = []

    def run(command, check):
        commands.append([str(part) for part in command[1:]])
        if "analyze.py" in commands[-1][0]:
            name = "ekfac_half" if "--use_half_precision" in command else "ekfac"
            scores = tmp_path / "9_rows/sst2/influence/scores" / name
            scores.mkdir(parents=True, exist_ok=True)
            seconds = {
                "covariance": 1.0,
                "lambda": 2.0,
                "pairwise": 3.0,
                "eigendecomposition": 4.0,
                "all": 10.0,
            }
            write_json(scores / "pairwise_scores.json", {"seconds": seconds})
            save_file(
                {"all_modules": np.random.rand(3, 9).astype("f")},
                scores / "pairwise_scores.safetensors",
            )
        else:
            (tmp_path / "9_rows/sst2").mkdir(parents=True)
            (tmp_path / "9_rows/sst2/run.json").write_text("{}")

    monkeypatch.setattr(gpu, "subprocess", SimpleNamespace(run=run))
    args = argparse.Namespace(
        work_dir=tmp_path,
        model_name_or_path=None,
        dataset_path="glue",
        random_weights=False,
        precisions=["float32"],
        rows=9,
    )
    assert set(gpu.measure(args)) == {"float32"} and len(commands) == 2
    args.precisions = ["float32", "bfloat16"]
    result = gpu.measure(args)
    assert len(commands) == 3 and result["float32"]["Spearman"] == pytest.approx(1)
    assert result["bfloat16"]["whole process"] >= 0 and "--use_half_precision" in commands[2]


def test_a_card_that_is_twice_as_fast_takes_half_the_time():
    twice = gpu.estimate({kind: 2 * rate for kind, rate in A100.items()})
    for precision, seconds in gpu.estimate().items():
        for phase in ("covariance", "lambda", "pairwise"):
            assert twice[precision][phase] == pytest.approx(seconds[phase] / 2)


def test_half_the_rows_take_half_the_time_but_for_eigenvectors_and_what_groups_share():
    whole, half = gpu.estimate(), gpu.estimate(work=gpu.Work(rows=gpu.ROWS // 2))
    for precision, seconds in whole.items():
        for phase in ("covariance", "lambda", "pairwise"):
            assert half[precision][phase] == pytest.approx(seconds[phase] / 2, rel=1e-3)
        assert half[precision]["eigendecomposition"] == seconds["eigendecomposition"]


def test_random_weights_are_taken_as_they_are_and_give_an_estimate_for_their_rows(
    tmp_path, monkeypatch
):
    words = {
        "sentence": ["a fine film", "a dull and long film"] * 30,
        "label": [1, 0] * 30,
        "idx": list(range(60)),
    }
    rows = datasets.Dataset.from_dict(words)
    save_tables(tmp_path / "glue", {"sst2": {"train": rows, "validation": rows.select(range(8))}})
    scripts = {"train.py": train.main, "analyze.py": analyze.main}
    run = lambda command, check: scripts[command[1].name]([str(part) for part in command[2:]])  # noqa: E731
    monkeypatch.setattr(gpu, "subprocess", SimpleNamespace(run=run))
    config = gpu.transformers.BertConfig
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    monkeypatch.setattr(gpu.transformers, "BertConfig", lambda **given: config(**given, **small))
    monkeypatch.setattr(
        gpu.torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=80e9)
    )
    args = argparse.Namespace(
        work_dir=tmp_path,
        model_name_or_path=None,
        dataset_path=str(tmp_path / "glue"),
        random_weights=True,
        rows=40,
        precisions=["float32"],
    )
    measured = gpu.measure(args)["float32"]
    work = gpu.work_of(args)
    assert (work.rows, work.queries) == (40, 8) and measured["Spearman"] == pytest.approx(1)
    found = {"rows": 40, "queries": 8, "device": "a card", "estimate": gpu.estimate(work=work)}
    table = gpu.gpu_measured({"40": found | {"measured": {"float32": measured}}})
    assert "| a card | 40 x 8 | float32 |" in table and " s -> " in table


def test_rates_are_multiply_adds_and_bytes_a_second():
    rates = gpu.card_rates("cpu", 64, 2)
    assert set(rates) == set(A100) and all(rate > 0 for rate in rates.values())
    assert torch.get_float32_matmul_precision() == "highest"


def test_without_a_gpu_only_the_estimate_is_made(capsys, tmp_path):
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
