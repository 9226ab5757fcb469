"""What analyze.py cannot work with is refused: wrong checkpoints, bad arguments, launchers, other
libraries.
"""

import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from running import QUICK, analyze_quickly, launched, refusal, tamper
from safetensors.torch import save_file

import analyze
import evaluate_lds
import run_counterfactual
from attribution.files import Refused, write_json
from attribution.influence.settings import Settings
from attribution.training.run import MARKER


def damage(checkpoints: Path, how: str) -> None:
    folder = checkpoints / "demo"
    run_file = folder / "run.json"
    if how == "missing":
        shutil.rmtree(folder)
    elif how in ("half-written", "somebody's"):
        run_file.unlink()
        if how == "half-written":
            (folder / MARKER).touch()
    elif how == "changed":
        save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    else:
        key, _, value = how.partition("=")
        tamper(run_file, lambda run: run | {key: json.loads(value)})


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "is missing; run: python train.py"),
        ("half-written", "is half-written; run: python train.py"),
        ("somebody's", "holds a model that is no run of train.py"),
        ("changed", "is damaged"),
        ('dataset_name="rte"', "was trained on rte, not demo"),
        ("num_labels=3", "has 3 labels, demo 2"),
        ("max_train_samples=50", "training rows in demo are not those"),
    ],
)
def test_a_wrong_checkpoint_is_refused(run_copy, how, message):
    damage(run_copy, how)
    with pytest.raises(Refused, match=message):
        analyze_quickly(run_copy)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--dataset_name", "foo"], "unknown task 'foo'"),
        (["--query_batch_size", "0"], "--query_batch_size must be above 0"),
        (["--train_batch_size", "-3"], "--train_batch_size must be above 0"),
        (["--damping_factor", "much"], "--damping_factor must be a number"),
        (["--query_gradient_rank", "0"], "--query_gradient_rank must be above 0"),
    ],
)
def test_bad_arguments_are_one_sentence_and_status_2(trained, extra, message, capsys):
    error = refusal(capsys, analyze.main, [*QUICK, "--checkpoint_dir", str(trained), *extra])
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("script", [analyze, evaluate_lds, run_counterfactual])
def test_a_misspelled_name_of_a_run_gets_the_nearest_one(tmp_path, script, capsys):
    for name in ("tickets", "three"):
        write_json(tmp_path / name / "run.json", {})
    (tmp_path / "tikets").mkdir()  # no run
    line = ["--dataset_name", "tikets", "--checkpoint_dir", str(tmp_path)]
    error = refusal(capsys, script.main, line)
    assert (
        "unknown task 'tikets' (did you mean 'tickets'?); known are three, tickets, cola" in error
    )


def test_the_short_help_leaves_rare_arguments_and_the_json_format_out(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    texts = {}
    for flag in ("--help", "--help_all"):
        with pytest.raises(SystemExit) as stop:
            analyze.parse_args([flag])
        assert stop.value.code == 0
        texts[flag] = capsys.readouterr().out
    short, whole = texts["--help"], texts["--help_all"]
    arguments = [field for field in fields(Settings) if field.metadata]
    rare = [field.name for field in arguments if field.metadata["rare"]]
    assert {"stock", "query_gradient_rank", "covariance_dtype"} <= set(rare)
    for field in arguments:
        assert f"--{field.name} " in whole
        assert (f"  --{field.name} " in short) == (field.name not in rare), field.name
    assert "file_row" in whole and "file_row" not in short
    assert "--help_all shows every argument" in short and len(short.splitlines()) <= 90


def test_a_launcher_that_does_not_say_who_is_who_is_refused(trained, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    error = refusal(capsys, analyze.main, [*QUICK, "--checkpoint_dir", str(trained)])
    assert "a launcher sets all of RANK, WORLD_SIZE" in error


def test_stock_under_a_launcher_of_two_ends_with_the_refusal_and_writes_nothing(run_copy):
    arguments = [*QUICK, "--stock", "--checkpoint_dir", str(run_copy)]
    done = launched("torchrun", "--nproc_per_node", "2", "analyze.py", *arguments)
    assert done.returncode != 0 and "runs in one process" in done.stderr
    assert not (run_copy / "demo/influence").exists()


def test_an_unknown_kronfluence_is_refused_by_name(run_copy, monkeypatch):
    monkeypatch.setattr("attribution.engine.modules.importlib.metadata.version", lambda name: "9.9")
    with pytest.raises(Refused, match="kronfluence 9.9 .*--stock"):
        analyze_quickly(run_copy)
    assert not (run_copy / "demo/influence").exists()
