"""A process takes its GPU, names its device, and refuses launchers that torch cannot follow."""

import contextlib

import pytest
import torch
from running import QUICK

import analyze
import train
from attribution import processes
from attribution.cli import run_script
from attribution.commands import analyze as commands
from attribution.processes import Processes


@pytest.mark.parametrize(
    ("rank", "visible", "expected"), [("0", 1, 0), ("3", 4, 3), ("5", 4, 1), ("7", 1, 0)]
)
def test_the_device_is_the_local_rank_modulo_the_visible_gpus(monkeypatch, rank, visible, expected):
    chosen: list[torch.device] = []
    monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert processes.choose_device() == torch.device("cuda", expected) == chosen[0]


def test_a_gpu_that_torch_does_not_find_is_mentioned(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(processes.glob, "glob", lambda pattern: [])
    assert processes.name_of(cpu) == f"cpu ({torch.get_num_threads()} threads)"
    monkeypatch.setattr(processes.glob, "glob", lambda pattern: ["/dev/nvidia0"])
    monkeypatch.setattr(torch.version, "cuda", "12.4")
    assert "this machine has a GPU, but torch" in processes.name_of(cpu)


@pytest.mark.parametrize("gpus", [False, True])
def test_stock_in_one_of_two_processes_is_refused_with_or_without_gpus(
    trained, capsys, monkeypatch, gpus
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    monkeypatch.setattr(commands, "launched", lambda: contextlib.nullcontext(Processes(0, 2, 0, 2)))
    assert run_script(analyze.main, [*QUICK, "--checkpoint_dir", str(trained), "--stock"]) == 2
    assert "runs in one process" in capsys.readouterr().err


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
@pytest.mark.parametrize("script", [train, analyze])
def test_launchers_that_do_not_say_what_torch_needs_are_refused(
    trained, capsys, monkeypatch, variable, script
):
    monkeypatch.setenv(variable, "2")
    assert (
        run_script(script.main, ["--dataset_name", "demo", "--checkpoint_dir", str(trained)]) == 2
    )
    assert "start it with torchrun" in capsys.readouterr().err
