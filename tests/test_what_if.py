"""A what-if is asked of stored replayed scores, in seconds, and checked by retraining."""

import json
import shlex
import shutil

import pytest
from running import DEMO, SMALL

import analyze
import run_counterfactual
import train
from attribution.cli import run_script
from attribution.evidence.what_if import Smallest
from attribution.show.listing import headline
from attribution.show.scored import counterfactual_command
from attribution.show.what_if import doubt_text, smallest_text
from attribution.training.members import members_command
from attribution.training.run import Run

HALVES = ["--num_members", "2", "--member_steps", "2", "--member_share", "0.5"]
NAME = "replay_members2_steps2_share0.5"
ASKED = [*DEMO, "--max_queries", "9"]
FEW = ["--jobs_per_device", "1", "--retrain_queries", "9"]


@pytest.fixture(scope="module")
def scored(trained, tmp_path_factory):
    """A run with replayed scores in two halves."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("what_if") / "checkpoints")
    train.main([*SMALL, "--checkpoint_dir", str(folder), *HALVES])
    analyze.main([*ASKED, "--checkpoint_dir", str(folder), "--factor_strategy", "replay"])
    return folder


def told(capsys, folder, *argv: str) -> str:
    capsys.readouterr()
    run_counterfactual.main([*ASKED, "--checkpoint_dir", str(folder), *argv])
    return capsys.readouterr().out


def refused(capsys, folder, *argv: str) -> str:
    capsys.readouterr()
    command = [*ASKED, "--checkpoint_dir", str(folder), *argv]
    assert run_script(run_counterfactual.main, command) == 2
    return capsys.readouterr().err


def test_a_replay_that_counts_is_named_below_the_answer_to_a_custom_query(copied, capsys):
    asked = [*ASKED, "--checkpoint_dir", str(copied), "--query_text", "A fine soup."]
    command = "--factor_strategy replay --query_text 'A fine soup.'"

    def answer(*more: str) -> str:
        capsys.readouterr()
        analyze.main([*asked, *more])
        return capsys.readouterr().out

    assert command in answer("--factor_strategy", "identity")
    assert "A replay is stored" not in answer("--factor_strategy", "replay")
    path = copied / f"demo/influence/scores/{NAME}/self_scores.json"
    path.write_text(path.read_text().replace('"weights": "', '"weights": "0'))  # of another run
    assert "A replay is stored" not in answer("--factor_strategy", "identity")


def test_removed_and_relabelled_rows_are_replayed_without_a_model(copied, capsys, monkeypatch):
    def opened(*_):
        raise AssertionError("a model was opened")

    monkeypatch.setattr("attribution.training.run.Run.model", opened)
    out = told(capsys, copied, "--remove_rows", "3", "17", "--targets", "2", "5")
    assert NAME in out and "with 2 rows removed" in out
    assert "95 % intervals over 2 members)" in out and "one checkpoint" not in out
    assert out.count("replayed: margin") == 2 and "replayed: accuracy" in out
    out = told(capsys, copied, "--flip_labels", "4")
    assert "with 1 row with another label" in out and "query" not in out
    data, _ = Run.open(copied, "demo").rows(1)
    line = next(line for line in out.splitlines() if "row      4" in line)
    assert data.text(4) in line and line.endswith(f"-> [{data.task.name_of(1 - data.labels[4])}]")
    out = told(capsys, copied, "--smallest_set", "--targets", "2")
    assert "in replays" in out and "query 2" in out
    assert any(end in out for end in ("--remove_rows", "even without", "the seed may decide"))


def test_a_what_if_about_a_custom_query_is_replayed_and_retrained(copied, capsys):
    asked = ["--query_text", "a fine film"]
    changed = told(capsys, copied, "--remove_rows", "3", *asked)
    assert "query [" in changed and "a fine film" in changed
    assert changed.count("replayed: margin") == 1 and "validation rows" not in changed
    other = told(capsys, copied, "--remove_rows", "3", *asked, "--query_label", "negative")
    assert "query [negative]" in other
    out = told(capsys, copied, "--smallest_set", *asked)
    if "check it with" in out:
        command = shlex.split(out.partition("check it with: ")[2])[2:]
        args = run_counterfactual.parse_args(command)
        assert args.query_text == asked[1:] and args.check and args.remove_rows
    out = told(capsys, copied, "--remove_rows", "3", *asked, "--check", "--jobs_per_device", "1")
    assert "measured: margin" in out and "replayed: margin" in out


def test_a_smallest_set_names_the_whole_command_that_checks_it(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "my runs")
    run = Run.open(folder, "demo")
    data, queries = run.rows(9)
    title = headline(queries, 2)
    asked = f"{counterfactual_command(run, 9)} --targets 2"
    text = smallest_text(title, "negative", data, Smallest([3, 17], 2, 0, 2), asked, True)
    assert "(2 of 2 replays say negative with all rows, 0 without)" in text
    command = text.partition("check it with: ")[2]
    args = run_counterfactual.parse_args(shlex.split(command)[2:])
    assert (args.checkpoint_dir, args.max_queries) == (folder, 9)
    assert (args.remove_rows, args.targets, args.check) == (["3", "17"], [2], True)
    for found in (Smallest([3], 2, 0, 2), Smallest([], 1, 1, 2)):  # an adopted model's
        text = smallest_text(title, "negative", data, found, None, True)
        assert "run_counterfactual.py" not in text and "2 replays say negative" in text


@pytest.mark.parametrize(("likeness", "doubted"), [(0.1, True), (0.9, False), (None, False)])
def test_a_what_if_says_where_the_replay_is_unlike_the_training(run_copy, likeness, doubted):
    text = doubt_text(Run.open(run_copy, "demo"), 9, 2, likeness)
    assert ("this replay says little" in text) == bool(text) == doubted


def test_a_replay_of_one_checkpoint_says_that_it_has_no_interval_and_what_has(run_copy, capsys):
    analyze.main([*ASKED, "--checkpoint_dir", str(run_copy), "--factor_strategy", "replay"])
    members = members_command(Run.open(run_copy, "demo"))
    assert shlex.split(members)[1:4] == ["train.py", "--dataset_name", "demo"]
    for asked in (["--remove_rows", "3"], ["--smallest_set"]):
        out = told(capsys, run_copy, *asked, "--targets", "2")
        assert "one checkpoint: it gives no interval" in out and members in out
        assert "95 %" not in out and "--factor_strategy replay" in out


def test_a_check_retrains_with_the_same_rows_and_labels(copied, capsys):
    out = told(capsys, copied, "--remove_rows", "3", "--flip_labels", "4", "--check", *FEW)
    assert "replayed: accuracy" in out and "measured: accuracy" in out
    stores = {path.parent for path in (copied / "demo/retraining").glob("*/recipe.json")}
    assert len(stores) == 2  # with the rows' own labels, and with others
    out = told(capsys, copied, "--remove_rows", "3", "--check", *FEW, "--targets", "1")
    assert "10 retrains, 5 of them stored" in out and "measured: margin" in out


def test_a_verdict_predicts_both_arms_by_a_replay(copied, capsys):
    plan = ["--targets", "3", "--strategies", NAME, "--removals", "10"]
    told(capsys, copied, *plan, *FEW)
    path = copied / f"demo/retraining/verdicts/{NAME}_helpful_query3.json"
    found = json.loads(path.read_text())
    assert found["predicted_by"] == {"scores": NAME, "checkpoints": 2}
    assert found["said"] in ("negative", "positive")
    for (level,) in found["arms"].values():
        mean, (low, high) = level["predicted"]
        assert low < mean < high
    assert found["arms"][NAME][0]["predicted"][0] < 0  # without rows that help


def test_what_a_what_if_cannot_use_is_refused(copied, trained, capsys):
    assert "--smallest_set goes with --targets or" in refused(capsys, copied, "--smallest_set")
    asked = ["--remove_rows", "3"]
    assert "has no effect beside --smallest_set" in refused(
        capsys, copied, *asked, "--smallest_set"
    )
    for idle in (["--removals", "9"], ["--num_retrain_seeds", "5"], ["--strategies", "random"]):
        assert f"{idle[0]} has no effect" in refused(capsys, copied, *asked, *idle)
    assert "--check goes with" in refused(capsys, copied, "--check")
    assert "0 to 119" in refused(capsys, copied, "--remove_rows", "120")
    error = refused(capsys, trained, *asked)
    assert (
        "there are no replayed scores of these queries" in error
        and "--factor_strategy replay" in error
    )


def test_after_another_training_a_what_if_names_a_command_that_runs(copied, capsys):
    own = [*SMALL, "--checkpoint_dir", str(copied), "--seed", "1", "--overwrite"]
    train.main(own)  # of the members only those of seeds 1 are still the run's
    error = refused(capsys, copied, "--remove_rows", "3", "--targets", "2")
    analyze.main(shlex.split(error.partition("make them with: ")[2])[2:])
    assert "replayed: margin" in told(capsys, copied, "--remove_rows", "3", "--targets", "2")
