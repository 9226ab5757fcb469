"""What is held of the queries is planned, and precision enters kronfluence's arguments where it is
wanted.
"""

import shutil

import pytest
import small
import torch
from processes import together
from running import influence_of
from safetensors.torch import load_file

import analyze
import train
from attribution.files import read_json
from attribution.influence.checkpoint import make_factor_arguments, make_score_arguments
from attribution.influence.settings import Settings


@pytest.mark.parametrize(("passes", "batch"), [(1, 4), (1, 32), (3, 32), (3, 2)])
def test_query_batches_fill_as_few_passes_as_memory_allows(run_copy, monkeypatch, passes, batch):
    monkeypatch.setattr("attribution.engine.memory.cheapest_side", lambda *_: (passes, True))
    influence = influence_of(run_copy, "--query_batch_size", str(batch))  # 9 queries
    plan = influence.analyses[0].plan("pairwise")
    assert 1 <= plan["query_batch"] <= batch
    assert -(-9 // plan["pass_queries"]) == passes


def test_half_precision_rounds_gradients_and_leaves_model_rotations_and_covariances():
    settings = Settings(use_half_precision=True, query_gradient_rank=3, damping_factor=0.5)
    factor, score = make_factor_arguments(settings), make_score_arguments(settings)
    assert {factor.per_sample_gradient_dtype, factor.lambda_dtype, score.score_dtype} == {
        torch.bfloat16
    }
    assert factor.amp_dtype is score.amp_dtype is None and score.precondition_dtype == torch.float32
    assert factor.activation_covariance_dtype == factor.gradient_covariance_dtype == torch.float64
    assert (score.damping_factor, score.query_gradient_low_rank) == (0.5, 3)
    stock = make_factor_arguments(Settings(use_half_precision=True, stock=True))
    assert stock.amp_dtype == stock.activation_covariance_dtype == torch.bfloat16


FEW = ["--max_train_samples", "24", "--num_train_epochs", "4"]  # rows, of a model of width 64
REPORT = "mnli/influence/scores/ekfac/report.html"
UNDETERMINED = "leave part of the curvature undetermined:"


@pytest.mark.parametrize("fisher", ["sampled", "exact"])
def test_scores_of_few_rows_depend_on_neither_batches_nor_processes(tmp_path, capsys, fisher):
    """Fewer rows than directions: in the others a row's gradient is rounding, and the damping is
    small.
    """
    where = ["--dataset_name", "demo", "--checkpoint_dir", str(tmp_path)]
    train.main([*where, *FEW])
    command = [*where, "--max_queries", "9", "--fisher", fisher]

    def scored(*extra: str, count: int = 1) -> torch.Tensor:
        shutil.rmtree(tmp_path / "demo/influence", ignore_errors=True)
        if count == 1:
            analyze.main([*command, *extra])
        else:
            assert together(count, lambda: analyze.main([*command, *extra])) == [0] * count
        (path,) = tmp_path.glob("demo/influence/scores/*/pairwise_scores.safetensors")
        return load_file(path)["all_modules"].clone()

    expected = scored()
    for found in (scored("--train_batch_size", "1"), scored(count=2)):
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert UNDETERMINED not in capsys.readouterr().err


def test_what_labels_sampled_of_three_classes_leave_undetermined_is_recorded_and_said_if_asked_for(
    tmp_path, capsys
):
    data = small.write(tmp_path / "data", "mnli", small.tables("mnli"))
    where = ["--dataset_name", "mnli", "--checkpoint_dir", str(tmp_path)]
    train.main([*where, "--dataset_path", data, "--model_name_or_path", "demo"])

    def scored(*extra: str) -> tuple[bool, str]:
        """(whether it is recorded, standard error)."""
        capsys.readouterr()
        analyze.main([*where, "--overwrite", *extra])
        paths = tmp_path.glob("mnli/influence/scores/*/pairwise_scores.json")
        newest = max(paths, key=lambda path: path.stat().st_mtime_ns)
        return read_json(newest).get("undetermined", False), capsys.readouterr().err

    recorded, error = scored()
    assert recorded and UNDETERMINED not in error
    analyze.main([*where, "--report"])
    assert "as labels were sampled" in (tmp_path / REPORT).read_text()
    for asked, rows in ((["--fisher", "sampled"], 24), (["--max_factor_rows", "20"], 20)):
        recorded, error = scored(*asked)
        assert recorded and f"sampled for {rows} rows {UNDETERMINED}" in error
        assert "--fisher exact" in error
    for known in (["--fisher", "exact"], ["--factor_strategy", "kfac"]):
        recorded, error = scored(*known)
        assert not recorded and UNDETERMINED not in error
