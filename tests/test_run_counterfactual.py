"""What is removed is the top of the scores, arms are paired, and a rerun reuses everything."""

import json
import shutil

import numpy as np
import pytest
from running import COUNTERFACTUAL, QUERIES, refusal, retrains, tamper
from safetensors.numpy import load_file

import analyze
import run_counterfactual
import train
from attribution.evidence.store import Results
from attribution.evidence.study import Study
from attribution.files import read_json, write_json
from pipeline import DEMO_MODEL, get_glue_dataset


@pytest.fixture(scope="module")
def scored(trained, tmp_path_factory):
    """A checkpoint folder with stored scores and a first study; tests copy it (see `copied`)."""
    folder = tmp_path_factory.mktemp("counterfactual") / "checkpoints"
    shutil.copytree(trained, folder)
    analyze.main([*QUERIES, "--checkpoint_dir", str(folder)])
    COUNTERFACTUAL.run(folder, folder.parent)
    return folder


def test_the_removed_rows_are_the_top_of_the_stored_scores_and_random_ones_of_the_targets_class(
    copied, tmp_path
):
    result = COUNTERFACTUAL.run(copied, tmp_path)
    scores = load_file(copied / "demo/influence/scores/ekfac/pairwise_scores.safetensors")[
        "all_modules"
    ]
    train, queries = (
        get_glue_dataset("demo", split, max_samples=120) for split in ("train", "valid")
    )
    assert result["targets"]
    for t, q in enumerate(result["targets"]):
        (removed,) = result["removed"]["ekfac"][t]
        assert removed == sorted(range(120), key=lambda row: (-scores[q, row], row))[:30]
        (drawn,) = result["removed"]["random"][t]
        assert len(set(drawn)) == 30 and (train.labels[drawn] == queries.labels[q]).all()


def test_a_rerun_retrains_nothing_and_writes_the_same_bytes_and_more_removals_reuse_what_is_there(
    copied, tmp_path
):
    before = retrains(copied)
    COUNTERFACTUAL.run(copied, tmp_path)
    files = [
        "results/counterfactual_demo.json",
        "results/counterfactual_demo.md",
        "figure/counterfactual.png",
    ]
    first = [(tmp_path / name).read_bytes() for name in files]
    COUNTERFACTUAL.run(copied, tmp_path)
    assert (
        retrains(copied) == before and [(tmp_path / name).read_bytes() for name in files] == first
    )
    result = COUNTERFACTUAL.run(copied, tmp_path, "--removals", "10", "30", "35")
    assert before < retrains(copied)
    margins = [
        np.array(study["margins"]["ekfac"], float) for study in (result, json.loads(first[0]))
    ]
    assert np.array_equal(margins[0][:, :, :2], margins[1], equal_nan=True)


def test_nothing_removed_is_a_point_of_the_curve_with_the_retrain_seeds(copied, tmp_path):
    result = COUNTERFACTUAL.run(copied, tmp_path)
    assert result["removals"] == [0, 10, 30] and np.shape(result["base_margins"]) == (
        len(result["targets"]),
        2,
    )
    for curve in result["curves"].values():
        assert len(curve["flipped"]) == 3 and curve["margin_change"][0] == 0
    assert not set(result["base_seeds"]) & set(result["retrain_seeds"])


def test_bad_input_is_refused_in_one_sentence(copied, tmp_path, capsys):
    error = COUNTERFACTUAL.refused(capsys, copied, tmp_path, "--strategies", "kfac")
    assert "cannot remove by kfac: there are no such scores; make them with: python" in error
    assert "analyze.py --dataset_name demo" in error and error.endswith("--factor_strategy kfac")
    unknown = "kfac_half_damping0.01"
    error = COUNTERFACTUAL.refused(capsys, copied, tmp_path, "--strategies", unknown)
    assert f"cannot remove by {unknown}: there are no such scores; stored are ekfac;" in error
    assert "names begin with identity, diagonal, kfac, ekfac, replay, see analyze.py" in error
    for bad in (
        ["--removals", "30", "10"],
        ["--removals", "0"],
        ["--removals", "10", "100"],
        ["--retrain_seed", "0"],
    ):
        COUNTERFACTUAL.refused(capsys, copied, tmp_path, *bad)
    COUNTERFACTUAL.refused(capsys, copied, tmp_path, "--strategies", "ekfac", "ekfac")


def test_without_named_arms_one_that_nobody_scored_is_left_out_and_said_and_the_first_is_needed(
    copied, capsys
):
    few = [
        *QUERIES,
        "--checkpoint_dir",
        str(copied),
        "--removals",
        "10",
        "--dry_run",
        "--num_targets",
        "1",
    ]
    run_counterfactual.main([*few, "--num_base_seeds", "1", "--num_retrain_seeds", "2"])
    errors = capsys.readouterr().err
    assert (
        "identity is left out: there are no such scores; make them with: python analyze.py"
        in errors
    )
    shutil.rmtree(copied / "demo/influence/scores")
    assert "cannot remove by ekfac: there are no such scores" in refusal(
        capsys, run_counterfactual.main, few
    )


def test_a_regression_task_is_refused(glue_dir, tmp_path, capsys):
    shared = [
        "--dataset_name",
        "stsb",
        "--dataset_path",
        str(glue_dir),
        "--checkpoint_dir",
        str(tmp_path),
    ]
    small = [
        "--model_name_or_path",
        str(DEMO_MODEL),
        "--max_train_samples",
        "16",
        "--num_train_epochs",
        "1",
    ]
    train.main([*shared, *small])
    assert "regression task" in refusal(
        capsys, run_counterfactual.main, [*shared, "--max_queries", "5"]
    )


def test_scores_of_another_checkpoint_are_refused_by_what_differs(copied, tmp_path, capsys):
    path = copied / "demo/influence/scores/ekfac/pairwise_scores.json"
    tamper(path, lambda record: record | {"fingerprint": record["fingerprint"] | {"weights": "0"}})
    assert "other weights" in COUNTERFACTUAL.refused(capsys, copied, tmp_path)


def test_stale_scores_are_refused_with_the_command_that_makes_them_again(copied, tmp_path, capsys):
    scores = copied / "demo/influence/scores"
    shutil.copytree(scores / "ekfac", scores / "kfac_half_damping0.01")
    changes = {"factor_strategy": "kfac", "use_half_precision": True, "damping_factor": 0.01}

    def change(record: dict) -> dict:
        stale = record["fingerprint"] | {"weights": "0"}
        return record | {"fingerprint": stale, "spec": record["spec"] | changes}

    tamper(scores / "kfac_half_damping0.01/pairwise_scores.json", change)
    arms = ["--strategies", "kfac_half_damping0.01"]
    error = COUNTERFACTUAL.refused(capsys, copied, tmp_path, *arms)
    assert "its scores were made from other weights" in error
    assert "analyze.py --dataset_name demo" in error and "--overwrite" in error
    assert "--factor_strategy kfac --use_half_precision --damping_factor 0.01" in error


def test_no_target_that_all_seeds_get_right_is_refused_with_the_accuracy(
    copied, tmp_path, capsys, monkeypatch
):
    margins = np.array([[1.0, -1.0, -1.0, -1.0], [-1.0, 1.0, -1.0, -1.0]])
    base = Results(margins, margins > 0, margins)
    monkeypatch.setattr(Study, "run_jobs", lambda *_: base)
    error = COUNTERFACTUAL.refused(capsys, copied, tmp_path, "--num_base_seeds", "2")
    assert "accuracy is 0.25" in error


def test_after_retrains_their_own_time_is_told_where_the_trainings_was(copied, tmp_path, capsys):
    (copied / "demo/retraining/time.json").unlink(missing_ok=True)
    question = [*QUERIES, "--checkpoint_dir", str(copied), "--query_index", "3"]

    def told() -> tuple[str, str]:
        COUNTERFACTUAL.start(copied, tmp_path, "--dry_run", "--removals", "35", "38")
        of_study = capsys.readouterr().out
        analyze.main(question)
        return of_study, capsys.readouterr().out

    before, answer_before = told()
    assert "the run's own training took" in before and " with one process" in answer_before
    COUNTERFACTUAL.start(copied, tmp_path, "--removals", "35")
    after, answer = told()
    assert "as fast as retrains were before" in after and " with one process" not in answer
    of_others = read_json(copied / "demo/retraining/time.json") | {"weights": "others"}
    write_json(copied / "demo/retraining/time.json", of_others)
    assert told()[1] == answer_before


def test_a_dry_run_counts_and_stops(copied, tmp_path, capsys):
    COUNTERFACTUAL.start(copied, tmp_path, "--dry_run", "--removals", "10", "30", "40")
    assert "of them stored" in capsys.readouterr().out and not (tmp_path / "results").exists()


def test_the_figure_is_drawn_again_from_the_json_with_arms_in_their_order(copied, tmp_path):
    COUNTERFACTUAL.run(copied, tmp_path, "--strategies", "random", "ekfac")
    first = (tmp_path / "figure/counterfactual.png").read_bytes()
    (tmp_path / "figure/counterfactual.png").unlink()
    COUNTERFACTUAL.redraw(tmp_path)
    assert (tmp_path / "figure/counterfactual.png").read_bytes() == first


def test_without_its_most_harmful_rows_a_wrong_prediction_may_be_mended(copied, tmp_path, capsys):
    harmful = [
        "--direction",
        "harmful",
        "--max_targets",
        "2",
        "--num_targets",
        "12",
        "--removals",
        "10",
    ]
    COUNTERFACTUAL.start(copied, tmp_path, *harmful)
    assert (
        "classified wrongly by all" in (out := capsys.readouterr().out)
        and "share of mended targets" in out
    )
    result = read_json(tmp_path / "results/counterfactual_demo_harmful.json")
    scores = load_file(copied / "demo/influence/scores/ekfac/pairwise_scores.safetensors")[
        "all_modules"
    ]
    assert 0 < len(result["targets"]) <= 2 and not np.any(
        np.array(result["base_run_correct"])[:, result["targets"]]
    )
    train = get_glue_dataset("demo", "train", max_samples=120)
    for t, q in enumerate(result["targets"]):
        (removed,), (drawn,) = result["removed"]["ekfac"][t], result["removed"]["random"][t]
        assert removed == sorted(range(120), key=lambda row: (scores[q, row], row))[:10]
        assert (train.labels[drawn] == train.labels[removed]).all() and drawn != removed
    for name, curve in result["curves"].items():
        right = np.array(result["correct"][name], float)[:, 0, 0]
        assert curve["mended"] == [
            np.mean(np.mean(x, -1) > 0.5) for x in (np.array(result["base_correct"]), right)
        ]
    assert "another arm first" in COUNTERFACTUAL.refused(
        capsys, copied, tmp_path, *harmful, "--strategies", "random"
    )


def test_the_page_shows_the_study_of_its_own_run_only(copied, tmp_path):
    where = [*QUERIES, "--checkpoint_dir", str(copied)]
    run_counterfactual.main([*where, *COUNTERFACTUAL.plan, "--jobs_per_device", "1"])
    study = copied / "demo/studies/counterfactual.json"
    page = tmp_path / "page.html"

    def shown() -> bool:
        analyze.main([*where, "--report", str(page)])
        return "right predictions that flip" in page.read_text()

    assert shown()
    for part in ("weights", "training rows", "start"):
        around = study.with_suffix(".run.json")
        before = around.read_bytes()
        tamper(
            around,
            lambda record, part=part: (
                record | {"fingerprints": record["fingerprints"] | {part: "0"}}
            ),
        )
        assert not shown(), part
        around.write_bytes(before)
    tamper(study, lambda result: result | {"recipe": result["recipe"] | {"learning_rate": 1.0}})
    assert not shown()
