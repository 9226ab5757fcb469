"""A sentence of one's own gets scores, by what is stored, and leaves nothing outside the run's
folder.
"""

import csv
import io
import json
import shlex
import shutil

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

import analyze
import evaluate_lds
import train
from attribution.cli import run_script
from attribution.data.tasks import GlueTask
from attribution.engine import modules
from attribution.files import Refused
from attribution.influence import checkpoint
from attribution.training import queries
from attribution.training.queries import ask, read_label, read_queries
from attribution.training.run import Run
from pipeline import DEMO_MODEL, get_glue_dataset

NAME = "ekfac_damping0.0001"
QUICK = ["--dataset_name", "demo", "--max_queries", "9", "--damping_factor", "1e-4"]


@pytest.fixture(scope="module")
def scored(trained, tmp_path_factory):
    """A run with stored scores; tests copy it (see `copied`)."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("ask") / "checkpoints")
    analyze.main([*QUICK, "--checkpoint_dir", str(folder)])
    return folder


def refused(capsys, main, *argv: str) -> str:
    capsys.readouterr()
    assert run_script(main, list(argv)) == 2
    return capsys.readouterr().err


def scores_of(folder, name=NAME) -> torch.Tensor:
    (path,) = folder.glob(f"demo/influence/scores/{name}/pairwise_scores.safetensors")
    return load_file(path)["all_modules"].clone()


def answers(capsys, folder, *argv: str) -> list[dict]:
    capsys.readouterr()
    analyze.main([*QUICK, "--checkpoint_dir", str(folder), "--format", "json", *argv])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def numbers(answer: dict) -> list[list[int]]:
    """Rows of each side, by their numbers."""
    return [[row["row"] for row in side["rows"]] for side in answer["sides"]]


def row(index: int):
    data = get_glue_dataset("demo", "valid")
    return data.text(index), data.label_name(index)


def test_a_validation_row_asked_as_text_gets_its_stored_scores(copied, capsys):
    text, label = row(3)
    (answer,) = answers(capsys, copied, "--query_text", text, "--query_label", label)
    (stored,) = answers(capsys, copied, "--query_index", "3")
    assert numbers(answer) == numbers(stored) and len(numbers(answer)) == 2
    mine, expected = scores_of(copied, f"{NAME}_queries-*")[0], scores_of(copied)[3]
    assert ((mine - expected).norm() / expected.norm()).item() < 1e-5
    assert answer["probability"] == pytest.approx(stored["probability"]) and answer["query"] is None


def test_in_float64_its_scores_are_the_stored_ones_to_1e9(run_copy, monkeypatch):
    """What decides between two ways to compute (how many queries there are) is rounding only."""

    def double(make):
        def made(settings):
            arguments = make(settings)
            for name, value in vars(arguments).items():
                if value is torch.float32:
                    setattr(arguments, name, torch.float64)
            return arguments

        return made

    prepare = modules.prepare_model
    monkeypatch.setattr(modules, "prepare_model", lambda model, task: prepare(model.double(), task))
    for name in ("make_factor_arguments", "make_score_arguments"):
        monkeypatch.setattr(checkpoint, name, double(getattr(checkpoint, name)))
    monkeypatch.setattr(queries, "predict_run", lambda folder, data: torch.zeros(len(data), 2))
    monkeypatch.setattr(
        "attribution.engine.scoring.STORED", torch.float64
    )  # scores are stored as they are
    text, label = row(5)
    analyze.main([*QUICK, "--checkpoint_dir", str(run_copy)])
    analyze.main(
        [*QUICK, "--checkpoint_dir", str(run_copy), "--query_text", text, "--query_label", label]
    )
    mine, expected = scores_of(run_copy, f"{NAME}_queries-*")[0], scores_of(run_copy)[5]
    assert (
        mine.dtype == torch.float64 and ((mine - expected).norm() / expected.norm()).item() < 1e-9
    )


def test_stored_factors_are_used_and_nothing_is_scored_that_was_not_asked_for(copied, capsys):
    factors = copied / "demo/influence/factors/ekfac/factors.json"
    before, asked = factors.stat().st_mtime_ns, ["--query_text", "A fine soup."]
    answers(capsys, copied, *asked)
    assert factors.stat().st_mtime_ns == before
    shutil.rmtree(copied / "demo/influence")
    answers(capsys, copied, *asked)  # without any: they are fitted
    names = [path.name for path in (copied / "demo/influence/scores").iterdir()]
    assert [name.startswith(f"{NAME}_queries-") for name in names] == [True]


def test_without_a_label_the_question_is_about_the_predicted_class(copied, capsys):
    (answer,) = answers(capsys, copied, "--query_text", "The soup was cold and bland.")
    assert answer["target"] == "predicted" and answer["label"] == answer["said"]
    assert answer["probability"] >= 0.5 and answer["margin"] >= 0
    other = {"negative": "positive", "positive": "negative"}[answer["label"]]
    (turned,) = answers(
        capsys, copied, "--query_text", "The soup was cold and bland.", "--query_label", other
    )
    assert turned["margin"] == pytest.approx(-answer["margin"], rel=1e-4)
    # The same rows on the same sides: a side is named by its class, whatever the label.
    assert numbers(turned) == numbers(answer)
    for one, other in zip(turned["sides"], answer["sides"], strict=True):
        assert one["towards"] == other["towards"] and one["direction"] != other["direction"]
    analyze.main(
        [*QUICK, "--checkpoint_dir", str(copied), "--query_text", "The soup was cold and bland."]
    )
    assert f"the model says {answer['label']} ({answer['probability']:.0%})" in (
        capsys.readouterr().out
    )


def test_the_first_side_pushed_towards_the_said_class_also_where_that_is_wrong(copied, capsys):
    found = answers(capsys, copied, "--query_index", *map(str, range(9)))
    stored = scores_of(copied).numpy()
    for answer, scores in zip(found, stored, strict=True):
        first, second = answer["sides"]
        right = answer["said"] == answer["label"]
        order = np.argsort(-scores if right else scores, kind="stable")
        assert numbers(answer) == [order[:5].tolist(), order[::-1][:5].tolist()]
        assert first["towards"] == answer["said"] != second["towards"]
        assert "what the model said" in first["title"]
        assert (answer["margin"] > 0) == right
    assert {one["said"] == one["label"] for one in found} == {True, False}


def test_a_file_of_queries_may_have_labels_and_may_come_from_standard_input(
    copied, tmp_path, monkeypatch, capsys
):
    columns = {
        "sentence": ["A fine soup.", "A dull film."],
        "label": ["positive", None],
        "more": [1, 2],
    }
    table = Dataset.from_dict(columns)
    (
        table.to_csv(tmp_path / "q.csv"),
        table.to_json(tmp_path / "q.jsonl"),
        table.to_parquet(tmp_path / "q.parquet"),
    )
    run = Run.open(copied, "demo")
    read = [read_queries(str(tmp_path / f"q.{kind}"), run) for kind in ("csv", "jsonl", "parquet")]
    assert read == [([["A fine soup."], ["A dull film."]], ["positive", None])] * 3
    monkeypatch.setattr(
        "sys.stdin", io.TextIOWrapper(io.BytesIO((tmp_path / "q.csv").read_bytes()))
    )
    got = answers(capsys, copied, "--query_path", "-")
    assert [answer["target"] for answer in got] == ["label", "predicted"]
    capsys.readouterr()
    path = str(tmp_path / "q.csv")
    analyze.main([*QUICK, "--checkpoint_dir", str(copied), "--query_path", path, "--format", "csv"])
    lines = [*csv.DictReader(io.StringIO(capsys.readouterr().out, newline=""))]
    counts = [sum(len(side["rows"]) for side in answer["sides"]) for answer in got]
    told = [text for text, n in zip(columns["sentence"], counts, strict=True) for _ in range(n)]
    assert [line["query_text"] for line in lines] == told  # also where there is no number


def test_bad_questions_are_refused_in_one_sentence(copied, tmp_path, capsys):
    base = [*QUICK, "--checkpoint_dir", str(copied)]
    (tmp_path / "q.csv").write_text("text\nhello\n")
    (tmp_path / "r.csv").write_text("sentence,label\nfine,positive\nfoo,neutral\n")
    (tmp_path / "b.csv").write_text('sentence,label\nfine,positive\n" ",negative\n')
    for argv, said in (
        (["--query_text", "a", "b"], "takes 1 text"),
        (["--query_text", "  "], "empty text"),
        (["--query_text", "a", "--query_label", "neutral"], "does not know"),
        (["--query_text", "a", "--query_label", "2"], "does not know"),
        (["--query_text", "a", "--query_index", "1"], "has no effect beside"),
        (["--query_label", "1"], "belongs to"),
        (["--query_path", str(tmp_path / "q.csv")], "no column 'sentence'"),
        (["--query_path", "no.csv"], "no file"),
        (["--query_path", str(tmp_path / "r.csv")], "row 1 of"),
        (["--query_path", str(tmp_path / "r.csv")], "column 'label': the task does not know"),
        (["--query_path", str(tmp_path / "b.csv")], "(from 0 on) has no text in the column"),
        (["--query_path", ""], "--query_path is empty"),
    ):
        assert said in refused(capsys, analyze.main, *base, *argv), argv


def test_own_queries_lie_below_the_run_and_are_forgotten(copied, capsys):
    def files():
        return sorted(
            path
            for path in copied.rglob("*")
            if path.is_file() and not path.name.startswith(".lock")
        )

    before = files()
    answers(capsys, copied, "--query_text", "Nobody must ever know this sentence.")
    analyze.main(["--dataset_name", "demo", "--checkpoint_dir", str(copied), "--forget_queries"])
    assert files() == before and not list(copied.rglob("*queries-*"))


def test_the_studies_do_not_take_own_queries_for_stale_scores(copied, tmp_path, capsys):
    answers(capsys, copied, "--query_text", "A fine soup.")
    quick = ["--max_queries", "9", "--num_masks", "3", "--num_repeats", "1", "--num_bootstrap", "9"]
    output = [
        "--jobs_per_device",
        "1",
        "--results_dir",
        str(tmp_path / "r"),
        "--figure_path",
        str(tmp_path / "f.png"),
    ]
    evaluate_lds.main(["--dataset_name", "demo", "--checkpoint_dir", str(copied), *quick, *output])
    assert "queries-" not in "".join(capsys.readouterr())


def test_a_regression_asks_about_its_output(tmp_path, capsys):
    """The rows that raise the output: without a label there is no error whose gradient could say
    anything.
    """
    texts, labels = (
        get_glue_dataset("demo", "train", max_samples=40).texts(),
        np.linspace(0.5, 4.3, 40).tolist(),
    )
    Dataset.from_dict({"text": texts, "score": labels}).to_csv(tmp_path / "r.csv")
    where = ["--dataset_name", "r", "--checkpoint_dir", str(tmp_path)]
    own = [
        "--dataset_path",
        str(tmp_path / "r.csv"),
        "--text_columns",
        "text",
        "--label_column",
        "score",
    ]
    train.main([*where, *own, "--model_name_or_path", str(DEMO_MODEL), "--num_train_epochs", "1"])
    query = [
        *where,
        "--factor_strategy",
        "identity",
        "--format",
        "json",
        "--query_text",
        "A fine soup.",
    ]
    capsys.readouterr()
    analyze.main(query)
    answer = json.loads(capsys.readouterr().out)
    asked = ask(Run.open(tmp_path, "r"), [["A fine soup."]], [None])
    output = asked.logits[0, 0]
    assert answer["target"] == "output" and answer["margin"] == pytest.approx(
        float(output), abs=1e-5
    )
    analyze.main([*query, "--query_label", str(output + 1.0)])
    below = json.loads(
        capsys.readouterr().out
    )  # the label is above the output: what raises it helps
    assert numbers(below) == numbers(answer)
    assert [side["title"] for side in below["sides"]] == ["raised the output", "lowered the output"]
    assert below["sides"][0]["direction"] == "helpful"
    analyze.main([*query, "--query_label", str(output - 1.0)])
    above = json.loads(capsys.readouterr().out)  # what raises it leads away from the label
    assert numbers(above) == numbers(answer) and above["sides"][0]["direction"] == "harmful"
    words = shlex.split(above["check"])
    same = words[words.index("--query_label") + 1]
    analyze.main([*query, "--query_label", same])  # scores that are stored answer it
    assert json.loads(capsys.readouterr().out)["label"] == above["label"]
    assert len(list(tmp_path.glob("r/influence/scores/*_queries-*"))) == 3


def test_a_class_whose_name_is_a_number_is_meant_by_its_name():
    stars, named = GlueTask(("text",), 3, ("1", "2", "3")), GlueTask(("text",), 2, ("bad", "good"))
    assert [read_label(value, stars) for value in ("1", 3)] == [0, 2]
    with pytest.raises(Refused, match="it knows 1, 2, 3$"):
        read_label("0", stars)
    assert read_label("0", named) == 0 and read_label("good", named) == 1


def test_a_number_of_a_query_is_that_of_the_validation_row(copied, capsys):
    """Also where queries begin later: in listings, in JSON and in refusals."""
    rows = get_glue_dataset("demo", "valid").texts()
    window = ["--first_query", "5", "--max_queries", "4"]
    analyze.main([*QUICK, "--checkpoint_dir", str(copied), *window, "--overwrite"])
    assert f"query 5: {rows[5]}" in " ".join(capsys.readouterr().out.split())
    (answer,) = answers(capsys, copied, *window, "--query_index", "7")
    assert answer["query"] == 7 and answer["texts"] == [rows[7]] and answer["file_row"] is None
    error = refused(
        capsys, analyze.main, *QUICK, "--checkpoint_dir", str(copied), *window, "--query_index", "3"
    )
    assert "--query_index must be from 5 to 8, not 3" in error
