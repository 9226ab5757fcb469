"""What is removed is the top of the scores, arms are paired, and a rerun reuses everything."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import analyze
import run_counterfactual
import train
from attribution import counterfactual
from attribution.store import run_script
from pipeline import get_glue_dataset

QUERIES = ["--dataset_name", "demo", "--max_queries", "12"]


@pytest.fixture(scope="module")
def scored(trained, tmp_path_factory):
    """A checkpoint folder with stored scores and a first study; tests copy it."""
    folder = tmp_path_factory.mktemp("counterfactual") / "checkpoints"
    shutil.copytree(trained, folder)
    analyze.main([*QUERIES, "--checkpoint_dir", str(folder)])
    run(folder, folder.parent)
    return folder


@pytest.fixture
def copied(scored, tmp_path):
    shutil.copytree(scored, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def arguments(checkpoints, output, *extra: str) -> list[str]:
    outputs = ["--results_dir", str(output / "results"), "--figure_path", str(output / "figure" / "c.png")]
    plan = ["--num_targets", "4", "--removals", "10", "30", "--num_base_seeds", "1", "--num_retrain_seeds", "2"]
    arms = ["--strategies", "ekfac", "random", "--jobs_per_device", "1"]
    return [*QUERIES, "--checkpoint_dir", str(checkpoints), *plan, *arms, *outputs, *extra]


def run(checkpoints, output, *extra: str) -> dict:
    run_counterfactual.main(arguments(checkpoints, output, *extra))
    return json.loads((output / "results" / "counterfactual_demo.json").read_text())


def stored(checkpoints) -> set:
    return set((checkpoints / "demo/retraining").glob("*/*/*.safetensors"))


def refused(capsys, *args) -> str:
    capsys.readouterr()
    assert run_script(run_counterfactual.main, arguments(*args)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    return error


def test_the_removed_rows_are_the_top_of_the_stored_scores_and_random_ones_of_the_targets_class(copied, tmp_path):
    result = run(copied, tmp_path)
    scores = load_file(copied / "demo/influence/scores/ekfac/pairwise_scores.safetensors")["all_modules"]
    train, queries = (get_glue_dataset("demo", split, max_samples=120) for split in ("train", "valid"))
    assert result["targets"]
    for t, q in enumerate(result["targets"]):
        (removed,) = result["removed"]["ekfac"][t]
        assert removed == sorted(range(120), key=lambda row: (-scores[q, row], row))[:30]
        (drawn,) = result["removed"]["random"][t]
        assert len(set(drawn)) == 30 and (train.labels[drawn] == queries.labels[q]).all()


def test_ties_are_broken_by_row_number():
    assert counterfactual.most_helpful(np.array([1.0, 3.0, 3.0, -2.0, 1.0], np.float32)).tolist() == [1, 2, 0, 4, 3]


def test_a_rerun_retrains_nothing_and_writes_the_same_bytes_and_more_removals_reuse_what_is_there(copied, tmp_path):
    before = stored(copied)
    run(copied, tmp_path)
    files = ["results/counterfactual_demo.json", "results/counterfactual_demo.md", "figure/c.png"]
    first = [(tmp_path / name).read_bytes() for name in files]
    run(copied, tmp_path)
    assert stored(copied) == before and [(tmp_path / name).read_bytes() for name in files] == first
    result = run(copied, tmp_path, "--removals", "10", "30", "35")
    assert before < stored(copied)
    assert np.array_equal(np.array(result["margins"]["ekfac"], float)[:, :, :2], np.array(json.loads(first[0])["margins"]["ekfac"], float), equal_nan=True)


def test_nothing_removed_is_a_point_of_the_curve_with_the_retrain_seeds(copied, tmp_path):
    result = run(copied, tmp_path)
    assert result["removals"] == [0, 10, 30] and np.shape(result["base_margins"]) == (len(result["targets"]), 2)
    for curve in result["curves"].values():
        assert len(curve["flipped"]) == 3 and curve["margin_change"][0] == 0
    assert not set(result["base_seeds"]) & set(result["retrain_seeds"])


class Orders:
    """Two arms, two targets; target 0 of arm `a` flips at the first removal."""

    base = np.array([[1.0, 2.0], [3.0, 1.0]])
    orders = {"a": [[np.arange(4)], [np.arange(4)]], "random": [[np.arange(3), np.arange(1, 4)]] * 2}

    def plan(self):
        return counterfactual.Plan(self.orders, [1, 2], np.arange(9), [7, 8])


def test_a_flipped_target_is_carried_forward_and_not_retrained():
    plan = Orders().plan()
    for place in plan.jobs(0, True):
        plan.record(place, 0, np.array([-1.0, -2.0]) if place[:2] == ("a", 0) else np.array([2.0, -1.0]))
    assert ("a", 0, 0) not in plan.jobs(1, True) and len(plan.jobs(1, True)) == 5 and len(plan.jobs(1, False)) == 6
    assert plan.spared(1, True) == 2 and plan.spared(1, False) == 0
    for place in plan.jobs(1, True):
        plan.record(place, 1, np.array([1.0, 1.0]))
    flips, change = counterfactual.states(Orders.base, plan.margins["a"])
    assert flips[:, 0].tolist() == [[False, True, True], [False, False, False]]
    assert change[0, 0].tolist() == [0.0, -3.0, -3.0] and change[1, 0, 2] == pytest.approx(-1.0)
    assert counterfactual.listed(plan.margins["a"])[0][0][1] == [None, None]


def test_half_of_the_retrains_correct_is_not_flipped_and_all_jobs_are_paired_by_seed():
    assert counterfactual.flipped(np.array([[1.0, -1.0], [-1.0, -1.0], [np.nan, np.nan]])).tolist() == [False, True, False]
    jobs = Orders().plan().all_jobs()
    assert len(jobs) == 6 * 2 * 2 and {job.seed for job in jobs} == {7, 8}
    assert jobs[0].rows.tolist() == list(range(1, 9))


def test_curves_average_draws_and_pair_the_arms():
    plan = Orders().plan()
    for place in plan.jobs(0, False):
        for level in (0, 1):
            plan.record(place, level, np.array([-1.0, -1.0]) * (1 if place[2] == 0 else -1))
    curves = counterfactual.curves(Orders.base, plan.margins)
    assert curves["a"]["flipped"] == [0, 1, 1] and curves["random"]["flipped"] == [0, 0.5, 0.5]
    assert curves["random"]["flipped_difference"] == [0, -0.5, -0.5]
    assert curves["random"]["flipped_difference_interval"][1] == (-0.5, -0.5)
    low, high = curves["a"]["flipped_interval"][1]
    assert 0 < low < 1 and high == 1


def test_bad_input_is_refused_in_one_sentence(copied, tmp_path, capsys):
    assert "analyze.py --dataset_name demo" in refused(capsys, copied, tmp_path, "--strategies", "kfac_half_damping0.01")
    assert "--factor_strategy kfac --use_half_precision --damping_factor 0.01" in refused(
        capsys, copied, tmp_path, "--strategies", "kfac_half_damping0.01"
    )
    for bad in (["--removals", "30", "10"], ["--removals", "0"], ["--removals", "10", "100"], ["--retrain_seed", "0"]):
        refused(capsys, copied, tmp_path, *bad)
    refused(capsys, copied, tmp_path, "--strategies", "ekfac", "ekfac")


def test_a_regression_task_is_refused(glue_dir, tmp_path, capsys):
    model = Path(run_counterfactual.__file__).parent / "demo"
    shared = ["--dataset_name", "stsb", "--dataset_path", str(glue_dir), "--checkpoint_dir", str(tmp_path)]
    train.main([*shared, "--model_name_or_path", str(model), "--max_train_samples", "16", "--num_train_epochs", "1"])
    assert run_script(run_counterfactual.main, [*shared, "--max_queries", "5"]) == 2
    assert "regression task" in capsys.readouterr().err


def test_scores_of_another_checkpoint_are_refused_by_what_differs(copied, tmp_path, capsys):
    path = copied / "demo/influence/scores/ekfac/pairwise_scores.json"
    record = json.loads(path.read_text())
    record["fingerprint"]["weights"] = "0"
    path.write_text(json.dumps(record))
    assert "other weights" in refused(capsys, copied, tmp_path)


def test_no_target_that_all_seeds_get_right_is_refused_with_the_accuracy(copied, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run_counterfactual, "base_runs", lambda *_: np.array([[1.0, -1.0, -1.0, -1.0], [-1.0, 1.0, -1.0, -1.0]]))
    assert "accuracy is 0.25" in refused(capsys, copied, tmp_path)


def test_the_rows_of_one_target_are_shown_with_text_and_label(copied, tmp_path, capsys):
    before = stored(copied)
    run_counterfactual.main(arguments(copied, tmp_path, "--query_index", "2", "--show", "3"))
    out = capsys.readouterr().out
    assert "ekfac removes, in this order:" in out and out.count("  row ") == 6 and stored(copied) == before


def test_a_dry_run_counts_and_stops(copied, tmp_path, capsys):
    run_counterfactual.main(arguments(copied, tmp_path, "--dry_run", "--removals", "10", "30", "40"))
    assert "of them stored" in capsys.readouterr().out and not (tmp_path / "results").exists()


def test_the_figure_is_drawn_again_from_the_json_with_arms_in_their_order(copied, tmp_path):
    run(copied, tmp_path, "--strategies", "random", "ekfac")
    first = (tmp_path / "figure/c.png").read_bytes()
    (tmp_path / "figure/c.png").unlink()
    run_counterfactual.main(arguments(tmp_path / "nowhere", tmp_path, "--plot_only"))
    assert (tmp_path / "figure/c.png").read_bytes() == first
