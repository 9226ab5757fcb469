"""Single predictions are checked by retraining, right or wrong ones; the verdict stays below the
run's folder.
"""

import json
import shutil

import numpy as np
import pytest

import analyze
import run_counterfactual
from attribution import Run
from attribution.cli import run_script
from attribution.evidence.kept_verdicts import stored_verdicts
from attribution.show import verdicts

QUICK = ["--dataset_name", "demo", "--max_queries", "12", "--factor_strategy", "identity"]
PLAN = [
    "--dataset_name",
    "demo",
    "--max_queries",
    "12",
    "--strategies",
    "identity",
    "--removals",
    "10",
    "--jobs_per_device",
    "1",
]
TEXT = ["--query_text", "A fine soup."]


@pytest.fixture(scope="module")
def scored(trained, tmp_path_factory):
    """A run with stored scores and two verdicts; tests copy it (see `copied`)."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("verdicts") / "checkpoints")
    analyze.main([*QUICK, "--checkpoint_dir", str(folder)])
    run_counterfactual.main([*PLAN, "--checkpoint_dir", str(folder), "--targets", "3", "5"])
    return folder


def verdict(folder, name: str) -> dict:
    return json.loads((folder / f"demo/retraining/verdicts/{name}.json").read_text())


def refused(capsys, *argv: str) -> str:
    capsys.readouterr()
    assert run_script(run_counterfactual.main, list(argv)) == 2
    return capsys.readouterr().err


def test_a_verdict_holds_predicted_and_measured_and_both_arms(copied):
    for query in (3, 5):
        found = verdict(copied, f"identity_helpful_query{query}")
        assert found["query"] == query and len(found["seeds"]) == len(found["margins"]) == 5
        assert "base_right" not in found and len(found["right"]) == 5
        assert set(found["arms"]) == {"identity", "random, same classes"}
        for (level,) in found["arms"].values():
            low, high = level["interval"]
            assert low <= level["change"] <= high and level["removed"] == 10
            assert level["outcome"] in ("flipped", "mended", "stays right", "stays wrong")
        (level,) = found["arms"]["identity"]
        low, high = level["difference_interval"]
        assert low <= level["difference"] <= high
        assert level["word"] in ("confirmed", "not confirmed", "cannot tell")


def answers(folder, capsys, *argv: str) -> str:
    """Output of analyze.py on these questions."""
    capsys.readouterr()
    analyze.main([*QUICK, "--checkpoint_dir", str(folder), *argv])
    return capsys.readouterr().out


def test_an_answer_has_its_stored_verdict_in_the_place_of_the_command(copied, capsys):
    run = Run.open(copied, "demo")
    told = run.ask_rows(3, 4, factor_strategy="identity", max_queries=12)
    shown = answers(copied, capsys, "--query_index", "3", "4", "--format", "json")
    found = verdict(copied, "identity_helpful_query3")
    expected = [[{"word": verdicts.word(found), "sentence": verdicts.sentence(found)}], []]
    assert [json.loads(line)["verdicts"] for line in shown.splitlines()] == expected
    assert [one.record()["verdicts"] for one in told] == expected
    checked = answers(copied, capsys, "--query_index", "3")
    words = f"Checked by retraining: {verdicts.word(found)}. {verdicts.sentence(found)}"
    assert "".join(words.split()) in "".join(checked.split()) and "Not sure?" not in checked
    unchecked = answers(copied, capsys, "--query_index", "4")
    assert "Checked by" not in unchecked and "Not sure?" in unchecked


def test_a_rerun_retrains_nothing_and_more_removals_reuse_what_is_there(copied, capsys):
    before = verdict(copied, "identity_helpful_query3")
    stored = set((copied / "demo/retraining").rglob("*.safetensors"))
    run_counterfactual.main([*PLAN, "--checkpoint_dir", str(copied), "--targets", "3"])
    assert verdict(copied, "identity_helpful_query3") == before
    assert set((copied / "demo/retraining").rglob("*.safetensors")) == stored


def test_a_dry_run_counts_and_retrains_nothing(copied, capsys):
    stored = set((copied / "demo/retraining").rglob("*"))
    dry = ["--targets", "7", "--direction", "harmful", "--dry_run"]
    run_counterfactual.main([*PLAN, "--checkpoint_dir", str(copied), *dry, "--removals", "2"])
    assert "15 retrains, 5 of them stored" in capsys.readouterr().out
    assert (
        not (copied / "demo/retraining/verdicts/identity_harmful_query7.json").exists() and stored
    )


def test_own_queries_have_verdicts_and_are_forgotten_with_them(copied, capsys):
    where = ["--checkpoint_dir", str(copied)]
    assert "--query_text 'A fine soup.'" in refused(capsys, *PLAN, *where, *TEXT)
    analyze.main([*QUICK, *where, *TEXT])
    run_counterfactual.main([*PLAN, *where, *TEXT, "--direction", "harmful", "--removals", "5"])
    out = capsys.readouterr().out
    assert "5 more are stored, but without some of these queries" in out
    (path,) = (copied / "demo/retraining/verdicts").glob("identity_harmful_queries-*.json")
    assert json.loads(path.read_text())["texts"] == ["A fine soup."]
    analyze.main(["--dataset_name", "demo", *where, "--forget_queries"])
    left = [path.name for path in (copied / "demo").rglob("*") if "queries-" in path.name]
    assert not left and len(list((copied / "demo/retraining/verdicts").iterdir())) == 2


def test_two_seeds_give_a_hint(copied, capsys):
    capsys.readouterr()
    two = [*PLAN, "--checkpoint_dir", str(copied), "--targets", "3", "--num_retrain_seeds", "2"]
    run_counterfactual.main(two)
    assert "  a hint: " in capsys.readouterr().out
    assert len(verdict(copied, "identity_helpful_query3")["seeds"]) == 2


def test_a_verdict_of_another_recipe_is_not_shown_as_the_runs(copied, capsys):
    other = [*PLAN, "--checkpoint_dir", str(copied), "--targets", "3", "--learning_rate", "1e-4"]
    run_counterfactual.main(other)
    assert [one["query"] for one in stored_verdicts(Run.open(copied, "demo"))] == [5]
    assert "Checked by" not in answers(copied, capsys, "--query_index", "3")


def test_removing_what_a_prediction_rests_on_lowers_its_margin_more_than_random_rows(copied):
    changes = {"identity": [], "random, same classes": []}
    for query in (3, 5):
        for name, (level,) in verdict(copied, f"identity_helpful_query{query}")["arms"].items():
            changes[name].append(level["change"])
    assert np.mean(changes["identity"]) < np.mean(changes["random, same classes"])


def test_verdicts_that_cannot_be_are_refused(copied, capsys):
    base = [*PLAN, "--checkpoint_dir", str(copied)]
    assert "at least 2" in refused(capsys, *base, "--targets", "1", "--num_retrain_seeds", "1")
    for flag in ("--num_base_seeds", "--base_seed"):
        assert f"{flag} has no effect" in refused(capsys, *base, "--targets", "1", flag, "3")
    assert "exclude" in refused(capsys, *base, "--targets", "1", *TEXT)
    assert "goes with --query_text" in refused(capsys, *base, "--query_label", "positive")
    assert "--targets must be from 0 to 11" in refused(capsys, *base, "--targets", "12")
    assert "not less than" in refused(capsys, *base, "--targets", "1", "--removals", "120")
    assert "python analyze.py" in (
        err := refused(capsys, *base, "--targets", "1", "--strategies", "ekfac")
    )
    assert "--max_queries 12" in err, "the command that makes the scores knows as many queries"
