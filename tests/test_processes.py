"""Several processes of one launch give one process's scores and weights, whoever dies, and every
wait ends.
"""

import datetime
import os
import shutil
import signal
import time

import pytest
import torch
from processes import together
from running import QUICK, in_parts, launched, scores_of

import analyze
from attribution import processes
from attribution.engine import resume
from attribution.engine.resume import PartialResults
from attribution.evidence.stats import mean_spearman
from attribution.files import Refused
from attribution.processes import Processes, here, rank_and_size

FULL = bool(os.environ.get("LONG_TESTS"))  # make test-processes


def agree(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Spearman above 0.999999, and no difference above 1e-4 of a query's largest score."""
    largest = ((found - expected).abs() / expected.abs().amax(1, keepdim=True)).max()
    return mean_spearman(found.numpy(), expected.numpy()) > 0.999999 and largest < 1e-4


def score(checkpoints, *extra: str):
    return lambda: analyze.main([*QUICK, "--checkpoint_dir", str(checkpoints), *extra])


@pytest.fixture
def expected(run_copy) -> torch.Tensor:
    """One process's scores; nothing is stored afterwards."""
    score(run_copy)()
    scores = scores_of(run_copy)
    shutil.rmtree(run_copy / "demo/influence")
    return scores


@pytest.mark.parametrize("count", [2, 3, 5] if FULL else [2])
def test_processes_share_the_rows_and_the_scores_are_one_processs(
    run_copy, expected, count, tmp_path
):
    output = tmp_path / "output.txt"
    assert together(count, score(run_copy, "--self_influence"), output) == [0] * count, (
        output.read_text()
    )
    assert agree(scores_of(run_copy), expected)
    assert output.read_text().count("computing on") == 1  # only the main process prints
    assert not list((run_copy / "demo/influence").rglob("progress"))


def test_a_process_without_parts_takes_part(run_copy, expected, monkeypatch):
    """With one part there is work for one process of three."""
    in_parts(monkeypatch, 1)
    assert together(3, score(run_copy)) == [0] * 3
    assert agree(scores_of(run_copy), expected)


@pytest.mark.parametrize("phase", ["covariance", "lambda", "pairwise"])
def test_a_process_that_dies_ends_the_launch_and_another_number_goes_on(
    run_copy, expected, monkeypatch, phase
):
    real = PartialResults.save

    def save_and_die(self, tensors, parts):
        real(self, tensors, parts)
        if self.folder.name == phase and self.processes.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(resume, "PATIENCE", 0.0)
        patch.setattr(PartialResults, "save", save_and_die)
        assert -signal.SIGKILL in together(2, score(run_copy))
    progress = list((run_copy / "demo/influence").rglob(f"progress/{phase}/*.pt"))
    assert progress and not (run_copy / "demo/influence/scores").exists()
    count = {"covariance": 3, "lambda": 1, "pairwise": 2}[phase]
    assert together(count, score(run_copy)) == [0] * count
    assert agree(scores_of(run_copy), expected)


@pytest.mark.skipif(not FULL, reason="make test-processes")
def test_killed_at_ten_moments_with_changing_numbers_of_processes_the_scores_are_those_of_one(
    run_copy, expected, monkeypatch, tmp_path
):
    monkeypatch.setattr(resume, "PATIENCE", 0.0)
    real = PartialResults.save
    left = tmp_path / "left"

    def save_and_die(self, tensors, parts):
        real(self, tensors, parts)
        number = int(left.read_text())
        if number == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left.write_text(str(number - 1))

    monkeypatch.setattr(PartialResults, "save", save_and_die)
    for kill in range(10):
        left.write_text(str(kill % 4))
        if together(1 + kill % 3, score(run_copy)) == [0] * (1 + kill % 3):
            break
    left.write_text("1000")
    assert together(2, score(run_copy)) == [0] * 2 and agree(scores_of(run_copy), expected)


def test_waiting_for_a_process_that_does_not_come_ends(tmp_path):
    def call() -> None:
        with processes.launched(datetime.timedelta(seconds=2)) as own:
            if own.main:
                own.meet()
            time.sleep(30)

    start, output = time.monotonic(), tmp_path / "output.txt"
    assert 1 in together(2, call, output)
    assert time.monotonic() - start < 15 and "imed out" in output.read_text()


def test_a_real_launcher_starts_two_processes_that_share_the_work(run_copy, expected):
    done = launched(
        "torchrun", "--nproc_per_node", "2", "analyze.py", *QUICK, "--checkpoint_dir", str(run_copy)
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("scores of 120 training rows") == 1 and agree(
        scores_of(run_copy), expected
    )


def test_stock_kronfluence_stays_one_process(run_copy, monkeypatch):
    output = run_copy / "output.txt"
    assert 2 in together(2, score(run_copy, "--stock"), output)
    said = output.read_text()
    assert "--stock runs in one process" in said and said.count("error: ") == 1
    assert not (run_copy / "demo/influence").exists()


def test_a_launcher_that_says_too_little_is_refused(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(Refused, match="torchrun"):
        here()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ("RANK=1", "here are RANK, missing are WORLD_SIZE, MASTER_ADDR, MASTER_PORT;"),
        ("RANK=0", "here are RANK, missing are WORLD_SIZE, MASTER_ADDR, MASTER_PORT;"),
        ("WORLD_SIZE=2", "here are WORLD_SIZE, missing are RANK, MASTER_ADDR, MASTER_PORT;"),
        ("RANK=1 WORLD_SIZE=2 MASTER_PORT=1", "MASTER_PORT, missing are MASTER_ADDR;"),
        ("RANK=1 WORLD_SIZE=1 MASTER_ADDR=x MASTER_PORT=1", "RANK is 1, but WORLD_SIZE is 1"),
        ("RANK=first WORLD_SIZE=1", "RANK must be a number, not 'first'"),
        ("RANK=0 WORLD_SIZE=-2", "WORLD_SIZE must be a number, not '-2'"),
    ],
)
def test_half_a_launch_is_refused_with_the_variables_that_are_set_and_missing(
    monkeypatch, variables, message
):
    for variable in variables.split():
        monkeypatch.setenv(*variable.split("="))
    with pytest.raises(Refused, match=message):
        here()


def test_a_rank_that_its_launch_does_not_have_is_refused_where_no_address_is_needed(monkeypatch):
    monkeypatch.setenv("RANK", "1")  # retrains would be done, and their result never written
    with pytest.raises(Refused, match="RANK is 1, but WORLD_SIZE is not set"):
        rank_and_size()


@pytest.mark.parametrize("variables", ["RANK=0 WORLD_SIZE=1", "MASTER_ADDR=x MASTER_PORT=1"])
def test_one_process_alone_needs_no_launcher(monkeypatch, variables):
    for variable in variables.split():
        monkeypatch.setenv(*variable.split("="))
    assert here() == processes.ALONE


def test_processes_share_a_cards_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert Processes(local_count=8).sharers(torch.device("cuda", 0)) == 2
    assert Processes(local_count=3).sharers(torch.device("cuda", 0)) == 1
    assert Processes(local_count=3).sharers(torch.device("cpu")) == 3
