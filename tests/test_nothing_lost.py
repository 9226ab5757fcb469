"""What is finished survives what fails afterwards, and what cannot be written is said before the
work.
"""

import errno
import json
import math
import shutil

import numpy as np
import pytest
import torch
from running import QUICK, SMALL, scores_of

import analyze
import evaluate_lds
import run_counterfactual
import train
from attribution import files
from attribution.cli import check_numbers, run_script
from attribution.engine.tape import Stream
from attribution.engine.trackers import EigenLambdaTracker
from attribution.files import Refused
from attribution.influence import checkpoint
from attribution.influence.stored import ScoreFolder
from attribution.training import fit as training
from attribution.training.run import MARKER, Run

HUGE = ["--learning_rate", "1e30"]


# --- not finite ---


@pytest.mark.parametrize("script", [train, analyze, evaluate_lds, run_counterfactual])
@pytest.mark.parametrize(
    "flag", ["learning_rate", "weight_decay", "max_grad_norm", "alpha", "damping_factor"]
)
def test_numbers_that_are_not_finite_are_argument_errors(script, flag, capsys):
    for value in ("nan", "inf"):
        try:
            status = run_script(script.main, ["--dataset_name", "demo", f"--{flag}", value])
        except SystemExit as unknown:  # argparse: this script has no such flag
            status = unknown.code
        assert status == 2 and capsys.readouterr().err.strip()


def test_a_diverged_training_names_step_and_rate_and_leaves_no_run(tmp_path, capsys):
    assert run_script(train.main, [*SMALL, "--checkpoint_dir", str(tmp_path), *HUGE]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the loss of step 2 is not finite, at a learning rate of 1e+30" in error
    assert not (tmp_path / "demo/run.json").exists() and not list(tmp_path.rglob("*.safetensors"))


def test_weights_that_are_not_finite_after_the_last_step_are_not_saved(
    tmp_path, capsys, monkeypatch
):
    def spoil(model, *_, **__):
        model.classifier.bias.data[0] = math.nan

    monkeypatch.setattr("attribution.training.checkpoints.fit", spoil)
    assert run_script(train.main, [*SMALL, "--checkpoint_dir", str(tmp_path)]) == 2
    assert "left a weight that is not finite (classifier.bias)" in capsys.readouterr().err
    assert not (tmp_path / "demo/run.json").exists()


def test_a_diverged_retrain_is_stored_as_nan_and_counts_as_wrong(trained):
    from attribution.evidence.retraining import Retrainer

    run = Run.open(trained, "demo")
    train_rows, queries = run.rows(5)
    recipe = run.recipe | {"learning_rate": 1e30}
    retrain = Retrainer(run, None, train_rows, queries, recipe, torch.device("cpu"))
    result = retrain(np.arange(60), 0)
    assert np.isnan(result.margins).all() and not result.correct.any()


def test_scores_and_factors_that_are_not_finite_are_not_stored(run_copy, monkeypatch, capsys):
    whole = ScoreFolder.save

    def spoiled(self, kind, arrays, *rest):
        whole(self, kind, {name: values * math.nan for name, values in arrays.items()}, *rest)

    monkeypatch.setattr(ScoreFolder, "save", spoiled)
    arguments = [*QUICK, "--checkpoint_dir", str(run_copy)]
    assert run_script(analyze.main, arguments) == 2
    assert (
        "the pairwise scores are not finite (first at 0, 0), so nothing is stored"
        in capsys.readouterr().err
    )
    assert not list((run_copy / "demo/influence/scores").rglob("*.json"))
    monkeypatch.undo()
    whole_update = EigenLambdaTracker.update
    overflowing = lambda self, x, g: whole_update(self, x, Stream(g.tensor * math.inf))  # noqa: E731
    monkeypatch.setattr(EigenLambdaTracker, "update", overflowing)
    assert run_script(analyze.main, [*arguments, "--overwrite"]) == 2
    error = capsys.readouterr().err
    assert "lambda_matrix of" in error and "is not finite, so no factors are stored" in error
    assert not (run_copy / "demo/influence/factors/ekfac").exists()


# --- saved first, tried first ---


def test_an_evaluation_that_fails_loses_no_training(tmp_path, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("attribution.training.checkpoints.evaluate_model", fail)
    with pytest.raises(ZeroDivisionError):
        train.main([*SMALL, "--checkpoint_dir", str(tmp_path)])
    run = Run.open(tmp_path, "demo")
    record = json.loads((run.folder / "run.json").read_text())
    assert run.evaluation == {} and len(record["epochs"]) == 2


@pytest.mark.parametrize("place", ["--results_dir", "--figure_path", "--checkpoint_dir"])
def test_places_that_cannot_be_written_are_named_before_the_work(
    run_copy, tmp_path, capsys, monkeypatch, place
):
    blocked = tmp_path / "a file"
    blocked.write_text("")
    monkeypatch.setattr(training, "fit", lambda *_, **__: pytest.fail("work began"))
    where = blocked / "x.png" if place == "--figure_path" else blocked / "below"
    scripts = [train] if place == "--checkpoint_dir" else [evaluate_lds, run_counterfactual]
    for script in scripts:
        monkeypatch.setattr("attribution.evidence.retraining.fit", training.fit)
        shared = (
            [*SMALL]
            if script is train
            else ["--dataset_name", "demo", "--checkpoint_dir", str(run_copy)]
        )
        if script is run_counterfactual:
            shared += ["--strategies", "random", "--removals", "2"]
        assert run_script(script.main, [*shared, place, str(where)]) == 2
        assert "nothing can be written to" in capsys.readouterr().err


LONG = "n" * 300 + ".png"


@pytest.mark.parametrize("script", [analyze, evaluate_lds, run_counterfactual])
@pytest.mark.parametrize("name", [".", "", "folder", "folder.png", LONG, "a file/x.png"])
def test_a_file_that_cannot_be_there_is_named_before_the_work(
    run_copy, tmp_path, capsys, monkeypatch, script, name
):
    for folder in ("folder", "folder.png"):
        (tmp_path / folder).mkdir()
    (tmp_path / "a file").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "attribution.evidence.study.Study.run_jobs", lambda *_: pytest.fail("began")
    )
    monkeypatch.setattr(Run, "rows", Run.rows if script is not analyze else pytest.fail)
    argv = ["--dataset_name", "demo", "--checkpoint_dir", str(run_copy)]
    argv += ["--report" if script is analyze else "--figure_path", name]
    if script is run_counterfactual:
        argv += ["--strategies", "random", "--removals", "2"]
    assert run_script(script.main, argv) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and (name in error or "a file" in error)


@pytest.mark.parametrize("ending", ["json", "md", "npz", "run.json", "png"])
def test_a_folder_in_the_place_of_a_studys_file_is_named_before_the_work(
    run_copy, capsys, monkeypatch, ending
):
    folder = run_copy / f"demo/studies/lds.{ending}"
    folder.mkdir(parents=True)
    monkeypatch.setattr(
        "attribution.evidence.study.Study.run_jobs", lambda *_: pytest.fail("began")
    )
    argv = ["--dataset_name", "demo", "--checkpoint_dir", str(run_copy)]
    assert run_script(evaluate_lds.main, argv) == 2
    assert f"{folder} is a" in capsys.readouterr().err


def test_results_of_a_read_only_checkpoint_are_shown(run_copy, capsys, monkeypatch):
    arguments = [*QUICK, "--checkpoint_dir", str(run_copy)]
    analyze.main(arguments)
    shown = capsys.readouterr().out.splitlines()[-10:]
    monkeypatch.setattr(files, "write_bytes", lambda *_: pytest.fail("written"))
    monkeypatch.setattr(checkpoint, "exclusive", lambda *_, **__: pytest.fail("locked"))
    analyze.main(arguments)
    assert capsys.readouterr().out.splitlines()[-10:] == shown


def test_a_model_of_ones_own_is_never_overwritten_and_a_killed_save_is_redone(run_copy, capsys):
    folder = run_copy / "demo"
    (folder / "run.json").rename(folder / "elsewhere")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for script, flags in ((train, SMALL), (analyze, QUICK)):
        assert run_script(script.main, [*flags, "--checkpoint_dir", str(run_copy)]) == 2
        assert "holds a model that is no run of train.py" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / MARKER).write_text("")
    assert run_script(analyze.main, [*QUICK, "--checkpoint_dir", str(run_copy)]) == 2
    assert "is half-written; run: python train.py" in capsys.readouterr().err
    train.main([*SMALL, "--checkpoint_dir", str(run_copy)])
    assert not (folder / MARKER).exists() and Run.open(run_copy, "demo")


def test_the_start_of_retrains_is_the_one_of_training_or_is_refused(tmp_path, capsys):
    import small

    data = small.write(tmp_path / "data", "sst2", small.tables())
    model = small.save_model(tmp_path / "model", "bert")
    runs = ["--dataset_name", "sst2", "--checkpoint_dir", str(tmp_path / "runs")]
    train.main(
        [
            *runs,
            "--dataset_path",
            data,
            "--model_name_or_path",
            str(model),
            "--num_train_epochs",
            "1",
        ]
    )
    study = [*runs, "--num_masks", "3", "--num_repeats", "1", "--dry_run"]
    evaluate_lds.main(study)
    shutil.move(model, tmp_path / "moved")
    assert run_script(evaluate_lds.main, study) == 2
    assert "the start model of the run's training is not in" in (error := capsys.readouterr().err)
    assert "--model_name_or_path" in error
    evaluate_lds.main([*study, "--model_name_or_path", str(tmp_path / "moved")])
    assert (
        run_script(evaluate_lds.main, [*study, "--model_name_or_path", str(tmp_path / "runs/sst2")])
        == 2
    )
    assert "other weights than the one that the run was trained from" in capsys.readouterr().err
    shutil.move(data, tmp_path / "other data")
    assert run_script(analyze.main, [*runs, "--max_queries", "2"]) == 2
    assert "the data set of the run's training is not in" in capsys.readouterr().err
    analyze.main([*runs, "--max_queries", "2", "--dataset_path", str(tmp_path / "other data")])


def test_removing_all_rows_but_none_is_refused(tmp_path, capsys):
    import small

    one = {
        name: columns | {"label": [1] * len(columns["label"])}
        for name, columns in small.tables().items()
    }
    data = small.write(tmp_path / "data", "sst2", one)
    runs = ["--dataset_name", "sst2", "--checkpoint_dir", str(tmp_path / "runs")]
    train.main(
        [*runs, "--dataset_path", data, "--model_name_or_path", "demo", "--num_train_epochs", "1"]
    )
    assert (
        run_script(run_counterfactual.main, [*runs, "--strategies", "random", "--removals", "24"])
        == 2
    )
    assert "more than the 23 training rows that can go" in capsys.readouterr().err


# --- systems ---


def test_finite_numbers_pass_and_others_are_named():
    check_numbers({"a": 1.0, "b": None, "c": "nan"}, "a", "b")
    for value in (math.nan, math.inf, 0.0, -1):
        with pytest.raises(Refused, match="--a must be"):
            check_numbers({"a": value}, "a")


def test_a_file_system_without_locks_is_said_and_gone_on_with(run_copy, monkeypatch, capsys):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    monkeypatch.setattr(files.fcntl, "lockf", no_locks)
    analyze.main([*QUICK, "--checkpoint_dir", str(run_copy)])
    assert (
        "file system without locks" in capsys.readouterr().err
        and scores_of(run_copy).isfinite().all()
    )
    evaluate = [
        "--dataset_name",
        "demo",
        "--checkpoint_dir",
        str(run_copy),
        "--max_queries",
        "9",
        "--num_masks",
        "3",
    ]
    evaluate_lds.main(
        [
            *evaluate,
            "--num_repeats",
            "1",
            "--jobs_per_device",
            "1",
            "--num_bootstrap",
            "10",
            "--results_dir",
            str(run_copy),
            "--figure_path",
            str(run_copy / "f.png"),
        ]
    )
    assert "without locks: processes may do the same retrain twice" in capsys.readouterr().err


def test_temporary_names_of_two_hosts_with_one_process_number_differ(tmp_path, monkeypatch):
    names = set()
    for host in ("one", "two", "two"):
        monkeypatch.setattr(files.socket, "gethostname", lambda host=host: host)
        names.add(files.temporary_name(tmp_path / "x"))
    assert len(names) == 3


def test_what_steers_a_terminal_is_shown_as_what_it_is():
    assert files.printable("plain, é and 好") == "plain, é and 好"
    assert files.printable("a\x1b[31mred\n\u202eb") == "a\\x1b[31mred\\n\\u202eb"
