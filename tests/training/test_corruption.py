"""Labels made wrong on purpose: recorded, the same in every script, and never in the place of a run
with right ones.
"""

import json

import datasets
import numpy as np
import pytest
from running import SMALL, analyze_quickly, refusal

import train
from attribution.files import Refused
from attribution.training.corruption import corrupt, draw
from attribution.training.run import open_data, open_run
from pipeline import TASKS, get_task, load_tables

WRONG = ["--corrupt_labels", "0.1", "--corrupt_seed", "3"]


def test_rows_and_wrong_labels_are_a_function_of_seed_and_row():
    rows = draw(200, 0.1, 3)
    assert len(rows) == 20 and rows == draw(200, 0.1, 3) != draw(200, 0.1, 4)
    columns = {"sentence": ["a"] * 200, "label": [i % 3 for i in range(200)]}
    label = datasets.ClassLabel(names=["x", "y", "z"])
    splits = datasets.DatasetDict(
        train=datasets.Dataset.from_dict(columns).cast_column("label", label)
    )
    table = corrupt(splits, TASKS["mnli"], {"seed": 3, "rows": rows})["train"]
    changed = np.flatnonzero(np.array(table["label"]) != np.array(columns["label"]))
    assert changed.tolist() == rows == np.flatnonzero(table["flipped"]).tolist()
    shifts = (np.array(table["label"]) - np.array(columns["label"]))[rows] % 3
    assert set(shifts) == {1, 2} and table.features["label"].names == list(
        TASKS["mnli"].class_names
    )


def test_labels_of_every_sort_become_wrong_and_a_missing_one_is_refused():
    names = {"sentence": ["a"] * 4, "label": ["negative", "positive"] * 2}
    for values in (names["label"], [0.0, 1.0] * 2, ["0", "1"] * 2):
        splits = datasets.DatasetDict(train=datasets.Dataset.from_dict(names | {"label": values}))
        table = corrupt(splits, TASKS["sst2"], {"seed": 0, "rows": [0, 1]})["train"]
        assert table["label"][:] == [1, 0, 0, 1] and table["flipped"][:] == [
            True,
            True,
            False,
            False,
        ]
    for bad in ([0, None, 1, 1], [0, -1, 1, 1], ["negative", "good", "0", "1"]):
        splits = datasets.DatasetDict(train=datasets.Dataset.from_dict(names | {"label": bad}))
        with pytest.raises(Refused, match="row 1 of the split 'train'"):
            corrupt(splits, TASKS["sst2"], {"seed": 0, "rows": [1]})


def test_a_row_that_is_flipped_twice_is_right():
    clean = load_tables("demo")["train"]
    flipped = np.flatnonzero(clean["flipped"])
    table = corrupt(
        load_tables("demo"), get_task("demo"), {"seed": 0, "rows": [int(flipped[0]), 1]}
    )["train"]
    assert not table["flipped"][int(flipped[0])] and table["flipped"][1] != clean["flipped"][1]
    assert sum(table["flipped"]) == len(flipped) + (-1 + (1 if not clean["flipped"][1] else -1))


def test_every_script_sees_the_wrong_labels_and_says_who_finds_them(tmp_path, capsys):
    train.main([*SMALL, "--checkpoint_dir", str(tmp_path), *WRONG])
    record = json.loads((tmp_path / "demo/run.json").read_text())["corrupted"]
    assert record == {"share": 0.1, "seed": 3, "rows": draw(120, 0.1, 3)}
    rows, _ = open_data(*open_run(tmp_path, "demo"), None, 1)
    clean = np.array(load_tables("demo")["train"]["label"])[:120]
    assert np.flatnonzero(rows.labels != clean).tolist() == record["rows"]
    capsys.readouterr()
    analyze_quickly(tmp_path, "--self_influence")
    out = capsys.readouterr().out
    assert "who finds the" in out and "loss of the row" in out and "AUROC" in out


def test_corruption_that_cannot_be_is_refused(tmp_path, capsys, glue_dir):
    own = ["--checkpoint_dir", str(tmp_path)]
    assert "of its own" in refusal(capsys, train.main, [*SMALL, *WRONG])
    assert "between 0 and 1" in refusal(
        capsys, train.main, [*SMALL, *own, "--corrupt_labels", "1.5"]
    )
    assert "goes with" in refusal(capsys, train.main, [*SMALL, *own, "--corrupt_seed", "1"])
    stsb = [
        "--dataset_name",
        "stsb",
        "--dataset_path",
        str(glue_dir),
        "--model_name_or_path",
        "demo",
    ]
    assert "regression" in refusal(capsys, train.main, [*stsb, *own, *WRONG])


@pytest.mark.parametrize("path", ["checkpoints", "./checkpoints"])
def test_the_default_folder_keeps_its_right_labels_however_it_is_named(path, capsys):
    assert "of its own" in refusal(capsys, train.main, [*SMALL, *WRONG, "--checkpoint_dir", path])
