"""The GPU benchmark keeps what it measured, scales its estimate by the card, and refuses where
there is none.
"""

import json
import subprocess
from types import SimpleNamespace

import datasets
import pytest
import torch
from pretend_cuda import pretend
from running import analyze_quickly, in_parts, refusal, save_tables

import analyze
import evaluate_lds
import train
from lab import gpu
from lab.estimates import A100


def test_an_item_is_kept_and_not_measured_again_and_what_time_does_not_hold_is_left(
    tmp_path, capsys
):
    session = gpu.Session(tmp_path, 100.0, [], 9)
    calls = []

    def measured() -> dict:
        calls.append(1)
        return {"seconds": 1.0}

    assert session.take("a", measured) == session.take("a", measured) == {"seconds": 1.0}
    assert calls == [1] and "a: 0 s, 0% of the time" in capsys.readouterr().out

    def slow() -> dict:
        raise subprocess.TimeoutExpired("analyze.py", 1)

    assert session.take("b", slow) is None and not (tmp_path / "b.json").exists()
    assert "b: 0 s, 0% of the time, not done" in capsys.readouterr().out
    session.seconds = 0.0
    assert session.take("c", measured) is None and calls == [1]
    assert session.take("a", measured) == {"seconds": 1.0}


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


def test_a_session_runs_whole_on_the_pretended_gpu(tmp_path, monkeypatch):
    words = {
        "sentence": ["a fine film", "a dull and long film"] * 30,
        "label": [1, 0] * 30,
        "idx": list(range(60)),
    }
    rows = datasets.Dataset.from_dict(words)
    save_tables(tmp_path / "glue", {"sst2": {"train": rows, "validation": rows.select(range(8))}})
    scripts = {"train.py": train, "analyze.py": analyze, "evaluate_lds.py": evaluate_lds}
    limits = []

    def run(self, script, *flags, gib=None) -> str:
        limits.append(gib)
        with pretend(gib=80):
            scripts[script].main([*flags])
        return "out of memory; going on with less" * (gib is not None)

    config = gpu.transformers.BertConfig
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    monkeypatch.setattr(gpu.transformers, "BertConfig", lambda **given: config(**given, **small))
    monkeypatch.setattr(gpu.Session, "run", run)
    monkeypatch.setattr(gpu.Session, "tests", lambda self: {"passed": True})
    monkeypatch.setattr(gpu, "JOBS", (1,))
    data = ["--dataset_path", str(tmp_path / "glue")]
    session = gpu.Session(tmp_path / "work", 600.0, data, 40)
    measured = session.measure(60, 50, 40)
    assert list(measured) == [
        "training",
        "tf32",
        "float32",
        "bfloat16",
        "bfloat16 and tf32",
        "tests",
        "stock, float32",
        "in full",
        "replay",
        "retrains, 1 at a time",
        "out of memory",
    ]
    assert limits[-1] == gpu.GIB and measured["out of memory"]["shrunk"] == 1
    assert session.agreement("float32") == pytest.approx(1)
    assert session.agreement("stock, float32") > 0.9
    assert measured["in full"]["precision"] == session.fastest()
    card = SimpleNamespace(total_memory=80e9)
    monkeypatch.setattr(gpu.torch.cuda, "get_device_properties", lambda _: card)
    work = gpu.work_of(session)
    assert (work.rows, work.queries) == (40, 8)
    found = {"rows": 40, "queries": 8, "device": "a card", "estimate": gpu.estimate(work=work)}
    table = gpu.gpu_measured(found | {"measured": measured})
    assert "| a card, 40 x 8 (estimate) |" in table and "- retrains, 1 at a time: " in table


def test_rates_are_multiply_adds_and_bytes_a_second():
    rates = gpu.card_rates("cpu", 64, 2)
    assert set(rates) == set(A100) and all(rate > 0 for rate in rates.values())
    assert torch.get_float32_matmul_precision() == "highest"


def test_without_a_gpu_only_the_estimate_is_made(capsys, tmp_path):
    assert "there is no GPU here" in refusal(capsys, gpu.main, ["--results_dir", str(tmp_path)])
    gpu.main(["--estimate", "--results_dir", str(tmp_path)])
    assert (tmp_path / "gpu_estimate.json").exists()


def test_seconds_are_stored_by_phase_however_many_partitions(run_copy, monkeypatch):
    in_parts(monkeypatch, 3)
    for flags in (["--stock"], []):
        analyze_quickly(run_copy, "--train_batch_size", "4", *flags)
        name = "ekfac_stock" if flags else "ekfac"
        record = run_copy / f"demo/influence/scores/{name}_damping0.0001/pairwise_scores.json"
        seconds = json.loads(record.read_text())["seconds"]
        assert set(seconds) == {"covariance", "eigendecomposition", "lambda", "pairwise", "all"}
        assert seconds["all"] >= max(value for phase, value in seconds.items() if phase != "all")
