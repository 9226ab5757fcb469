"""An analysis goes through its rows in parts: nothing is lost, done twice or rounded otherwise when
interrupted.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from running import analyze_quickly, close, in_parts, influence_of, scores_of
from safetensors.torch import load_file

from attribution.engine import memory, resume
from attribution.engine.analyzer import is_out_of_memory
from attribution.engine.resume import PartialResults, accept
from attribution.engine.task import InfluenceTask
from attribution.files import read_json, write_json
from attribution.processes import ALONE, share_out
from attribution.tensors import write_snapshot

# Several groups, which `in_parts` makes several parts.
CUT = ("--train_batch_size", "2", "--query_batch_size", "4")


@pytest.fixture(autouse=True)
def groups_of_one_batch(monkeypatch):
    """Few rows make one group of the usual size, and one part."""
    monkeypatch.setitem(memory.GROUP_TOKENS, "cpu", 0)


def test_parts_are_shared_out_evenly_and_each_to_one_process():
    weights = np.random.default_rng(1).random(50).tolist()
    for count in (1, 2, 3, 5, 60):
        shares = share_out(weights, count)
        assert (
            sorted(i for share in shares for i in share) == list(range(50)) and len(shares) == count
        )
        loads = [sum(weights[i] for i in share) for share in shares]
        assert max(loads) - min(loads) <= max(weights)


def test_of_two_snapshots_with_the_same_part_the_fuller_one_counts(tmp_path):
    for name, parts in (("a", [1, 2]), ("b", [0, 1, 2, 3]), ("c", [4]), ("d", [6]), ("e", [7])):
        record = {"parts": parts, "seconds": 2.0}
        write_snapshot(tmp_path / f"{name}.json", record, {"sum": torch.ones(3)})
    next(tmp_path.glob("d-*.pt")).write_bytes(b"half")
    next(tmp_path.glob("e-*.pt")).unlink()
    write_json(tmp_path / "f.json", {"parts": [8], "seconds": 2.0})  # names no tensors
    assert accept(tmp_path) == [("b.json", [0, 1, 2, 3]), ("c.json", [4])]
    partial = PartialResults(tmp_path, ALONE)
    assert partial.parts == [0, 1, 2, 3, 4] and partial.earlier() == 4
    assert partial.remaining([1.0] * 7) == [5, 6]
    assert [list(tensors) for tensors in partial.taken] == [["sum"], ["sum"]]
    partial.save({}, [*partial.parts, 5])
    assert len(accept(tmp_path)) == 1  # the snapshots that it continued are gone


def factors_of(checkpoints: Path) -> dict:
    folder = checkpoints / "demo/influence/factors/ekfac"
    return {path.stem: load_file(path) for path in folder.glob("*.safetensors")}


def test_the_number_of_parts_changes_no_bit_of_the_factors(run_copy, monkeypatch):
    analyze_quickly(run_copy, "--train_batch_size", "2")
    whole = factors_of(run_copy)
    in_parts(monkeypatch, 6)
    analyze_quickly(run_copy, *CUT, "--overwrite")
    for name, tensors in factors_of(run_copy).items():
        assert all(torch.equal(value, whole[name][module]) for module, value in tensors.items()), (
            name
        )


def test_an_analysis_that_dies_at_every_save_ends_with_the_bits_of_one_that_does_not(
    run_copy, monkeypatch
):
    """And does nothing twice: together they go through as many batches."""
    losses, saves, real = [], [], PartialResults.save
    loss = InfluenceTask.compute_train_loss
    monkeypatch.setattr(
        InfluenceTask, "compute_train_loss", lambda *a, **k: losses.append(1) or loss(*a, **k)
    )
    in_parts(monkeypatch, 6)
    analyze_quickly(run_copy, *CUT, "--self_influence")
    reference, once = scores_of(run_copy), len(losses)
    shutil.rmtree(run_copy / "demo/influence")
    losses.clear()
    monkeypatch.setattr(resume, "PATIENCE", 0.0)

    def save_and_die(self, tensors, parts):
        real(self, tensors, parts)
        saves.append(self.folder.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(PartialResults, "save", save_and_die)
    for _ in range(60):
        try:
            analyze_quickly(run_copy, *CUT, "--self_influence")
            break
        except KeyboardInterrupt:
            continue
    assert {phase: saves.count(phase) for phase in set(saves)} == {
        "covariance": 5,
        "lambda": 5,
        "pairwise": 6,
        "self": 6,
    }
    assert torch.equal(scores_of(run_copy), reference) and len(losses) == once
    assert not list((run_copy / "demo/influence").rglob("progress"))


def test_queries_are_gone_through_once_however_many_parts(run_copy, monkeypatch):
    asked, real = [], InfluenceTask.compute_measurement
    monkeypatch.setattr(
        InfluenceTask,
        "compute_measurement",
        lambda self, batch, model: asked.append(len(batch["labels"])) or real(self, batch, model),
    )
    in_parts(monkeypatch, 6)
    analyze_quickly(run_copy, *CUT)
    assert asked == [3, 3, 3]


def test_the_plan_is_kept_when_memory_changes(run_copy, monkeypatch):
    def work():
        (analysis,) = influence_of(run_copy).analyses
        return analysis, analysis.work("factors", "ekfac", analysis.factor_parts, "factors")

    _, first = work()
    monkeypatch.setattr(memory, "free_memory", lambda device: 1)
    analysis, again = work()
    assert analysis.plan("factors")["budget"] == 128
    assert again.plan == first.plan and again.plan["budget"] == memory.CPU_TOKENS


@pytest.mark.parametrize("when", ["covariance", "lambda", "pairwise", "queries"])
def test_where_memory_runs_out_it_goes_on_with_less_and_the_scores_stay(
    run_copy, monkeypatch, capsys, when
):
    in_parts(monkeypatch, 6)
    analyze_quickly(run_copy, *CUT)
    expected, phase = scores_of(run_copy), []
    for name in ("compute_train_loss", "compute_measurement"):
        real = getattr(InfluenceTask, name)

        def limited(self, batch, model, *, name=name, real=real, **how):
            asking = (
                "queries"
                if name == "compute_measurement"
                else self.phase
                if how["sample"]
                else "pairwise"
            )
            phase.append(asking)
            if asking == when and batch["input_ids"].numel() > (64 if when == "queries" else 128):
                raise RuntimeError(
                    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
                )
            return real(self, batch, model, **how)

        monkeypatch.setattr(InfluenceTask, name, limited)
    analyze_quickly(run_copy, *CUT, "--overwrite")
    assert "out of memory; going on with" in capsys.readouterr().out and when in phase
    assert close(scores_of(run_copy), expected, 1e-4)
    influence = run_copy / "demo/influence"
    records = [
        influence / "factors/ekfac/factors.json",
        influence / "scores/ekfac_damping0.0001/pairwise_scores.json",
    ]
    found = [read_json(path)["replanned"] for path in records if "replanned" in read_json(path)]
    phases = {name: plan["0"] for one in found for name, plan in one.items()}
    assert set(phases) == {
        "pairwise" if when == "queries" else when
    }  # nothing else was planned again
    assert all(plan["budget"] <= 256 for plan in phases.values())


def test_errors_of_libraries_count_as_out_of_memory_and_others_do_not():
    assert is_out_of_memory(torch.OutOfMemoryError("no"))
    assert is_out_of_memory(
        RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling x")
    )
    assert not is_out_of_memory(RuntimeError("shapes differ")) and not is_out_of_memory(
        ValueError("out of memory")
    )
