"""Scores have the right sign, the right order and the right provenance; bad input is refused."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL
from safetensors.torch import load_file, save_file

import analyze
import train
from attribution import analysis, eigenbasis
from attribution.analysis import Phases
from attribution.stats import mean_spearman
from attribution.store import Refused, run_script
from pipeline import InfluenceTask, compute_margin, construct_bert, get_glue_dataset

ROOT = Path(__file__).parent.parent
QUICK = ["--dataset_name", "demo", "--max_queries", "9", "--damping_factor", "1e-4"]


def scores_of(checkpoints: Path, name: str = "ekfac_damping0.0001") -> torch.Tensor:
    return load_file(checkpoints / "demo/influence/scores" / name / "pairwise_scores.safetensors")["all_modules"].clone()  # not the mapped file


def run(checkpoints: Path, *extra: str) -> None:
    analyze.main([*QUICK, "--checkpoint_dir", str(checkpoints), *extra])


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-3) -> bool:
    return ((a - b).norm() / b.norm()).item() < tolerance


# --- what is computed ---


@pytest.mark.parametrize(("passes", "batch"), [(1, 4), (1, 32), (3, 32), (3, 2)])
def test_query_batches_fill_as_few_passes_as_memory_allows(run_copy, monkeypatch, passes, batch):
    monkeypatch.setattr(analysis, "plan_queries", lambda *_: passes)
    args = analyze.parse_args([*QUICK, "--checkpoint_dir", str(run_copy), "--query_batch_size", str(batch)])
    influence = analyze.Influence(args)  # 9 queries
    score_args = analyze.make_score_arguments(args)
    rows = influence._hold_queries(score_args)
    assert 1 <= rows <= batch
    assert -(-9 // (rows * score_args.query_gradient_accumulation_steps)) == passes


def test_columns_do_not_depend_on_batch_size_or_partitions_and_equal_stock(run_copy):
    run(run_copy, "--train_batch_size", "2", "--query_batch_size", "2")
    first = scores_of(run_copy)
    assert first.shape == (9, 120) and first.dtype == torch.float32
    run(run_copy, "--train_batch_size", "64", "--data_partitions", "3", "--overwrite")
    assert close(scores_of(run_copy), first)
    run(run_copy, "--stock", "--train_batch_size", "16")
    assert close(scores_of(run_copy, "ekfac_stock_damping0.0001"), first)


def test_covariance_sums_in_float64_free_the_scores_from_the_batches(run_copy):
    """At the smallest damping rounding of float32 sums mixes eigenvectors of close eigenvalues, batch by batch."""
    distance = {}
    for dtype in ("float32", "float64"):
        scores = []
        for batch in ("2", "64"):
            run(run_copy, "--damping_factor", "1e-8", "--covariance_dtype", dtype, "--train_batch_size", batch, "--overwrite")
            scores.append(scores_of(run_copy, "ekfac"))
        distance[dtype] = ((scores[0] - scores[1]).norm() / scores[1].norm()).item()
    assert distance["float64"] < min(distance["float32"] / 5, 3e-4), distance


def test_out_of_memory_halves_the_budget_and_the_scores_stay(run_copy, monkeypatch, capsys):
    run(run_copy)
    expected = scores_of(run_copy)
    whole, failed = analysis.EigenAnalyzer.fit_lambda_matrices, []

    def fit(self, **kwargs):
        if self.token_budget > 1024:
            failed.append(self.token_budget)
            raise torch.OutOfMemoryError("no memory")
        return whole(self, **kwargs)

    monkeypatch.setattr(analysis.EigenAnalyzer, "fit_lambda_matrices", fit)
    run(run_copy, "--overwrite")
    assert failed == [4096, 2048] and "batches of 1,024 tokens" in capsys.readouterr().out
    assert close(scores_of(run_copy), expected)


def test_short_memory_lowers_the_token_budget(monkeypatch):
    model = eigenbasis.prepare_model(construct_bert("demo", None, seed=0), InfluenceTask())
    features = sum(sum(module.weight.shape) for module in analysis.tracked(model))
    monkeypatch.setattr(analysis, "free_memory", lambda device: 2 * 32 * features * 1000)
    cpu = torch.device("cpu")
    assert analysis.affordable_tokens(model, cpu, 500) == 500 and analysis.affordable_tokens(model, cpu, 8192) == 1000
    assert analysis.affordable_tokens(model, torch.device("cuda"), 8192) == 8192


def test_short_memory_takes_more_passes_and_the_cheaper_side_is_rotated(run_copy, monkeypatch):
    args = analyze.parse_args([*QUICK, "--checkpoint_dir", str(run_copy)])
    influence = analyze.Influence(args)
    analyzer, score_args = influence.analyzer, analyze.make_score_arguments(args)
    sizes = [(m.weight.shape[0], m.weight.shape[1] + 1) for m in analysis.tracked(analyzer.model)]

    def plan(free: int, force: str = "auto", rank: int | None = None) -> tuple[int, bool]:
        monkeypatch.setattr(analysis, "free_memory", lambda device: free)
        score_args.query_gradient_low_rank = rank
        passes = analysis.plan_queries(analyzer, influence.train, influence.queries, 32, score_args, force)
        return passes, analysis.tracked(analyzer.model)[0].rotate_rows

    one_gradient = 2 * 4 * sum(d_out * d_in for d_out, d_in in sizes)
    one_query = 2 * 4 * sum(map(sum, sizes)) * int(influence.queries.lengths.max())
    assert plan(2**40) == (1, False)  # 120 rows have more tokens than 9 queries have directions
    everything, influence.train.lengths = influence.train.lengths, influence.train.lengths[:8]
    assert plan(2**40) == (1, True)
    assert plan(3 * one_gradient, "queries") == (3, False) and plan(3 * one_query, "rows") == (3, True)
    assert plan(2**40, rank=2) == (1, False)
    influence.train.lengths = everything
    assert plan(one_query * 9) == (1, True) and one_query < one_gradient  # gradients would need two passes


@pytest.mark.parametrize("strategy", ["identity", "diagonal", "kfac"])
def test_every_strategy_is_stored_under_its_name(run_copy, strategy):
    run(run_copy, "--factor_strategy", strategy)
    scores = scores_of(run_copy, strategy + ("" if strategy == "identity" else "_damping0.0001"))
    assert scores.shape == (9, 120) and scores.abs().sum() > 0 and scores.isfinite().all()


def test_half_precision_and_low_rank_agree_with_float32(run_copy):
    for extra in ([], ["--use_half_precision"], ["--query_gradient_rank", "16"]):
        run(run_copy, *extra)
    for name in ("ekfac_half_damping0.0001", "ekfac_rank16_damping0.0001"):
        assert mean_spearman(scores_of(run_copy, name).numpy(), scores_of(run_copy).numpy()) > 0.99


def test_self_influence_is_positive_and_kept(run_copy, capsys):
    run(run_copy)
    run(run_copy, "--self_influence", "--overwrite", "--profile")
    out = capsys.readouterr().out
    assert "planted flips; chance gives" in out
    assert next(line for line in out.splitlines() if "Fit Covariance" in line).split("|")[3].strip() == "1"
    folder = run_copy / "demo/influence/scores/ekfac_damping0.0001"
    assert (load_file(folder / "self_scores.safetensors")["all_modules"] > 0).all()


def test_removing_helpful_rows_lowers_and_harmful_rows_raises_the_margin(tmp_path):
    """The sign, end to end: 30 rows removed for the summed margin of 20 queries, mean over 3 seeds."""
    torch.set_num_threads(2)
    train.main(["--dataset_name", "demo", "--checkpoint_dir", str(tmp_path)])
    analyze.main(["--dataset_name", "demo", "--checkpoint_dir", str(tmp_path), "--max_queries", "20",
                  "--damping_factor", "1e-4"])  # fmt: skip
    order = scores_of(tmp_path).sum(0).argsort(descending=True).numpy()
    data, queries = get_glue_dataset("demo", "train"), get_glue_dataset("demo", "valid", max_samples=20)
    recipe = json.loads((tmp_path / "demo/run.json").read_text())["recipe"]
    margins = {}
    for name, removed in (("none", []), ("helpful", order[:30]), ("harmful", order[-30:])):
        kept = np.setdiff1d(np.arange(len(data)), removed)
        per_seed = []
        for seed in (11, 12, 13):
            model = train.fit(construct_bert("demo", seed=seed), data, kept, seed=seed, **recipe)
            logits = train.predict(model, queries)
            per_seed.append(compute_margin(logits, torch.from_numpy(queries.labels)).mean().item())
        margins[name] = np.mean(per_seed)
    torch.set_num_threads(1)
    assert margins["helpful"] < margins["none"] < margins["harmful"], margins


# --- what is stored ---


def test_a_second_run_computes_nothing_and_a_damaged_file_is_made_again(run_copy, capsys, monkeypatch):
    run(run_copy)
    first = scores_of(run_copy)
    folder = run_copy / "demo/influence"
    factor = folder / "factors/ekfac/lambda_matrix.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(analyze.analysis, "fit_factors", None)
        patch.setattr(analyze.analysis, "compute_scores", None)
        run(run_copy)
    factor.write_bytes(factor.read_bytes()[:-10])
    (folder / "scores/ekfac_damping0.0001/pairwise_scores.safetensors").write_bytes(b"short")
    run(run_copy)
    assert "factors are damaged" in capsys.readouterr().err
    assert torch.equal(scores_of(run_copy), first)


def test_an_interrupted_run_goes_on_after_its_last_finished_part(run_copy, monkeypatch):
    arguments = ("--data_partitions", "3")
    run(run_copy, *arguments)
    reference = scores_of(run_copy)
    shutil.rmtree(run_copy / "demo/influence")
    done, real = [], Phases.run

    def die_after_five(self, part, patterns, call):
        if len(done) == 5:
            raise KeyboardInterrupt
        real(self, part, patterns, lambda: (done.append(part), call()))

    with monkeypatch.context() as patch:
        patch.setattr(Phases, "run", die_after_five)
        with pytest.raises(KeyboardInterrupt):
            run(run_copy, *arguments)
    first = list(done)
    # What was being written when the process died: a truncated file under the final name.
    leftover = run_copy / "demo/influence/kronfluence/factors_ekfac/lambda_matrix_data_partition0_module_partition0.safetensors"
    leftover.write_bytes(b"half")
    with monkeypatch.context() as patch:
        patch.setattr(Phases, "run", lambda self, part, patterns, call: real(
            self, part, patterns, lambda: (done.append(part), call())))  # fmt: skip
        run(run_copy, *arguments)
    assert len(done) == len(set(done)) and first == done[:5]
    assert torch.equal(scores_of(run_copy), reference)


def test_a_killed_process_leaves_nothing_that_counts_and_the_rerun_is_right(run_copy):
    command = [sys.executable, "analyze.py", *QUICK, "--checkpoint_dir", str(run_copy)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    record = run_copy / "demo/influence/kronfluence/factors_ekfac/finished.json"
    while process.poll() is None and not (record.exists() and "covariance" in record.read_text()):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run_copy / "demo/influence/scores").exists()
    run(run_copy)
    scores = scores_of(run_copy)
    shutil.rmtree(run_copy / "demo/influence")
    run(run_copy)
    assert torch.allclose(scores_of(run_copy), scores, rtol=1e-3, atol=1e-3 * scores.abs().max())


def test_factors_of_an_earlier_model_are_refused_and_named(run_copy, capsys):
    run(run_copy)
    first = scores_of(run_copy)
    train.main([*SMALL, "--checkpoint_dir", str(run_copy), "--seed", "1"])
    with pytest.raises(Refused, match="another weights; pass --overwrite"):
        run(run_copy)
    with pytest.raises(Refused, match="another weights"):
        run(run_copy, "--damping_factor", "0.1")  # other scores, the same factors
    run(run_copy, "--overwrite")
    assert not close(scores_of(run_copy), first, 0.1)
    with pytest.raises(Refused, match="another seed"):
        run(run_copy, "--seed", "5")


def test_results_are_shown_without_computing(run_copy, capsys):
    with pytest.raises(Refused, match="ekfac_damping0.0001 has not been scored yet"):
        run(run_copy, "--query_index", "3")
    run(run_copy)
    capsys.readouterr()
    run(run_copy, "--query_index", "3", "--top_k", "2")
    lines = capsys.readouterr().out.splitlines()
    scores, data = scores_of(run_copy)[3], get_glue_dataset("demo", "train")
    best = int(scores.argmax())
    shown = next(line for line in lines if f"row {best:>6} " in line)
    assert data.text(best) in shown and data.label_name(best) in shown and f"{scores[best]:+.4g}" in shown
    assert sum("row " in line for line in lines) == 4
    with pytest.raises(Refused, match="--query_index must be from 0 to 8"):
        run(run_copy, "--query_index", "9")


def test_the_profile_is_printed(run_copy, capsys):
    run(run_copy, "--profile")
    out = capsys.readouterr().out
    assert all(word in out for word in ("Mean duration", "Num calls", "Total time", "Percentage", "Fit Lambda"))


def test_a_full_disk_leaves_no_scores(run_copy, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("attribution.store.save", full)
    assert run_script(analyze.main, [*QUICK, "--checkpoint_dir", str(run_copy)]) == 2
    assert "disk is full" in capsys.readouterr().err
    assert not list((run_copy / "demo/influence/scores").rglob("*scores*"))


# --- what is refused ---


def damage(checkpoints: Path, how: str) -> None:
    folder = checkpoints / "demo"
    run_file = folder / "run.json"
    if how == "missing":
        shutil.rmtree(folder)
    elif how == "half-written":
        run_file.unlink()
    elif how == "changed":
        save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    else:
        key, _, value = how.partition("=")
        run_file.write_text(json.dumps(json.loads(run_file.read_text()) | {key: json.loads(value)}))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "is missing; run: python train.py"),
        ("half-written", "is half-written; run: python train.py"),
        ("changed", "is damaged"),
        ('dataset_name="rte"', "was trained on rte, not demo"),
        ("num_labels=3", "has 3 labels, demo 2"),
        ("max_train_samples=50", "training rows are not those"),
    ],
)
def test_a_wrong_checkpoint_is_refused(run_copy, how, message):
    damage(run_copy, how)
    with pytest.raises(Refused, match=message):
        run(run_copy)


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
    assert run_script(analyze.main, [*QUICK, "--checkpoint_dir", str(trained), *extra]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_two_processes_are_refused(trained, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run_script(analyze.main, [*QUICK, "--checkpoint_dir", str(trained)]) == 2
    assert "runs in one process" in capsys.readouterr().err


def launched(*command: str) -> subprocess.CompletedProcess:
    command = [str(Path(sys.executable).parent / command[0]), *command[1:]]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_accelerates_launcher_gives_the_scores_of_one_process(run_copy, tmp_path):
    """On the CPU it starts one process, whatever --num_processes says."""
    arguments = [*QUICK, "--checkpoint_dir", str(run_copy)]
    done = launched("accelerate", "launch", "--num_processes", "2", "--cpu", "analyze.py", *arguments)
    assert done.returncode == 0, done.stderr
    scores = scores_of(run_copy)
    shutil.rmtree(run_copy / "demo/influence")
    run(run_copy)
    assert close(scores_of(run_copy), scores)


def test_a_launcher_of_two_processes_ends_with_the_refusal_and_writes_nothing(run_copy):
    done = launched("torchrun", "--nproc_per_node", "2", "analyze.py", *QUICK, "--checkpoint_dir", str(run_copy))
    assert done.returncode != 0 and "runs in one process" in done.stderr
    assert not (run_copy / "demo/influence").exists()


def test_an_unknown_kronfluence_is_refused_by_name(trained, monkeypatch):
    monkeypatch.setattr("attribution.eigenbasis.importlib.metadata.version", lambda name: "9.9")
    with pytest.raises(Refused, match="kronfluence 9.9 .*--stock"):
        run(trained)


def test_two_analyses_at_once_are_refused(run_copy):
    with analyze.exclusive(run_copy / "demo/influence"), pytest.raises(Refused, match="another process"):
        run(run_copy)
