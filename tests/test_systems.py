"""Odd machines and libraries end in a result or in one sentence."""

import io
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from running import ROOT, analyze_quickly, scores_of

from attribution.cli import WAIT, run_script
from attribution.engine.analyzer import symmetric_eigen
from attribution.evidence.baselines import tfidf_cosine
from attribution.evidence.ground_truth import load_array
from attribution.files import Refused
from attribution.hub import fault_of_cache, open_asset, reason_of


def test_windows_is_refused_before_anything_else_is_imported():
    code = "import sys; sys.platform = 'win32'; sys.modules['fcntl'] = None; import train"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "Windows" in done.stderr


def test_a_terminal_that_knows_ascii_only_shows_the_rest_as_escapes(monkeypatch):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)

    def main(argv):
        print("caf\xe9 \u597d")
        raise Refused("no file \xfc")

    assert run_script(main) == 2
    for stream in (out, err):
        stream.flush()
    assert (
        out.buffer.getvalue() == b"caf\\xe9 \\u597d\n"
        and err.buffer.getvalue() == b"error: no file \\xfc\n"
    )


@pytest.mark.parametrize("unbuffered", [False, True])
def test_output_that_nobody_reads_ends_the_script_in_silence(monkeypatch, capfd, unbuffered):
    reads, writes = os.pipe()
    os.close(reads)
    raw = io.FileIO(writes, "w")
    buffer = raw if unbuffered else io.BufferedWriter(raw)
    out = io.TextIOWrapper(buffer, write_through=unbuffered)  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "stdout", out)
    assert run_script(lambda _: print("a line")) == 141
    out.close()  # writes what is left, as Python's end does
    assert capfd.readouterr().err == ""


def test_a_broken_pipe_that_is_not_the_output_is_no_reader_that_left(tmp_path, monkeypatch):
    def main(argv):
        raise BrokenPipeError

    with open(tmp_path / "out", "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", out)
        with pytest.raises(BrokenPipeError):
            run_script(main)


def test_closed_streams_read_nothing_and_take_everything(monkeypatch):
    def main(argv):
        assert not sys.stdout.isatty() and sys.stdin.read() == ""
        print("a line", file=sys.stderr)

    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert run_script(main) == 0


def test_a_full_disk_behind_the_output_is_said_although_python_writes_last_at_its_end(
    monkeypatch, capsys
):
    out = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")
    monkeypatch.setattr(sys, "stdout", out)
    assert run_script(lambda _: print("a line")) == 2
    out.close()
    assert "the disk is full" in capsys.readouterr().err


def test_a_process_whose_reader_left_is_silent_to_its_end():
    code = "import sys; from attribution.cli import run_script; sys.exit(run_script(print))"
    command = f"{sys.executable} -c '{code}' | true"
    done = subprocess.run(command, cwd=ROOT, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""


def test_a_process_that_is_not_the_first_of_its_launch_waits_before_it_refuses(monkeypatch, capsys):
    waits: list[float] = []
    monkeypatch.setattr("attribution.cli.time.sleep", waits.append)

    def main(argv):
        raise Refused("no such row")

    for rank, expected in (("0", []), ("1", [WAIT])):
        monkeypatch.setenv("RANK", rank)
        assert run_script(main) == 2 and waits == expected
        assert capsys.readouterr().err == "error: no such row\n"


def test_bfloat16_ground_truth_is_read(tmp_path):
    torch.save(torch.arange(6).view(2, 3).to(torch.bfloat16), tmp_path / "margins.pt")
    assert np.array_equal(
        load_array(tmp_path / "margins.pt", "margins"), np.arange(6.0).reshape(2, 3)
    )


@pytest.mark.parametrize("failures", [0, 1])
def test_eigenvectors_are_found_where_an_algorithm_does_not_converge(monkeypatch, failures):
    """The second try is in float64 on the CPU."""
    x = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))
    matrix, real, calls = x.T @ x, torch.linalg.eigh, []

    def eigh(a):
        calls.append(a.dtype)
        if len(calls) <= failures:
            raise torch.linalg.LinAlgError("the algorithm failed to converge")
        return real(a)

    monkeypatch.setattr(torch.linalg, "eigh", eigh)
    values, vectors = symmetric_eigen(matrix)
    assert calls == [torch.float32, torch.float64][: failures + 1]
    assert torch.allclose(
        vectors.double() * values.double() @ vectors.double().T, matrix.double(), atol=1e-3
    )
    with pytest.raises(Refused, match="covariance is not finite"):
        symmetric_eigen(matrix * torch.nan)


def test_texts_of_single_characters_or_none_have_similarities():
    assert tfidf_cosine(["\u597d !"], ["\u597d ?", "\u574f ?"])[0].argmax() == 0
    assert not tfidf_cosine(["a"], ["", " "]).any() and tfidf_cosine(["a"], [" | "]).shape == (1, 1)


@pytest.mark.parametrize("below", ["", "/below/it"])
def test_a_cache_that_cannot_be_made_is_named_with_its_variables(
    tmp_path, monkeypatch, capsys, below
):
    (tmp_path / "file").write_text("")
    place = f"{tmp_path}/file{below}"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", place)

    def load():
        try:
            Path(place, "x").mkdir(parents=True)
        except OSError as error:
            raise RuntimeError("An error occurred while generating the dataset") from error

    with pytest.raises(Refused) as refusal:
        open_asset(str(tmp_path / "file"), "--dataset_path", "file", load)
    said = str(refusal.value)
    assert f"the cache folder {place} " in said and "set HF_HOME (or HF_DATASETS_CACHE" in said
    assert "--dataset_path" not in said
    assert run_script(lambda _: Path(place, "x").mkdir(parents=True)) == 2
    assert "set HF_HOME (or" in capsys.readouterr().err


def test_a_file_that_may_not_be_read_is_not_the_caches_fault():
    error = PermissionError(13, os.strerror(13), "/data/rows.csv")
    assert not fault_of_cache(error)
    assert reason_of(error) == "/data/rows.csv may not be read or written: Permission denied"


def test_with_two_threads_scores_of_the_same_weights_are_those_of_one_up_to_rounding(run_copy):
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            analyze_quickly(run_copy, "--overwrite")
        finally:
            torch.set_num_threads(1)
        found.append(scores_of(run_copy).double())
    apart = (found[0] - found[1]).abs() / found[0].abs().amax(1, keepdim=True)
    assert apart.max() < 1e-4
