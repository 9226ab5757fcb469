"""The comparison of members reads what is stored, weighs checkpoints as it says, and prints what
makes the rest.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from running import SMALL, outputs, refusal

import analyze
import evaluate_lds
import train
from attribution.training.members import Members
from lab import members


def test_a_checkpoint_counts_as_much_as_the_learning_rate_of_the_steps_before_it():
    run = SimpleNamespace(steps=8, step=None)
    middle = SimpleNamespace(steps=8, step=4)
    assert members.rate_before(middle, "linear", 4) == pytest.approx(
        np.mean([1, 7 / 8, 6 / 8, 5 / 8])
    )
    assert members.rate_before(run, "linear", 4) == pytest.approx(np.mean([4, 3, 2, 1]) / 8)
    assert members.rate_before(run, "constant", 4) == 1.0
    assert members.weights_of("scaled", [1.0, 4.0], [0.5, 0.1]) == [1.0, 0.25]
    assert members.weights_of("plain", [1.0, 4.0], [0.5, 0.1]) == [1.0, 1.0]


def test_sets_are_compared_as_the_study_does_or_what_is_missing_is_named(
    run_copy, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(members, "SETS", {1: {"the run": Members()}, 2: {"steps": Members(1, 2)}})
    where = ["--dataset_name", "demo", "--checkpoint_dir", str(run_copy)]
    window = ["--first_query", "20", "--max_queries", "9"]
    mine = [
        *where,
        *window,
        "--scores",
        "identity",
        "ekfac",
        "--num_masks",
        "3",
        "--results_dir",
        str(tmp_path),
    ]
    members.main([*mine, "--plan"])
    planned = capsys.readouterr().out
    assert (
        "--factor_strategy identity --member_steps 2" in planned
        and "--mask_seed 1 --retrain_seed 200" in planned
    )
    plan = ["--num_masks", "3", "--num_repeats", "2", "--mask_seed", "1", "--retrain_seed", "200"]
    output = outputs(tmp_path, tmp_path / "f.png")
    study = [*where, *window, *plan, *output, "--num_bootstrap", "9"]
    evaluate_lds.main(study)
    assert "--plan" in refusal(capsys, members.main, mine)
    train.main([*SMALL, "--checkpoint_dir", str(run_copy), "--member_steps", "2"])
    for flags in ([], ["--member_steps", "2"]):
        analyze.main([*where, *window, "--factor_strategy", "identity", *flags])
    capsys.readouterr()
    members.main(mine)
    assert "ekfac: not all are scored of the run (1), steps (2);" in capsys.readouterr().out
    found = json.loads((tmp_path / "members_demo.json").read_text())
    assert {(row["members"], row["mean"]) for row in found["rows"]} == {
        ("the run", "scaled"),
        ("steps", "plain"),
        ("steps", "scaled"),
        ("steps", "by learning rate"),
    }
    of_steps = next(
        row for row in found["rows"] if (row["members"], row["mean"]) == ("steps", "scaled")
    )
    evaluate_lds.main(study)
    theirs = json.loads((tmp_path / "lds_demo.json").read_text())["scores"]["identity_steps2"][
        "plain"
    ]
    assert (
        of_steps["lds"] == pytest.approx(theirs["lds"], abs=1e-6)
        and len(of_steps["deviations"]) == 2
    )
    alone = next(row for row in found["rows"] if row["checkpoints"] == 1)
    assert of_steps["singles"][1] == pytest.approx(alone["lds"]) and alone["singles"] == [
        alone["lds"]
    ]
    assert "| identity | 2 | steps |" in (table := (tmp_path / "members_demo.md").read_text())
    assert "minus the same" not in table
    analyze.main([*where, *window, "--factor_strategy", "diagonal"])
    members.main([*mine, "--scores", "identity", "diagonal"])
    rows = json.loads((tmp_path / "members_demo.json").read_text())["rows"]
    theirs, ours = (
        next(r for r in rows if r["score"] == name) for name in ("diagonal", "identity")
    )
    assert (
        theirs["against_first"] == pytest.approx(theirs["lds"] - ours["lds"])
        and "against_first" not in ours
    )
    assert "minus the same members' identity" in (tmp_path / "members_demo.md").read_text()
