"""Training shared by processes takes the steps of one process, and training that is interrupted
goes on to its bits.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import together
from running import SMALL, refusal
from safetensors.torch import load_file

import train
from attribution import processes
from attribution.commands import train as commands
from attribution.files import Refused
from attribution.processes import Processes, check_launcher
from attribution.training import fit as fitting
from attribution.training.resume import Progress, share_of
from attribution.training.run import Run
from pipeline import DEMO_MODEL, construct_bert, get_glue_dataset

FULL = bool(os.environ.get("LONG_TESTS"))  # make test-processes


@pytest.fixture(scope="module")
def undropped(tmp_path_factory) -> Path:
    """The demo's BERT without dropout."""
    folder = shutil.copytree(DEMO_MODEL, tmp_path_factory.mktemp("model") / "bert")
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def trainer(checkpoints: Path, *extra: str, rows: str = "97"):
    """train.py on the demo; with 97 rows the last batch of an epoch has one row."""
    return lambda: train.main(
        [*SMALL, "--max_train_samples", rows, "--checkpoint_dir", str(checkpoints), *extra]
    )


def weights(checkpoints: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoints / "demo/model.safetensors")


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.parametrize("count", [2, 3])
def test_without_dropout_processes_take_the_steps_of_one(undropped, tmp_path, count):
    """The gradient of key biases is zero: AdamW steps on its rounding."""
    whole = ["--num_train_epochs", "8", "--max_train_samples", "1000"] if FULL else []
    start = ["--model_name_or_path", str(undropped), *whole]
    trainer(tmp_path / "one", *start)()
    output = tmp_path / "output.txt"
    assert together(count, trainer(tmp_path / "several", *start), output) == [0] * count, (
        output.read_text()
    )
    one, several = weights(tmp_path / "one"), weights(tmp_path / "several")
    for name, value in one.items():
        assert name.endswith("key.bias") or (value - several[name]).abs().max() < 1e-5, name
    data, logits = get_glue_dataset("demo", "valid"), []
    for name in ("one", "several"):
        run = Run.open(tmp_path / name, "demo")
        logits.append(fitting.predict(construct_bert("demo", str(run.folder)), data))
        record = json.loads((run.folder / "run.json").read_text())
        assert record["processes"] == (1 if name == "one" else count)
    assert (logits[0] - logits[1]).abs().max() < 1e-4


def test_with_dropout_the_same_number_of_processes_gives_the_same_bits(tmp_path):
    for name in ("a", "b"):
        assert together(2, trainer(tmp_path / name)) == [0, 0]
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))


@pytest.mark.parametrize("count", [1, 2])
def test_training_that_dies_goes_on_after_the_last_epoch_to_the_same_bits(
    tmp_path, monkeypatch, count
):
    more = ["--num_train_epochs", "3", "--lr_schedule", "linear", "--num_hidden_layers", "1"]
    assert together(count, trainer(tmp_path / "whole", *more)) == [0] * count
    real = Progress.save

    def save_and_die(self, finished, *parts):
        real(self, finished, *parts)
        if finished == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "save", save_and_die)
        assert 130 in together(count, trainer(tmp_path / "cut", *more))
    assert not (tmp_path / "cut/demo/run.json").exists()
    output = tmp_path / "output.txt"
    assert together(count, trainer(tmp_path / "cut", *more), output) == [0] * count
    assert "going on after epoch 2" in output.read_text()
    assert same(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    runs = [
        json.loads((tmp_path / name / "demo/run.json").read_text()) for name in ("cut", "whole")
    ]
    assert [epoch["loss"] for epoch in runs[0]["epochs"]] == [
        epoch["loss"] for epoch in runs[1]["epochs"]
    ]
    assert not (tmp_path / "cut/demo/.training").exists()


def test_unfinished_training_of_another_recipe_is_not_gone_on_with(tmp_path, monkeypatch, capsys):
    def die(self, *_):
        real(self, *_)
        raise KeyboardInterrupt

    real = Progress.save
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Progress, "save", die)
        trainer(tmp_path, "--learning_rate", "1e-5")()
    trainer(tmp_path)()
    assert "another recipe; training starts anew" in capsys.readouterr().out
    trainer(tmp_path / "fresh")()
    assert same(weights(tmp_path), weights(tmp_path / "fresh"))


def test_a_batch_is_dealt_out_by_length_and_one_row_leaves_processes_without():
    lengths, rows = np.array([5, 9, 7, 3, 8]), np.array([4, 0, 2, 1, 3])
    shares = [share_of(rows, lengths, Processes(rank, 3)).tolist() for rank in range(3)]
    assert shares == [[1, 0], [4, 3], [2]]
    assert [len(share_of(rows[:1], lengths, Processes(rank, 3))) for rank in range(3)] == [1, 0, 0]
    assert share_of(rows, lengths, Processes()).tolist() == rows.tolist()


def test_on_a_gpu_a_batch_is_one_piece_and_is_not_split():
    data = get_glue_dataset("demo", "train", max_samples=8)
    overhead = fitting.piece_overhead(construct_bert("demo"), torch.device("cuda"))
    (piece,) = fitting.split_batch(data.lengths, overhead)
    assert sorted(piece.tolist()) == list(range(8))
    assert fitting.split_batch(data.lengths[:0], overhead) == []


def test_divergence_is_refused_by_all_processes(tmp_path):
    output = tmp_path / "output.txt"
    assert 2 in together(2, trainer(tmp_path / "run", "--learning_rate", "1e30"), output)
    assert "training diverged" in output.read_text()


def test_what_a_launcher_configures_is_refused_or_said(monkeypatch, tmp_path, capsys):
    cpu = torch.device("cpu")
    with monkeypatch.context() as patch:
        patch.setenv("ACCELERATE_USE_FSDP", "true")
        assert "asks for FSDP" in refusal(
            capsys, train.main, [*SMALL, "--checkpoint_dir", str(tmp_path)]
        )
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    check_launcher(cpu, Processes())
    said = capsys.readouterr().out
    assert "mixed precision (bf16) is not used" in said and "over 4 batches is not used" in said
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(Refused, match="2 processes would share GPUs"):
        check_launcher(torch.device("cuda", 0), Processes(0, 2, 0, 2))


def test_processes_that_train_members_wait_for_each_other_for_days(monkeypatch, tmp_path):
    def stop(timeout):
        raise Refused(str(timeout))

    monkeypatch.setattr(commands, "launched", stop)
    for flags, wait in (
        ([], "2:00:00"),
        (["--num_members", "2"], "7 days"),
        (["--member_share", "0.5"], "7 days"),
    ):
        with pytest.raises(Refused, match=wait):
            train.main([*SMALL, "--checkpoint_dir", str(tmp_path), *flags])


@pytest.mark.parametrize("gpus", [0, 2])
def test_a_process_that_fails_on_a_gpu_of_its_own_does_not_wait_for_the_others_to_leave(
    monkeypatch, gpus
):
    """NCCL's end is collective; gloo's is not, and is done in any case."""
    left = []
    monkeypatch.setattr(processes, "here", lambda: Processes(0, 2, 0, 2))
    monkeypatch.setattr(processes, "end_group", lambda: left.append(True))
    monkeypatch.setattr(processes.dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    with pytest.raises(Refused), processes.launched():
        raise Refused("not finite")
    assert len(left) == (gpus == 0)
