"""Asked from Python, a run answers as analyze.py does, and prints nothing."""

import csv
import json
import shutil

import pytest
from running import DEMO, analyze_quickly

import analyze
import attribution
from attribution import Run
from attribution.files import Refused

TEXT = "The soup was cold."
SETTINGS = {"damping_factor": 1e-4}


@pytest.fixture(scope="module")
def scored(trained, tmp_path_factory):
    """A run with stored scores of nine queries; tests copy it (see `copied`)."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("python") / "checkpoints")
    analyze_quickly(folder)
    return folder


def by_command(checkpoints, capsys, *argv: str) -> list[dict]:
    """Answers of analyze.py in JSON."""
    capsys.readouterr()
    analyze_quickly(checkpoints, "--format", "json", *argv)
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def as_json(answer) -> dict:
    return json.loads(json.dumps(answer.record()))


@pytest.mark.parametrize("label", [None, "negative"])
def test_a_text_has_the_answer_of_the_command_and_nothing_is_printed(copied, capsys, label):
    capsys.readouterr()
    answer = Run.open(str(copied), "demo").ask(TEXT, label=label, top_k=3, **SETTINGS)
    assert capsys.readouterr().out == ""
    more = [] if label is None else ["--query_label", label]
    assert by_command(copied, capsys, "--query_text", TEXT, "--top_k", "3", *more) == [
        as_json(answer)
    ]
    assert [len(side.rows) for side in answer.sides] == [3, 3]
    assert answer.target == ("predicted" if label is None else "label")


def test_validation_rows_have_the_answers_of_the_command(copied, capsys):
    """Also where fewer queries than all were scored before: those that are stored count."""
    capsys.readouterr()
    answers = Run.open(copied, "demo").ask_rows(3, 5, **SETTINGS)
    assert capsys.readouterr().out == ""
    expected = by_command(copied, capsys, "--query_index", "3", "5")
    assert [as_json(one) for one in answers] == expected


def test_rows_that_were_not_scored_are_and_then_known_to_the_command(run_copy, capsys):
    run = Run.open(run_copy, "demo")
    (answer,) = run.ask_rows(2, factor_strategy="identity", max_queries=4)
    capsys.readouterr()
    where = [*DEMO, "--checkpoint_dir", str(run_copy), "--factor_strategy", "identity"]
    analyze.main([*where, "--query_index", "2", "--format", "json"])
    assert json.loads(capsys.readouterr().out) == as_json(answer)
    assert as_json(run.ask_rows(2, factor_strategy="identity")[0]) == as_json(answer)
    with pytest.raises(Refused, match="from 0 to 3"):
        run.ask_rows(4, factor_strategy="identity")


def test_an_answer_is_printed_as_the_listing_and_written_as_csv(copied, capsys, tmp_path):
    answer = Run.open(copied, "demo").ask(TEXT, **SETTINGS)
    capsys.readouterr()
    analyze_quickly(copied, "--query_text", TEXT)
    assert f"{answer}\n" == capsys.readouterr().out
    answer.to_csv(tmp_path / "answer.csv")
    analyze_quickly(copied, "--query_text", TEXT, "--format", "csv")
    assert capsys.readouterr().out == (tmp_path / "answer.csv").read_bytes().decode()
    with open(tmp_path / "answer.csv", newline="") as file:
        rows = [int(line["row"]) for line in csv.DictReader(file)]
    assert rows == [row.row for side in answer.sides for row in side.rows]


def test_what_cannot_be_asked_is_refused(copied, capsys):
    run = Run.open(copied, "demo")
    for call, said in (
        (lambda: run.ask("a", "b", **SETTINGS), "takes 1 text"),
        (lambda: run.ask(" ", **SETTINGS), "empty text"),
        (lambda: run.ask(TEXT, label="x", **SETTINGS), "does not know"),
        (lambda: run.ask_rows(9, **SETTINGS), "from 0 to 8"),
        (lambda: Run.open(copied, "dmeo"), "dmeo"),
    ):
        with pytest.raises(Refused, match=said):
            call()


def test_the_package_has_run_and_refuses_other_names():
    assert attribution.Run is Run and hasattr(Run, "ask")
    with pytest.raises(AttributeError, match="has no attribute 'Runs'"):
        getattr(attribution, "Runs")  # noqa: B009
