"""Suggested commands run where they are printed."""

import sys
from pathlib import Path

import pytest

from attribution.training.arguments import command_of


@pytest.mark.parametrize(
    ("running", "script"),
    [
        ("analyze.py", "train.py"),
        ("./analyze.py", "train.py"),
        ("../a b/analyze.py", "'../a b/train.py'"),
        ("/clone/evaluate_lds.py", "/clone/train.py"),
        ("/somewhere/notebook.py", "train.py"),
        ("", "train.py"),
    ],
)
def test_a_command_names_the_script_beside_the_running_one(running, script, monkeypatch):
    monkeypatch.setattr(sys, "argv", [running])
    place = Path("my runs")
    expected = f"python {script} --dataset_name rte --checkpoint_dir 'my runs'"
    assert command_of("train.py", "rte", place) == expected
    assert (
        command_of("train.py", "rte", Path("checkpoints")) == f"python {script} --dataset_name rte"
    )
    bare = command_of("train.py", "rte", Path("/home/me/runs"), bare=True)
    assert bare == "python train.py --dataset_name rte --checkpoint_dir runs"
