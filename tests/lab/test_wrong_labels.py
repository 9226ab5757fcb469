"""Labels are made wrong on purpose and written, and rankings are measured by who finds them."""

import json

import datasets
import numpy as np
import pytest
from running import SMALL, analyze_quickly, refusal, save_tables, tamper

import train
from attribution.data.tasks import TASKS
from attribution.files import Refused
from attribution.training.run import Run
from lab import wrong_labels
from lab.wrong_labels import corrupt, draw, stored_self_influence
from pipeline import load_tables


def table_of(columns: dict) -> datasets.Dataset:
    return datasets.Dataset.from_dict(columns)


def test_rows_and_wrong_labels_are_a_function_of_seed_and_row():
    rows = draw(200, 0.1, 3)
    assert len(rows) == 20 and rows == draw(200, 0.1, 3) != draw(200, 0.1, 4)
    assert rows[:4] == [5, 13, 33, 43]
    columns = {"sentence": ["a"] * 200, "label": [i % 3 for i in range(200)]}
    label = datasets.ClassLabel(names=list(TASKS["mnli"].class_names))
    table = corrupt(table_of(columns).cast_column("label", label), TASKS["mnli"], rows, 3)
    changed = np.flatnonzero(np.array(table["label"]) != np.array(columns["label"]))
    assert changed.tolist() == rows == np.flatnonzero(table["flipped"]).tolist()
    shifts = (np.array(table["label"]) - np.array(columns["label"]))[rows] % 3
    assert set(shifts) == {1, 2}
    assert table.features["label"].names == list(TASKS["mnli"].class_names)


def test_labels_of_every_sort_become_wrong_and_a_missing_one_is_refused():
    names = {"sentence": ["a"] * 4, "label": ["negative", "positive"] * 2}
    for values in (names["label"], [0.0, 1.0] * 2, ["0", "1"] * 2):
        table = corrupt(table_of(names | {"label": values}), TASKS["sst2"], [0, 1], 0)
        assert table["label"][:] == [1, 0, 0, 1]
        assert table["flipped"][:] == [True, True, False, False]
    for bad in ([0, None, 1, 1], [0, -1, 1, 1], ["negative", "good", "0", "1"]):
        with pytest.raises(Refused, match="row 1 of the split 'train'"):
            corrupt(table_of(names | {"label": bad}), TASKS["sst2"], [1], 0)


def test_a_row_that_is_flipped_twice_is_right():
    clean = load_tables("demo")["train"]
    flipped = np.flatnonzero(clean["flipped"])
    table = corrupt(clean, TASKS["demo"], [int(flipped[0]), 1], 0)
    assert not table["flipped"][int(flipped[0])] and table["flipped"][1] != clean["flipped"][1]
    assert sum(table["flipped"]) == len(flipped) + (-1 + (1 if not clean["flipped"][1] else -1))


def test_written_rows_are_a_data_set_whose_truth_the_study_reads(tmp_path, capsys):
    words = {"sentence": [f"film {i}" for i in range(60)], "label": [0, 1] * 30}
    splits = {"train": table_of(words), "validation": table_of(words).select(range(8))}
    save_tables(tmp_path / "glue", {"sst2": splits})
    out = ["--write", str(tmp_path / "wrong"), "--dataset_path", str(tmp_path / "glue")]
    kind = ["--share", "0.2", "--seed", "5", "--max_train_samples", "50"]
    wrong_labels.main([*out, *kind, "--dataset_name", "sst2"])
    assert "10 of 50 training labels" in capsys.readouterr().out
    written = load_tables("sst2", str(tmp_path / "wrong"))
    assert written["validation"]["label"][:] == [0, 1] * 4
    changed = np.flatnonzero(np.array(written["train"]["label"]) != np.array([0, 1] * 25))
    assert changed.tolist() == draw(50, 0.2, 5)
    start = ["--dataset_path", str(tmp_path / "wrong"), "--model_name_or_path", "demo"]
    runs = ["--dataset_name", "sst2", "--checkpoint_dir", str(tmp_path)]
    train.main([*runs, *start, "--num_train_epochs", "1"])
    run = Run.open(tmp_path, "sst2")
    rows, _ = run.rows(1)
    assert np.flatnonzero(wrong_labels.recorded(run, rows)).tolist() == changed.tolist()


def test_a_share_or_a_task_that_cannot_be_is_refused(tmp_path, capsys, glue_dir):
    out = ["--write", str(tmp_path / "wrong"), "--dataset_path", str(glue_dir)]
    many = [*out, "--dataset_name", "sst2", "--share", "1.5"]
    assert "between 0 and 1" in refusal(capsys, wrong_labels.main, many)
    regression = [*out, "--dataset_name", "stsb"]
    assert "regression" in refusal(capsys, wrong_labels.main, regression)


def test_the_study_ranks_every_way_and_refuses_a_run_without_truth(tmp_path, capsys):
    where = ["--checkpoint_dir", str(tmp_path)]
    train.main([*SMALL, *where, "--num_members", "2"])
    analyze_quickly(tmp_path, "--self_influence", "--factor_strategy", "identity")
    mine = ["--dataset_name", "demo", *where, "--num_members", "2", "--jobs_per_device", "1"]
    wrong_labels.main([*mine, "--results_dir", str(tmp_path)])
    found = json.loads((tmp_path / "wrong_labels_demo.json").read_text())
    names = list(found["rankings"])
    assert len(names) == 6 and "self-influence, identity" in names and found["rows"] == 120
    assert "| ranking | AUROC | recall at 5% |" in (tmp_path / "wrong_labels_demo.md").read_text()
    path = tmp_path / "demo/run.json"
    stored = len(list((tmp_path / "demo/retraining").rglob("*.safetensors")))
    wrong_labels.main([*mine, "--results_dir", str(tmp_path)])
    assert len(list((tmp_path / "demo/retraining").rglob("*.safetensors"))) == stored == 5
    tamper(path, lambda run: run | {"weights": "other"})
    assert "identity" not in stored_self_influence(Run.read(path.parent))
    elsewhere = ["--dataset_name", "rte", *where, "--results_dir", str(tmp_path)]
    assert "is missing" in refusal(capsys, wrong_labels.main, elsewhere)


def test_a_row_among_rows_of_another_class_disagrees_with_its_neighbours():
    features = np.concatenate([np.eye(2)[[0] * 20], np.eye(2)[[1] * 20]]) + 0.01
    labels = np.repeat([0, 1], 20)
    labels[3] = 1
    found = wrong_labels.neighbour_disagreement(features, labels)
    assert found.argmax() == 3 and found[3] == 1 and found[25] == 0


def test_rows_of_the_rarer_class_come_first_by_rarity():
    assert wrong_labels.rarity(np.array([1, 0, 1, 2, 1, 0])).tolist() == pytest.approx(
        [1 / 2, 2 / 3, 1 / 2, 5 / 6, 1 / 2, 2 / 3]
    )
