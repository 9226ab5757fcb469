"""The table says what retraining says, refuses ground truth of something else, and can be drawn
again.
"""

import shutil

import numpy as np
import pytest
import torch
from running import COUNTERFACTUAL, DEMO, LDS, QUERIES, SMALL, refusal, retrains, tamper
from safetensors.numpy import load_file
from scipy.stats import spearmanr

import analyze
import evaluate_lds
import train
from attribution.evidence.arguments import BASELINES, RETRAIN_SEED
from attribution.evidence.study import Study
from attribution.files import read_json
from attribution.training.queries import predict_run
from attribution.training.run import Run
from pipeline import DEMO_MODEL

MASKS = ["--num_masks", "4", "--num_repeats", "2"]  # as in LDS.plan


@pytest.fixture(scope="module")
def scored(trained, tmp_path_factory):
    """A checkpoint folder with stored scores and the retrains of 4 masks x 2 repeats; tests copy it
    (see `copied`).
    """
    folder = tmp_path_factory.mktemp("lds") / "checkpoints"
    shutil.copytree(trained, folder)
    for arguments in (["--damping_factor", "1e-8"], ["--factor_strategy", "identity"]):
        analyze.main([*QUERIES, "--checkpoint_dir", str(folder), *arguments])
    LDS.run(folder, folder.parent)
    return folder


def test_the_table_has_every_stored_score_and_baseline_and_a_rerun_retrains_nothing(
    copied, tmp_path, capsys
):
    stored = retrains(copied)
    assert len(stored) == 8
    result = LDS.run(copied, tmp_path)
    assert retrains(copied) == stored
    assert set(result["scores"]) == {"ekfac", "identity", *BASELINES}
    assert (result["masks"], result["repeats"], result["queries"], result["rows"]) == (
        4,
        2,
        12,
        120,
    )
    assert result["scores"]["ekfac"]["spearman_with_ekfac"] == pytest.approx(1)
    out = capsys.readouterr().out
    assert "8 retrains, 8 of them stored" in out and "noise ceiling" in out
    assert (tmp_path / "results/lds_demo.md").read_text().count("\n| ") == 2 + len(result["scores"])
    assert (tmp_path / "figure/lds.png").read_bytes().startswith(b"\x89PNG")


def test_the_score_is_the_correlation_of_summed_scores_with_retrained_margins(copied, tmp_path):
    result = LDS.run(copied, tmp_path)
    with np.load(next((copied / "demo/retraining").glob("*/lds_*.npz"))) as truth:
        masks, margins = truth["masks"], truth["margins"]
    assert (masks.sum(1) == 60).all()
    scores = load_file(copied / "demo/influence/scores/ekfac/pairwise_scores.safetensors")[
        "all_modules"
    ]
    each = [
        spearmanr(masks @ scores[q].astype(float), margins[:, :, q].mean(1)).statistic
        for q in range(12)
    ]
    assert result["scores"]["ekfac"]["plain"]["lds"] == pytest.approx(np.mean(each), abs=1e-6)


def test_external_ground_truth_gives_the_same_numbers_and_prints_what_was_checked(
    copied, tmp_path, capsys
):
    own = LDS.run(copied, tmp_path)
    with np.load(next((copied / "demo/retraining").glob("*/lds_*.npz"))) as truth:
        torch.save(truth["masks"].astype(np.int8), tmp_path / "masks.pt")
        np.save(tmp_path / "margins.npy", truth["margins"].mean(1))
        np.save(tmp_path / "short.npy", truth["margins"][:, :, :5])
    external = [*QUERIES, "--checkpoint_dir", str(copied), "--results_dir", str(tmp_path / "e")]
    external += ["--num_bootstrap", "50", "--masks_path", str(tmp_path / "masks.pt")]
    evaluate_lds.main([*external, "--margins_path", str(tmp_path / "margins.npy")])
    result = read_json(tmp_path / "e/lds_demo.json") or {}
    shown = result["scores"]["ekfac"]["plain"]
    assert shown.items() <= own["scores"]["ekfac"]["plain"].items() and "share" not in shown
    assert result["ceiling"]["plain"] is None and own["ceiling"]["plain"] is not None
    assert "carries no fingerprint" in capsys.readouterr().out
    short = [*external, "--margins_path", str(tmp_path / "short.npy")]
    assert "scores of 12" in refusal(capsys, evaluate_lds.main, short)


def test_a_regressions_export_holds_its_outputs_and_members_speak_of_them_each_by_its_residual(
    tmp_path, capsys
):
    rows = tmp_path / "rows.csv"
    lines = [f"the {'soup' if i % 3 else 'bread'} number {i},{i % 5}.5" for i in range(40)]
    rows.write_text("\n".join(["text,value", *lines]))
    where = ["--dataset_name", "rows", "--checkpoint_dir", str(tmp_path / "checkpoints")]
    start = ["--dataset_path", str(rows), "--text_columns", "text", "--label_column", "value"]
    start += [
        "--model_name_or_path",
        str(DEMO_MODEL),
        "--num_train_epochs",
        "1",
        "--num_members",
        "2",
    ]
    train.main([*where, *start])
    analyze.main(
        [*where, "--max_queries", "4", "--factor_strategy", "identity", "--num_members", "2"]
    )
    few = [*where, "--max_queries", "4", "--num_bootstrap", "20"]
    few += ["--figure_path", str(tmp_path / "lds.png"), "--results_dir"]
    plan = ["--num_masks", "4", "--num_repeats", "2", "--jobs_per_device", "1"]
    evaluate_lds.main([*few, str(tmp_path / "own"), *plan])
    both = str(tmp_path / "own/lds_rows.npz")
    evaluate_lds.main([*few, str(tmp_path / "again"), "--masks_path", both, "--margins_path", both])
    own, again = (read_json(tmp_path / name / "lds_rows.json") for name in ("own", "again"))
    assert again["scores"] == own["scores"] and own["residuals"]["models"] == 2
    with np.load(both) as truth:
        np.savez(
            tmp_path / "odd.npz", **{**truth, "outputs": np.full_like(truth["outputs"], np.nan)}
        )
    odd = ["--masks_path", both, "--margins_path", str(tmp_path / "odd.npz")]
    assert "not of the same retrains" in refusal(
        capsys, evaluate_lds.main, [*few, str(tmp_path / "again"), *odd]
    )
    with np.load(both) as truth:
        masks, outputs = truth["masks"], truth["outputs"].mean(1)
    divided = []
    run = Run.open(tmp_path / "checkpoints", "rows")
    queries = run.rows(4)[1]
    for place in (run.folder, run.folder / "members/seed1"):
        member = Run.read(place)
        assert member is not None
        residuals = queries.labels - predict_run(member, queries).squeeze(-1).numpy()
        scores = load_file(place / "influence/scores/identity/pairwise_scores.safetensors")[
            "all_modules"
        ]
        divided.append(scores / residuals[:, None])
    mean = sum(one / one.std() for one in divided)
    each = [spearmanr(masks @ mean[q], outputs[:, q]).statistic for q in range(4)]
    assert own["scores"]["identity_members2"]["output"]["lds"] == pytest.approx(
        np.mean(each), abs=1e-6
    )


def test_exported_ground_truth_of_other_retrain_seeds_stands_beside_the_first(copied, tmp_path):
    LDS.run(copied, tmp_path)
    LDS.run(copied, tmp_path, "--retrain_seed", str(RETRAIN_SEED + 7))
    files = sorted((copied / "demo/retraining").glob("*/lds_*.npz"))
    for path, seed in zip(files, (RETRAIN_SEED, RETRAIN_SEED + 7), strict=True):
        assert f"retrain{seed}" in path.name


def test_exported_ground_truth_of_other_queries_stands_beside_the_first(copied, tmp_path):
    LDS.run(copied, tmp_path, "--max_queries", "6")
    LDS.run(copied, tmp_path, "--first_query", "6", "--max_queries", "6")
    files = sorted((copied / "demo/retraining").glob("*/lds_*.npz"))
    margins = {
        np.load(path)["margins"].tobytes()
        for path in files
        if np.load(path)["margins"].shape[2] == 6
    }
    assert len(margins) == 2


def test_own_ground_truth_of_another_recipe_is_refused(copied, tmp_path, capsys):
    path = str(next((copied / "demo/retraining").glob("*/lds_*.npz")))
    both = [*QUERIES, "--checkpoint_dir", str(copied), "--masks_path", path, "--margins_path", path]
    evaluate_lds.main(both)
    other = [*both, "--learning_rate", "1e-5"]
    assert "another recipe" in refusal(capsys, evaluate_lds.main, other)


def test_bad_arguments_are_refused_in_one_sentence(copied, tmp_path, capsys):
    for bad in (
        ["--alpha", "1"],
        ["--alpha", "0.001"],
        ["--num_masks", "2"],
        ["--masks_path", "x.npy"],
        ["--num_repeats", "0"],
    ):
        LDS.refused(capsys, copied, tmp_path, *bad)


def test_scores_of_another_checkpoint_are_left_out_and_that_is_said(copied, tmp_path, capsys):
    path = copied / "demo/influence/scores/identity/pairwise_scores.json"
    tamper(path, lambda record: record | {"fingerprint": record["fingerprint"] | {"weights": "0"}})
    assert "identity" not in LDS.run(copied, tmp_path)["scores"]
    assert (
        "identity: will be left out, its scores were made from other weights"
        in capsys.readouterr().err
    )


def test_what_the_table_will_lack_is_said_before_anything_is_retrained(copied, capsys):
    where = ["--dataset_name", "demo", "--checkpoint_dir", str(copied)]
    evaluate_lds.main([*where, "--max_queries", "5", "--dry_run"])
    errors = capsys.readouterr().err
    assert "identity: will be left out, its scores were made from other query rows\n" in errors
    assert (
        f"make some with: python analyze.py {' '.join(where)} --max_queries 5 "
        "--factor_strategy ekfac --overwrite" in errors
    )
    evaluate_lds.main([*where, "--max_queries", "12", "--dry_run"])
    errors = capsys.readouterr().err
    assert "left out" not in errors and "no stored scores" not in errors
    evaluate_lds.main([*where, "--first_query", "3", "--max_queries", "5", "--dry_run"])
    assert (
        f"python analyze.py {' '.join(where)} --max_queries 5 --factor_strategy ekfac "
        "--first_query 3\n" in capsys.readouterr().err
    )


def test_a_scored_model_that_shares_a_seed_with_the_retrains_is_named(copied, tmp_path, capsys):
    assert LDS.run(copied, tmp_path)["shared_seeds"] == []
    other = tmp_path / "other"
    train.main([*SMALL, "--checkpoint_dir", str(other), "--seed", str(RETRAIN_SEED + 1)])
    analyze.main([*QUERIES, "--checkpoint_dir", str(other)])
    assert "share seeds" not in capsys.readouterr().out
    assert LDS.run(other, other)["shared_seeds"] == [RETRAIN_SEED + 1]
    assert f"share seeds ({RETRAIN_SEED + 1})" in capsys.readouterr().out


def test_the_screen_shows_some_columns_and_all_on_request(copied, tmp_path, capsys):
    compared = "minus ekfac [95 %]"
    LDS.start(copied, tmp_path, "--all_columns")
    assert compared in capsys.readouterr().out
    LDS.start(copied, tmp_path)
    assert compared not in capsys.readouterr().out


def test_a_dry_run_counts_and_writes_no_table(copied, tmp_path, capsys):
    LDS.start(copied, tmp_path, "--num_masks", "8", "--dry_run")
    assert "16 retrains, 8 of them stored" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()


def test_the_figure_is_drawn_again_from_the_json_without_its_checkpoint(copied, tmp_path, capsys):
    LDS.run(copied, tmp_path)
    first = (tmp_path / "figure/lds.png").read_bytes()
    (tmp_path / "figure/lds.png").unlink()
    LDS.redraw(tmp_path)
    assert (tmp_path / "figure/lds.png").read_bytes() == first
    shutil.rmtree(tmp_path / "results")
    gone = [*DEMO, "--plot_only", "--results_dir", str(tmp_path / "results")]
    assert "run without --plot_only" in refusal(capsys, evaluate_lds.main, gone)


def test_a_study_without_a_named_place_changes_nothing_but_its_runs_folder(copied, monkeypatch):
    monkeypatch.chdir(copied.parent)
    few = ["--num_masks", "4", "--num_repeats", "2", "--num_bootstrap", "20"]
    evaluate_lds.main([*QUERIES, "--jobs_per_device", "1", *few])
    studies = copied / "demo/studies"
    ends = ("json", "md", "npz", "run.json", "png")
    assert {path.name for path in studies.iterdir()} == {f"lds.{end}" for end in ends}
    assert [path.name for path in copied.parent.iterdir()] == ["checkpoints"]


@pytest.mark.parametrize("study", [LDS, COUNTERFACTUAL], ids=lambda study: study.name)
def test_a_study_of_another_run_is_not_replaced_and_that_is_said_before_the_work(
    copied, tmp_path, capsys, monkeypatch, study
):
    study.run(copied, tmp_path)
    path = tmp_path / f"results/{study.name}_demo.json"
    around = path.with_suffix(".run.json")
    before = path.read_bytes()
    tamper(around, lambda record: record | {"fingerprints": {"weights": "0"}})
    monkeypatch.setattr(Study, "run_jobs", lambda *_: pytest.fail("work began"))
    for damage in (None, b"{", b""):
        if damage is not None:
            around.write_bytes(damage)
        error = study.refused(capsys, copied, tmp_path)
        assert f"{path} is a study of a run with" in error and "other weights" in error
        assert "name another --results_dir" in error and path.read_bytes() == before
    assert "is a study of a run" in study.refused(capsys, copied, tmp_path, "--dry_run")
