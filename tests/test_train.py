"""What train.py saves opens elsewhere and is described; bad input and a full disk leave nothing
that counts.
"""

import json
from types import SimpleNamespace

import datasets
import pytest
from running import SMALL, refusal, save_tables
from safetensors.torch import load_file
from transformers import pipeline as transformers_pipeline

import analyze
import train
from attribution.commands import train as commands
from attribution.data.tasks import TASKS
from attribution.files import Refused
from pipeline import DEMO_MODEL


def test_the_saved_run_opens_with_transformers_and_is_described(trained):
    folder = trained / "demo"
    run = json.loads((folder / "run.json").read_text())
    assert (
        run["max_train_samples"] == 120
        and run["recipe"]["num_train_epochs"] == 2
        and len(run["epochs"]) == 2
    )
    assert (folder / "model.safetensors").exists() and "accuracy" in run["evaluation"]["validation"]
    answer = transformers_pipeline("text-classification", model=str(folder))(
        "Yesterday, the soup was hot."
    )
    assert answer[0]["label"] in ("negative", "positive")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--dataset_name", "foo"], "unknown task"),
        (["--train_batch_size", "0"], "--train_batch_size must be above 0"),
        (["--num_train_epochs", "-1"], "--num_train_epochs must be above 0"),
        (["--max_length", "200"], "--max_length 200 is more than the 128 positions"),
        (["--learning_rate", "0"], "--learning_rate must be above 0"),
        (["--model_name_or_path", "/nowhere/bert"], "/nowhere/bert"),
        (["--dataset_path", "/nowhere/glue"], "neither a folder nor a hub id"),
        (["--quantum", "3"], "there is no argument --quantum; --help"),
        (
            ["--train_batchsize=8"],
            "no argument --train_batchsize (did you mean '--train_batch_size'?)",
        ),
        (["stray"], "unrecognized arguments: stray; --help"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(extra, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("attribution.hub.constants.HF_HUB_OFFLINE", True)
    error = refusal(capsys, train.main, [*SMALL, "--checkpoint_dir", str(tmp_path), *extra])
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())  # no empty folder


def test_a_folder_that_is_no_data_set_and_a_missing_column_are_refused(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("hello")
    with pytest.raises(Refused, match="readme.txt is no file of the kinds parquet, csv"):
        train.main([*SMALL, "--dataset_path", str(tmp_path / "notes")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refused, match="cannot open the data set"):
        train.main([*SMALL, "--dataset_path", str(tmp_path / "empty")])
    table = datasets.Dataset.from_dict({"text": ["a"], "label": [0]})
    save_tables(tmp_path / "glue", {"demo": {"train": table, "validation": table}})
    with pytest.raises(Refused, match="no column 'sentence'"):
        train.main([*SMALL, "--dataset_path", str(tmp_path / "glue")])


def test_a_full_disk_leaves_no_checkpoint_that_counts(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    assert "disk is full" in refusal(
        capsys, train.main, [*SMALL, "--checkpoint_dir", str(tmp_path)]
    )
    assert (
        not (tmp_path / "demo" / "run.json").exists()
        and not (tmp_path / "demo" / "model.safetensors").exists()
    )


def test_two_validation_splits_and_regression_are_evaluated(tmp_path):
    """mnli has a matched and a mismatched split; stsb has no classes."""
    rows = {"premise": ["a cat"] * 6, "hypothesis": ["a dog"] * 6, "label": [0, 1, 2] * 2}
    pairs = {"sentence1": ["a cat"] * 6, "sentence2": ["a dog"] * 6, "label": [0.5, 1.0, 2.0] * 2}
    rows, pairs = datasets.Dataset.from_dict(rows), datasets.Dataset.from_dict(pairs)
    mnli = dict.fromkeys(("train", "validation_matched", "validation_mismatched"), rows)
    save_tables(tmp_path / "glue", {"mnli": mnli, "stsb": {"train": pairs, "validation": pairs}})
    for task, expected in (
        ("mnli", {"validation_matched": "accuracy", "validation_mismatched": "accuracy"}),
        ("stsb", {"validation": "pearson"}),
    ):
        common = ["--dataset_name", task, "--checkpoint_dir", str(tmp_path / "checkpoints")]
        train.main(
            [
                *common,
                "--dataset_path",
                str(tmp_path / "glue"),
                "--num_train_epochs",
                "1",
                "--model_name_or_path",
                str(DEMO_MODEL),
            ]
        )
        evaluation = json.loads((tmp_path / "checkpoints" / task / "run.json").read_text())[
            "evaluation"
        ]
        assert {
            split: metric for split, metric in expected.items() if metric in evaluation[split]
        } == expected
        analyze.main([*common, "--factor_strategy", "ekfac"])
        scores = load_file(
            tmp_path / "checkpoints" / task / "influence/scores/ekfac/pairwise_scores.safetensors"
        )
        assert scores["all_modules"].shape == (6, 6) and scores["all_modules"].isfinite().all()


def test_training_says_how_many_rows_are_cut(tmp_path, capsys):
    for length, said in ((128, ""), (8, " training rows reach 8 tokens, and what follows is not")):
        line = [*SMALL, "--max_length", str(length), "--num_train_epochs", "1", "--overwrite"]
        train.main([*line, "--checkpoint_dir", str(tmp_path)])
        assert ("and what follows is not read" in (out := capsys.readouterr().out)) == bool(said)
        assert said in out


def test_a_share_that_keeps_no_row_is_refused(tmp_path, capsys):
    few = [
        *SMALL,
        "--checkpoint_dir",
        str(tmp_path),
        "--num_members",
        "2",
        "--member_share",
        "0.0004",
    ]
    assert "keeps none of them" in refusal(capsys, train.main, few)


def test_an_adopted_model_gets_as_many_rows_as_a_trained_one(tmp_path, monkeypatch):
    limits = []
    tables = SimpleNamespace(task=TASKS["rte"])
    monkeypatch.setattr(commands, "open_tables", lambda *_: tables)
    monkeypatch.setattr(commands, "adopt", lambda *given: limits.append(given[3]))
    monkeypatch.setattr(commands, "fine_tune", lambda *given: limits.append(given[3]))
    command = ["--dataset_name", "rte", "--checkpoint_dir", str(tmp_path)]
    for extra in ([], ["--adopt", str(DEMO_MODEL)]):
        train.main([*command, *extra])
        train.main([*command, *extra, "--max_train_samples", "7"])
    assert limits == [2432, 7, 2432, 7]
