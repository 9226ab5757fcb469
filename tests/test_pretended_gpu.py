"""The scripts on a GPU, as far as a machine without one can tell: no mixed devices, no memory that
is not planned.

`pretend_cuda.py` says what it cannot tell.
"""

import contextlib
import os

import pytest
import torch
from pretend_cuda import OLDEST, pretend
from running import COUNTERFACTUAL, LDS, SMALL, analyze_quickly, close, scores_of

import train
from attribution.engine import factors, memory, scoring, trackers
from attribution.engine.analyzer import EigenAnalyzer
from attribution.engine.memory import Plan
from attribution.engine.task import InfluenceTask
from attribution.processes import Processes, choose_device

FULL = bool(os.environ.get("LONG_TESTS"))  # make test-processes
FLAGS = (
    [],
    ["--use_half_precision"],
    ["--query_gradient_rank", "4"],
    ["rotate rows"],
    ["rotate queries"],
)
VERSION = tuple(int(number) for number in torch.__version__.split(".")[:2])
pytestmark = pytest.mark.skipif(
    VERSION < OLDEST, reason=f"the pretended GPU needs torch {OLDEST[0]}.{OLDEST[1]}"
)


def test_a_run_is_trained_on_it_and_says_so(trained, tmp_path):
    with pretend() as gpu:
        train.main([*SMALL, "--checkpoint_dir", str(tmp_path)])
    assert gpu.peak > 0 and gpu.chosen
    assert (tmp_path / "demo/run.json").read_text().count("a pretended GPU") == 1


def rotate(monkeypatch, rows: bool) -> None:
    """Makes every plan rotate training rows, or else query gradients."""
    monkeypatch.setattr(memory, "cheapest_side", lambda *sizes: (1, rows))


@pytest.mark.parametrize(
    "strategy", ["identity", "diagonal", "kfac", "ekfac"] if FULL else ["ekfac"]
)
@pytest.mark.parametrize("flags", FLAGS if FULL else FLAGS[:1])
def test_scores_are_the_cpus_whatever_the_strategy_and_the_flags(
    run_copy, monkeypatch, strategy, flags
):
    if flags and flags[0].startswith("rotate"):
        rotate(monkeypatch, flags[0] == "rotate rows")
        flags = []
    flags = ["--factor_strategy", strategy, *flags]
    flags += ["--self_influence", "--train_batch_size", "16"]
    analyze_quickly(run_copy, *flags)
    (path,) = (run_copy / "demo/influence/scores").glob("*/pairwise_scores.json")
    name = path.parent.name  # self-influence has a folder of its own, without a rank
    expected = scores_of(run_copy, name)
    with pretend() as gpu:
        analyze_quickly(run_copy, *flags, "--overwrite")
    tolerance = 1e-2 if "--use_half_precision" in flags else 1e-3
    assert gpu.peak > 0 and close(scores_of(run_copy, name), expected, tolerance)


def test_products_of_rotated_rows_have_a_width_that_a_gpu_multiplies_fast(run_copy, monkeypatch):
    widths, real = set(), trackers.inner_products

    def watched(queries, pieces, elements):
        widths.update(a.shape[-1] for _, a in pieces)
        return real(queries, pieces, elements)

    rotate(monkeypatch, rows=True)
    analyze_quickly(run_copy)
    expected = scores_of(run_copy)
    monkeypatch.setattr(trackers, "inner_products", watched)
    with pretend():
        analyze_quickly(run_copy, "--overwrite")
    assert widths and not any(width % 16 for width in widths)
    assert close(scores_of(run_copy), expected)


def test_the_studies_run(run_copy, tmp_path):
    with pretend():
        analyze_quickly(run_copy, "--max_queries", "12", "--damping_factor", "1e-8")
        assert LDS.run(run_copy, tmp_path) and COUNTERFACTUAL.run(run_copy, tmp_path)


@contextlib.contextmanager
def peaks(monkeypatch, gpu, found: dict):
    """phase -> (its most bytes, bytes planned without those of queries, bytes that it left)."""

    def watched(kind: str, real):
        def call(self, *args):
            analyzer = self.analyzer
            gpu.peak = before = gpu.now
            result = real(self, *args)
            device = analyzer.state.device
            shapes = memory.shapes_of(analyzer.model)
            features = memory.features_of(shapes)
            plan = Plan(**self.work.plan)
            queries = self.count if kind == "pairwise" else 0
            planned = memory.fixed_bytes(shapes, kind, queries, device)
            planned += plan.budget * memory.bytes_a_token(features, device)
            if kind == "pairwise":  # tokens that wait beyond those of a batch
                planned += (plan.group - plan.budget) * 4 * features
            phase = "scores" if kind == "pairwise" else analyzer.task.phase
            found[phase] = (gpu.peak - before, planned, gpu.now - before)
            return result

        return call

    with monkeypatch.context() as patch:
        patch.setattr(factors.Phase, "_run_parts", watched("factors", factors.Phase._run_parts))
        patch.setattr(scoring.Scorer, "run", watched("pairwise", scoring.Scorer.run))
        yield


@pytest.mark.parametrize("batch", ["8", "16"])
def test_the_plan_of_memory_covers_what_a_phase_takes_and_little_stays(
    run_copy, monkeypatch, batch
):
    found: dict = {}
    with pretend() as gpu, peaks(monkeypatch, gpu, found):
        rotate(monkeypatch, rows=True)
        analyze_quickly(run_copy, "--train_batch_size", batch)
    assert set(found) == {"covariance", "lambda", "scores"}
    for phase, (taken, planned, left) in found.items():
        assert taken <= planned <= 6 * taken, (phase, taken, planned)
        assert left <= 2**20, (phase, left)


@pytest.mark.parametrize("share", [0.35, 0.6, 0.8])
def test_with_less_memory_than_it_takes_it_goes_on_smaller_and_the_scores_stay(
    run_copy, monkeypatch, capsys, share
):
    """The plan is told that there is plenty, so that memory runs out in earnest."""
    with pretend() as gpu:
        analyze_quickly(run_copy)
    expected = scores_of(run_copy)
    monkeypatch.setattr(memory, "free_memory", lambda device: 2**40)
    with pretend(share * gpu.peak / 2**30) as small:
        analyze_quickly(run_copy, "--overwrite")
    assert small.refused > 0 and "out of memory; going on with" in capsys.readouterr().out
    assert close(scores_of(run_copy), expected)


@pytest.mark.parametrize("phase", ["covariance", "lambda", "queries", "pairwise"])
def test_when_memory_runs_out_everything_is_released(run_copy, monkeypatch, phase):
    """In the middle of a pass, with hooks, waiting batches, inputs, rotations, bases and factors in
    the modules.
    """
    held, failed, real = [], [], EigenAnalyzer.release
    reals = {
        name: getattr(InfluenceTask, name) for name in ("compute_train_loss", "compute_measurement")
    }
    with pretend() as gpu:

        def failing(name: str):
            def call(self, batch, model, **how):
                loss = reals[name](self, batch, model, **how)
                now = (
                    "queries"
                    if name == "compute_measurement"
                    else self.phase
                    if how["sample"]
                    else "pairwise"
                )
                if now == phase and not failed and gpu.now > 2 * held_by(model):
                    failed.append(gpu.now)
                    raise torch.OutOfMemoryError("no memory")
                return loss

            return call

        def release(self):
            real(self)
            if failed and not held:
                held.append(gpu.now - held_by(self.model))

        for name in reals:
            monkeypatch.setattr(InfluenceTask, name, failing(name))
        monkeypatch.setattr(EigenAnalyzer, "release", release)
        analyze_quickly(run_copy, "--train_batch_size", "8")
    assert failed and held[0] < 2**16 < failed[0]


def held_by(model) -> int:
    """Bytes of the model's parameters and buffers."""
    return sum(x.numel() * x.element_size() for x in [*model.parameters(), *model.buffers()])


def test_eight_ranks_choose_their_device(monkeypatch):
    with pretend(count=4) as gpu:
        for rank in range(8):
            monkeypatch.setenv("LOCAL_RANK", str(rank))
            assert choose_device().index == rank % 4
        assert gpu.chosen == [0, 1, 2, 3, 0, 1, 2, 3]
        assert Processes(local_count=8).sharers(torch.device("cuda", 0)) == 2
