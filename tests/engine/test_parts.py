"""An analysis goes through its rows in parts: nothing is lost, done twice or rounded otherwise when
interrupted.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from running import analyze_quickly, close, influence_of, scores_of
from safetensors.torch import load_file, save_file

from attribution.engine import memory, parts
from attribution.engine.analyzer import is_out_of_memory
from attribution.engine.batching import batches_within, group_ends, runs_within
from attribution.engine.parts import Kept, accept, divide
from attribution.files import Refused, read_json
from attribution.processes import ALONE, share_out
from pipeline import InfluenceTask

CUT = (
    "--train_batch_size",
    "2",
    "--data_partitions",
    "6",
    "--query_batch_size",
    "4",
)  # several groups, several parts
LENGTHS = np.random.default_rng(0).integers(3, 30, 200)


@pytest.mark.parametrize("count", [1, 2, 7, 1000])
def test_parts_are_whole_groups_of_the_same_batches_whatever_their_number(count):
    batches = batches_within(LENGTHS, 100)
    ends = group_ends(batches, LENGTHS, 100)
    found = divide(LENGTHS, 100, count)
    assert [batch for part in found for batch in part.batches] == batches
    assert [end for part in found for end in part.ends] == ends and all(
        part.ends[-1] for part in found
    )
    assert len(found) == min(count, sum(ends))
    tokens = [LENGTHS[part.rows].sum() for part in found]
    assert max(tokens) <= sum(tokens) / len(found) + 2 * 100


def test_smaller_batches_of_a_part_keep_its_rows_and_their_order():
    for part in divide(LENGTHS, 300, 3):
        smaller = part.within(LENGTHS, 40)
        assert (
            smaller.rows == part.rows
            and smaller.ends[-1]
            and len(smaller.batches) > len(part.batches)
        )
        assert all(len(batch) * LENGTHS[batch].max() <= 40 for batch in smaller.batches)


def test_query_batches_are_bounded_by_rows_and_by_tokens():
    lengths = np.array([30, 20, 10, 10, 10, 5])
    assert runs_within(lengths, 40, 2) == [[0], [1, 2], [3, 4], [5]]
    assert runs_within(lengths, 4, 9) == [[i] for i in range(6)]


def test_parts_are_shared_out_evenly_and_each_to_one_process():
    weights = np.random.default_rng(1).random(50).tolist()
    for count in (1, 2, 3, 5, 60):
        shares = share_out(weights, count)
        assert (
            sorted(i for share in shares for i in share) == list(range(50)) and len(shares) == count
        )
        loads = [sum(weights[i] for i in share) for share in shares]
        assert max(loads) - min(loads) <= max(weights)


def test_of_two_files_that_hold_the_same_part_the_fuller_one_counts(tmp_path):
    for name, held in (("a", [1, 2]), ("b", [0, 1, 2, 3]), ("c", [4])):
        seconds = torch.tensor([2.0])
        tensors = {parts.PARTS: torch.tensor(held), parts.SECONDS: seconds}
        save_file(
            tensors | {parts.CONTENT: parts.digest(tensors)}, tmp_path / f"{name}.safetensors"
        )
    (tmp_path / "d.safetensors").write_bytes(b"half")
    save_file(tensors | {parts.CONTENT: parts.digest({})}, tmp_path / "e.safetensors")
    assert accept(tmp_path) == [("b.safetensors", [0, 1, 2, 3]), ("c.safetensors", [4])]
    kept = Kept(tmp_path.parent, tmp_path.name, ALONE)
    assert (
        kept.parts == [0, 1, 2, 3, 4]
        and kept.earlier() == 4
        and kept.remaining([1.0] * 7) == [5, 6]
    )
    kept.save({}, [*kept.parts, 5])
    assert len(accept(tmp_path)) == 1  # what was taken over is gone


def factors_of(checkpoints: Path) -> dict:
    folder = checkpoints / "demo/influence/factors/ekfac"
    return {path.stem: load_file(path) for path in folder.glob("*.safetensors")}


def test_the_number_of_parts_changes_no_bit_of_the_factors(run_copy):
    analyze_quickly(run_copy, "--train_batch_size", "2")
    whole = factors_of(run_copy)
    analyze_quickly(run_copy, *CUT, "--overwrite")
    for name, tensors in factors_of(run_copy).items():
        assert all(torch.equal(value, whole[name][module]) for module, value in tensors.items()), (
            name
        )


def test_an_analysis_that_dies_at_every_save_ends_with_the_bits_of_one_that_does_not(
    run_copy, monkeypatch
):
    """And does nothing twice: together they go through as many batches."""
    losses, saves, real = [], [], Kept.save
    loss = InfluenceTask.compute_train_loss
    monkeypatch.setattr(
        InfluenceTask, "compute_train_loss", lambda *a, **k: losses.append(1) or loss(*a, **k)
    )
    analyze_quickly(run_copy, *CUT, "--self_influence")
    reference, once = scores_of(run_copy), len(losses)
    shutil.rmtree(run_copy / "demo/influence")
    losses.clear()
    monkeypatch.setattr(parts, "PATIENCE", 0.0)

    def save_and_die(self, tensors, held):
        real(self, tensors, held)
        saves.append(self.phase)
        raise KeyboardInterrupt

    monkeypatch.setattr(Kept, "save", save_and_die)
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
    analyze_quickly(run_copy, *CUT)
    assert asked == [3, 3, 3]


def test_the_plan_is_kept_when_memory_changes(run_copy, monkeypatch):
    influence = influence_of(run_copy)
    make = influence.phases(
        "factors", "ekfac", influence.factor_parts, lambda: influence.plan("factors")
    )
    monkeypatch.setattr(memory, "free_memory", lambda device: 1)
    again = influence_of(run_copy)
    assert again.analyzer.token_budget == 128
    assert (
        again.phases("factors", "ekfac", again.factor_parts, lambda: again.plan("factors")).plan
        == make.plan
    )
    assert again.analyzer.token_budget == make.plan["parts"]["budget"] == 4096


def test_unfinished_work_of_an_earlier_version_is_named(run_copy):
    influence = influence_of(run_copy)
    folder = run_copy / "demo/influence/kronfluence/factors_ekfac"
    folder.mkdir(parents=True)
    record = {
        "fingerprint": influence.factor_parts,
        "plan": {"factors": 3},
        "parts": {},
        "seconds": {},
    }
    (folder / "finished.json").write_text(json.dumps(record))
    with pytest.raises(Refused, match="earlier version"):
        analyze_quickly(run_copy)


@pytest.mark.parametrize("when", ["covariance", "lambda", "pairwise", "queries"])
def test_where_memory_runs_out_it_goes_on_with_less_and_the_scores_stay(
    run_copy, monkeypatch, capsys, when
):
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
