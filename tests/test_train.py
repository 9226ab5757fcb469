"""Training is a function of its arguments, and what it saves opens elsewhere."""

import json

import datasets
import numpy as np
import pytest
import torch
from conftest import SMALL
from safetensors.torch import load_file
from transformers import pipeline as transformers_pipeline

import analyze
import train
from attribution.store import Refused, run_script
from pipeline import DEMO_MODEL, compute_loss, construct_bert, get_glue_dataset, model_inputs

RECIPE = {"learning_rate": 1e-3, "weight_decay": 0.01, "num_train_epochs": 1, "train_batch_size": 8}


@pytest.fixture(scope="module")
def data():
    return get_glue_dataset("demo", "train", max_samples=40)


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_same_seed_same_weights_bit_for_bit_whatever_the_process_did_before(data):
    torch.manual_seed(1)
    first = weights(train.fit(construct_bert("demo", seed=3), data, np.arange(40), seed=3, **RECIPE))
    torch.manual_seed(2)
    assert torch.equal(first, weights(train.fit(construct_bert("demo", seed=3), data, np.arange(40), seed=3, **RECIPE)))
    other = weights(train.fit(construct_bert("demo", seed=4), data, np.arange(40), seed=4, **RECIPE))
    assert not torch.equal(first, other)


def test_removing_rows_leaves_the_order_of_the_others():
    rows = np.arange(50)
    full = train.epoch_order(rows, 1, 2)
    kept = np.delete(rows, [4, 17, 30])
    assert np.array_equal(train.epoch_order(kept, 1, 2), full[np.isin(full, kept)])
    assert not np.array_equal(full, train.epoch_order(rows, 1, 3))


def test_the_epochs_loss_is_the_mean_over_examples_with_an_uneven_last_batch(data):
    losses = []
    train.fit(
        construct_bert("demo"), data, np.arange(19), seed=0, on_epoch=lambda epoch, loss, seconds: losses.append(loss),
        **RECIPE | {"learning_rate": 1e-12, "weight_decay": 0.0},
    )  # fmt: skip
    model, batch = construct_bert("demo").eval(), data.batch(range(19))
    expected = compute_loss(model(**model_inputs(batch)).logits, batch["labels"]).item() / 19
    assert losses == [pytest.approx(expected, rel=1e-4)]


def test_frozen_embeddings_stay_and_the_rest_moves(data):
    start = construct_bert("demo")
    model = train.fit(construct_bert("demo"), data, np.arange(16), seed=0, freeze_embeddings=True, **RECIPE)
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, start.get_parameter(name))}
    assert moved and not any("embeddings" in name for name in moved)


def test_the_linear_schedule_takes_smaller_steps_than_the_constant_one(data):
    start = weights(construct_bert("demo"))
    distance = {}
    for schedule in train.SCHEDULES:
        model = train.fit(construct_bert("demo"), data, np.arange(40), seed=0, lr_schedule=schedule, **RECIPE)
        distance[schedule] = (weights(model) - start).norm().item()
    assert distance["linear"] < distance["constant"]


def test_prediction_does_not_depend_on_batch_size(data):
    model = construct_bert("demo")
    assert torch.allclose(train.predict(model, data, 3), train.predict(model, data, 40), atol=1e-5)


def test_the_saved_run_opens_with_transformers_and_is_described(trained):
    folder = trained / "demo"
    run = json.loads((folder / "run.json").read_text())
    assert run["max_train_samples"] == 120 and run["recipe"]["num_train_epochs"] == 2 and len(run["epochs"]) == 2
    assert (folder / "model.safetensors").exists() and "accuracy" in run["evaluation"]["validation"]
    answer = transformers_pipeline("text-classification", model=str(folder))("Yesterday, the soup was hot.")
    assert answer[0]["label"] in ("LABEL_0", "LABEL_1")


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
    ],
)
def test_bad_input_is_one_sentence_and_status_2(extra, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("attribution.hub.constants.HF_HUB_OFFLINE", True)
    assert run_script(train.main, [*SMALL, "--checkpoint_dir", str(tmp_path), *extra]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_folder_that_is_no_data_set_and_a_missing_column_are_refused(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("hello")
    with pytest.raises(Refused, match="cannot open the data set"):
        train.main([*SMALL, "--dataset_path", str(tmp_path / "notes")])
    folder = tmp_path / "glue" / "demo"
    folder.mkdir(parents=True)
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text('{"text": "a", "label": 0}\n')
    config = "configs:\n- config_name: demo\n  data_files:\n"
    config += "".join(f"  - split: {split}\n    path: demo/{split}.jsonl\n" for split in ("train", "validation"))
    (tmp_path / "glue" / "README.md").write_text(f"---\n{config}---\n")
    with pytest.raises(Refused, match="no column 'sentence'"):
        train.main([*SMALL, "--dataset_path", str(tmp_path / "glue")])


def test_a_full_disk_leaves_no_checkpoint_that_counts(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    assert run_script(train.main, [*SMALL, "--checkpoint_dir", str(tmp_path)]) == 2
    assert "disk is full" in capsys.readouterr().err
    assert not (tmp_path / "demo" / "run.json").exists() and not (tmp_path / "demo" / "model.safetensors").exists()


def test_two_validation_splits_and_regression_are_evaluated(tmp_path):
    """mnli has a matched and a mismatched split; stsb has no classes."""
    rows = {"premise": ["a cat"] * 6, "hypothesis": ["a dog"] * 6, "label": [0, 1, 2] * 2}
    pairs = {"sentence1": ["a cat"] * 6, "sentence2": ["a dog"] * 6, "label": [0.5, 1.0, 2.0] * 2}
    config = ""
    for task, table, splits in (
        ("mnli", rows, ("train", "validation_matched", "validation_mismatched")),
        ("stsb", pairs, ("train", "validation")),
    ):
        (tmp_path / "glue" / task).mkdir(parents=True)
        config += f"- config_name: {task}\n  data_files:\n"
        for split in splits:
            datasets.Dataset.from_dict(table).to_parquet(tmp_path / "glue" / task / f"{split}.parquet")
            config += f"  - split: {split}\n    path: {task}/{split}.parquet\n"
    (tmp_path / "glue" / "README.md").write_text(f"---\nconfigs:\n{config}---\n")
    for task, expected in (
        ("mnli", {"validation_matched": "accuracy", "validation_mismatched": "accuracy"}),
        ("stsb", {"validation": "pearson"}),
    ):
        common = ["--dataset_name", task, "--checkpoint_dir", str(tmp_path / "checkpoints")]
        train.main([*common, "--dataset_path", str(tmp_path / "glue"), "--num_train_epochs", "1",
                    "--model_name_or_path", str(DEMO_MODEL)])  # fmt: skip
        evaluation = json.loads((tmp_path / "checkpoints" / task / "run.json").read_text())["evaluation"]
        assert {split: metric for split, metric in expected.items() if metric in evaluation[split]} == expected
        analyze.main([*common, "--factor_strategy", "ekfac"])
        scores = load_file(tmp_path / "checkpoints" / task / "influence/scores/ekfac/pairwise_scores.safetensors")
        assert scores["all_modules"].shape == (6, 6) and scores["all_modules"].isfinite().all()
