"""Custom rows become a task that run.json holds, and a model from elsewhere becomes a run."""

import json
import shutil

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import analyze
import evaluate_lds
import run_counterfactual
import train
from attribution.cli import run_script
from attribution.data import demo
from attribution.data.custom import CustomData, draw_rows, make_task, open_custom
from attribution.files import Refused
from attribution.training.run import Run
from pipeline import DEMO_MODEL

QUICK = [
    "--model_name_or_path",
    str(DEMO_MODEL),
    "--num_train_epochs",
    "1",
    "--learning_rate",
    "3e-4",
]
# Entries of run.json that a training by the run's name takes from the run.
AS_BEFORE = ("data", "dataset_path", "model_name_or_path", "new_head", "recipe")


def refused(capsys, main, *argv: str) -> str:
    capsys.readouterr()
    assert run_script(main, list(argv)) == 2
    return capsys.readouterr().err


def reviews(count: int = 60) -> Dataset:
    rows = demo.read_rows()["train"]
    stars = [("one", "five")[label] for label in rows["label"][:count]]
    return Dataset.from_dict(
        {"id": list(range(count)), "text": rows["sentence"][:count], "stars": stars}
    )


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "folder", "disk", "disk, one table"])
def test_a_file_or_folder_of_any_kind_gives_the_same_rows(tmp_path, kind):
    table, path = reviews(20), tmp_path / f"reviews.{kind}"
    if kind == "disk":
        DatasetDict({"train": table}).save_to_disk(path)
    elif kind == "disk, one table":
        table.save_to_disk(path)
    elif kind == "folder":
        table.to_parquet(path / "train.parquet")
    else:
        {"csv": table.to_csv, "jsonl": table.to_json, "parquet": table.to_parquet}[kind](path)
    data = CustomData(str(path), ("text",), "stars")
    custom = open_custom(data, "reviews")
    tables = custom.splits
    assert custom.task.class_names == ("five", "one")
    assert custom.task.metrics == ("accuracy", "macro_f1")
    classes = np.array([label == "one" for label in table["stars"]])
    assert custom.drawn == draw_rows(classes, 0.1, 0)
    assert (len(tables["validation"]), len(tables["train"])) == (2, 18)
    assert tables["validation"]["text"] == [table["text"][row] for row in custom.drawn]
    names = tables["train"].features["label"].int2str(tables["train"]["label"])
    assert names == [s for i, s in enumerate(table["stars"]) if i not in custom.drawn]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([3, 1, 10], ("1", "3", "10")),
        ([3.0, 1.0, 10.0], ("1", "3", "10")),
        (["b", "a", "c"], ("a", "b", "c")),
        ([0.5, 1.0, 2.0], ()),
    ],
)
def test_labels_are_classes_unless_numbers_have_a_fraction(labels, names):
    table = Dataset.from_dict({"text": ["x", "y", "z"], "label": labels})
    task = make_task(table, CustomData("", ("text",), "label"), "t")
    assert task.class_names == names and task.regression == (not names)
    asked = make_task(table, CustomData("", ("text",), "label", kind="classification"), "t")
    assert len(asked.class_names) == 3


def test_classes_of_a_class_label_keep_their_order():
    table = Dataset.from_dict({"text": ["x", "y"], "label": [1, 0]}).cast_column(
        "label", ClassLabel(names=["z", "a"])
    )
    assert make_task(table, CustomData("", ("text",), "label"), "t").class_names == ("z", "a")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            ["nan" if i in (11, 30) else f"{i}.5" for i in range(60)],
            "row 11 .* 'nan', but 58 of 60",
        ),
        (
            ["NA" if i == 30 else i % 3 for i in range(60)],
            "row 30 .* 'NA', but 59 of 60 .* numbers",
        ),
        ([2.5 if i == 9 else i % 3 for i in range(60)], "row 9 .* '2.5', but 59 .* whole numbers"),
        ([None if i > 6 else i % 2 for i in range(60)], "row 7 .* no label .* nor have 52 more"),
        (["" if i == 7 else "ab"[i % 2] for i in range(60)], "row 7 .* no label that can be used"),
        (["a"] * 60, "all training rows have the label 'a'"),
    ],
)
def test_labels_that_contradict_the_guess_of_their_kind_are_refused_by_row(
    tmp_path, labels, message
):
    path = tmp_path / "rows.csv"
    Dataset.from_dict(
        {"text": [f"t{i}" for i in range(60)], "stars": list(map(str_or_none, labels))}
    ).to_csv(path)
    with pytest.raises(Refused, match=message):
        open_custom(CustomData(str(path), ("text",), "stars"), "rows")


def str_or_none(value):
    return None if value is None else str(value)


def test_a_kind_that_is_given_decides(tmp_path):
    path = tmp_path / "rows.csv"
    labels = ["n/a" if i == 10_500 else i % 3 for i in range(11_000)]
    texts = [f"text {i}" for i in range(11_000)]
    Dataset.from_dict({"text": texts, "stars": list(map(str, labels))}).to_csv(path)
    data = CustomData(str(path), ("text",), "stars", kind="classification")
    assert open_custom(data, "rows").task.class_names == ("0", "1", "2", "n/a")
    regression = CustomData(str(path), ("text",), "stars", kind="regression")
    with pytest.raises(Refused, match="row 10500 .* 'n/a', which is not a number"):
        open_custom(regression, "rows")


def test_classes_that_differ_in_case_or_blanks_only_are_said(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    Dataset.from_dict(
        {"text": list("abcdef"), "stars": ["good", "Good ", "bad", "good", "bad", "Good "]}
    ).to_csv(path)
    open_custom(CustomData(str(path), ("text",), "stars"), "rows")
    assert "the classes 'Good ' and 'good' differ in case or blanks only" in capsys.readouterr().out


def test_another_split_seed_draws_other_validation_rows(tmp_path, capsys):
    reviews(40).to_csv(tmp_path / "rows.csv")
    where = ["--dataset_name", "x", "--checkpoint_dir", str(tmp_path)]
    own = ["--dataset_path", str(tmp_path / "rows.csv"), "--text_columns", "text"]
    drawn = []
    for seed in ([], ["--split_seed", "3"], []):
        train.main([*where, *own, "--label_column", "stars", *QUICK, *seed, "--overwrite"])
        drawn.append(Run.open(tmp_path, "x").data["validation_rows"])
    assert drawn[0] == drawn[2] != drawn[1]


def test_validation_rows_are_drawn_from_every_class_and_leave_it_a_training_row():
    groups = np.array(["a"] * 50 + ["b"] * 20 + ["rare"] * 2 + ["once"])
    for seed in range(5):
        drawn = groups[draw_rows(groups, 0.3, seed)]
        counts = [int((drawn == group).sum()) for group in ("a", "b", "rare", "once")]
        assert sum(counts) == 22 and counts[0] in (15, 16) and counts[1] == 6
        assert counts[2] <= 1 and counts[3] == 0
    assert draw_rows(groups, 0.3, 0) != draw_rows(groups, 0.3, 1)
    assert len(draw_rows(np.array(["a", "a", "b", "b"]), 0.9, 0)) == 2
    with pytest.raises(Refused, match="cannot be split .* --validation_split"):
        draw_rows(np.array(["a", "b"]), 0.1, 0)


def test_own_rows_are_trained_on_and_analyzed_by_their_name_alone(tmp_path, capsys):
    path = tmp_path / "reviews.csv"
    reviews().to_csv(path)
    where = ["--dataset_name", "reviews", "--checkpoint_dir", str(tmp_path)]
    own = ["--dataset_path", str(path), "--text_columns", "text", "--label_column", "stars"]
    train.main([*where, *own, *QUICK])
    assert "macro_f1" in capsys.readouterr().out
    run = json.loads((tmp_path / "reviews/run.json").read_text())
    classes = np.array([label == "one" for label in reviews()["stars"]])
    assert run["data"]["validation_rows"] == draw_rows(classes, 0.1, 0)
    analyze.main([*where, "--factor_strategy", "identity", "--query_batch_size", "4"])
    scores = load_file(tmp_path / "reviews/influence/scores/identity/pairwise_scores.safetensors")[
        "all_modules"
    ]
    assert scores.shape == (6, 54)
    capsys.readouterr()
    asked = [*where, "--factor_strategy", "identity", "--query_index", "1", "--top_k", "3"]
    analyze.main([*asked, "--format", "json"])
    shown = [row for side in json.loads(capsys.readouterr().out)["sides"] for row in side["rows"]]
    texts, names = reviews()["text"], []
    for row in shown:
        assert row["file_row"] >= row["row"] and row["texts"] == [texts[row["file_row"]]]
        names.append(f"row {row['row']} (row {row['file_row']} of the file)")
    analyze.main(asked)
    listing = capsys.readouterr().out
    assert len(names) == 6 and all(name in listing for name in names)
    other = [*where, "--seed", "3"]  # another seed, the same validation rows
    assert "holds a run with another seed; pass --overwrite" in refused(capsys, train.main, *other)
    assert json.loads((tmp_path / "reviews/run.json").read_text()) == run
    train.main([*other, "--overwrite"])
    out = capsys.readouterr().out
    assert out.splitlines()[-1].endswith(" --overwrite")  # the scores are of other weights
    again = json.loads((tmp_path / "reviews/run.json").read_text())
    assert again.items() >= {name: run[name] for name in AS_BEFORE}.items()


def test_members_are_trained_as_the_run_was_but_for_what_is_given(tmp_path, capsys):
    path = tmp_path / "reviews.csv"
    reviews().to_csv(path)
    where = ["--dataset_name", "reviews", "--checkpoint_dir", str(tmp_path)]
    own = ["--dataset_path", str(path), "--text_columns", "text", "--label_column", "stars"]
    train.main([*where, *own, *QUICK, "--weight_decay", "0.2", "--new_head"])
    run = json.loads((tmp_path / "reviews/run.json").read_text())
    train.main([*where, "--num_members", "2"])
    assert "as in" in capsys.readouterr().out
    member = json.loads((tmp_path / "reviews/members/seed1/run.json").read_text())
    assert member.items() >= {name: run[name] for name in AS_BEFORE}.items()
    assert json.loads((tmp_path / "reviews/run.json").read_text())["weights"] == run["weights"]
    half = [*where, "--member_share", "0.5", "--weight_decay", "0"]
    assert "pass --overwrite" in refused(capsys, train.main, *half)
    assert not (tmp_path / "reviews/members/share0.5_seed0").exists()
    train.main([*half, "--overwrite"])
    member = json.loads((tmp_path / "reviews/members/share0.5_seed0/run.json").read_text())
    assert member["recipe"] == run["recipe"] | {"weight_decay": 0.0}
    path.unlink()
    assert "is not in" in refused(capsys, train.main, *where, "--num_members", "3")


def test_rows_that_were_edited_or_moved_are_named_beside_a_stored_answer_and_refused_otherwise(
    tmp_path, capsys
):
    path, more = tmp_path / "rows.csv", tmp_path / "more.csv"
    reviews(30).to_csv(path)
    reviews(12).to_csv(more)
    where = ["--dataset_name", "x", "--checkpoint_dir", str(tmp_path)]
    own = ["--dataset_path", str(path), "--text_columns", "text", "--label_column", "stars"]
    train.main([*where, *own, "--validation_split", str(more), *QUICK])
    scored = [*where, "--factor_strategy", "identity"]
    analyze.main(scored)

    def asked(*moved: str) -> str:
        capsys.readouterr()
        analyze.main([*scored, "--query_index", "1", *moved])
        out, error = capsys.readouterr()
        assert "query 1: " in out
        # A check would be refused.
        assert ("run_counterfactual.py" in out) == ("since it was scored" not in error)
        return "".join(line for line in error.splitlines(True) if "scores explain" not in line)

    path.touch()
    assert asked() == ""
    content = path.read_text()
    path.write_text(content.replace(",one", ",five", 1))
    first = next(row for row, stars in enumerate(reviews(30)["stars"]) if stars == "one")
    assert f"{path} has changed since it was scored" in asked()
    error = refused(capsys, analyze.main, *scored)
    assert f": row {first} was '{reviews(30)['text'][first]}"[:40] in error
    assert "[one] and is " in error and "[five]; bring those back" in error
    path.write_text(content + content.splitlines()[1] + "\n")
    assert ": they are 31, and were 30; bring" in refused(capsys, analyze.main, *scored)
    path.write_text(content)
    assert asked() == ""
    other = tmp_path / "other.csv"
    other.write_text(content)
    assert asked("--dataset_path", str(other)) == ""
    other.write_text(content.upper())
    assert f"{other} has changed since it was scored" in asked("--dataset_path", str(other))
    more.unlink()
    assert f"{more} is gone since it was scored" in asked()


@pytest.mark.parametrize("column", ["flipped", "topic", "row", "score"])
def test_columns_of_own_rows_may_have_any_name(tmp_path, capsys, column):
    path = tmp_path / "reviews.csv"
    reviews().rename_column("text", column).to_csv(path)
    where = ["--dataset_name", "reviews", "--checkpoint_dir", str(tmp_path)]
    own = ["--dataset_path", str(path), "--text_columns", column, "--label_column", "stars"]
    train.main([*where, *own, *QUICK])
    scores = [*where, "--factor_strategy", "identity"]
    analyze.main([*scores, "--self_influence"])
    out = capsys.readouterr().out
    assert "planted flips" not in out and ", flipped]" not in out
    analyze.main([*scores, "--query_index", "1", "--format", "json"])
    shown = json.loads(capsys.readouterr().out)["sides"][0]["rows"]
    assert shown
    assert all(row["flipped"] is None and row["texts"][0] in reviews()["text"] for row in shown)
    analyze.main([*scores, "--report", str(tmp_path / "page.html")])
    assert "flipped on purpose" not in (tmp_path / "page.html").read_text()


def test_a_run_of_own_rows_whose_record_is_damaged_is_said_to_be(tmp_path, capsys):
    reviews(30).to_csv(tmp_path / "rows.csv")
    where = ["--dataset_name", "x", "--checkpoint_dir", str(tmp_path)]
    own = ["--dataset_path", str(tmp_path / "rows.csv"), "--text_columns", "text"]
    train.main([*where, *own, "--label_column", "stars", *QUICK])
    record = tmp_path / "x/run.json"
    record.write_text(record.read_text()[:60])
    error = refused(capsys, analyze.main, *where)
    assert "x is damaged" in error and "run: python train.py --dataset_name x" in error
    for more in ([], ["--num_members", "2"]):
        assert "give them again: --dataset_path" in refused(capsys, train.main, *where, *more)


def test_rows_without_a_text_are_named(tmp_path, capsys):
    table = reviews(30).to_dict()
    table["text"][4] = table["text"][9] = " "
    path, valid = tmp_path / "rows.csv", tmp_path / "valid.csv"
    Dataset.from_dict(table).to_csv(path)
    reviews(12).to_csv(valid)
    where = ["--dataset_name", "x", "--checkpoint_dir", str(tmp_path), "--dataset_path", str(path)]
    own = ["--text_columns", "text", "--label_column", "stars", "--validation_split", str(valid)]
    train.main([*where, *own, *QUICK])
    out = capsys.readouterr().out
    assert "training rows without a text: 4, 9\n" in out and "validation rows without" not in out


def test_what_own_rows_cannot_be_is_refused_in_one_sentence(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    reviews(30).to_csv(path)
    base = ["--checkpoint_dir", str(tmp_path), "--dataset_path", str(path)]
    own = [*base, "--text_columns", "text", "--label_column", "stars"]
    assert "leading dot" in refused(capsys, train.main, *own, "--dataset_name", ".x")
    assert "leading dot" in refused(capsys, train.main, *own, "--dataset_name", "a/b")
    assert "task of GLUE" in refused(capsys, train.main, *own, "--dataset_name", "rte")
    error = refused(
        capsys,
        train.main,
        *base,
        "--text_columns",
        "no",
        "--label_column",
        "stars",
        "--dataset_name",
        "x",
    )
    assert "no column 'no'" in error
    own_columns = [*own, "--text_columns", "a", "b", "c", "--dataset_name", "x"]
    assert "one or two columns" in refused(capsys, train.main, *own_columns)
    assert "between 0 and 1" in refused(
        capsys, train.main, *own, "--validation_split", "2", "--dataset_name", "x"
    )
    other = Dataset.from_dict({"text": ["good"], "stars": ["three"]})
    other.to_csv(tmp_path / "other.csv")
    error = refused(
        capsys,
        train.main,
        *own,
        "--validation_split",
        str(tmp_path / "other.csv"),
        "--dataset_name",
        "x",
    )
    assert "'three', which is not one of the classes" in error
    many = Dataset.from_dict(
        {"text": [f"t{i}" for i in range(200)], "stars": [f"c{i}" for i in range(200)]}
    )
    many.to_csv(path)
    assert "--task classification" in refused(capsys, train.main, *own, "--dataset_name", "x")
    assert "unknown task" in refused(
        capsys, analyze.main, "--dataset_name", "x", "--checkpoint_dir", str(tmp_path)
    )


def test_an_adopted_copy_of_a_run_is_the_run(trained, tmp_path, capsys):
    arguments = [
        "--dataset_name",
        "demo",
        "--checkpoint_dir",
        str(tmp_path),
        "--max_train_samples",
        "120",
    ]
    train.main([*arguments, "--adopt", str(trained / "demo")])
    out = capsys.readouterr().out
    assert "loss per example" in out and "assumed to have seen" in out
    run, copy = (
        json.loads((folder / "demo/run.json").read_text()) for folder in (trained, tmp_path)
    )
    assert {copy[part] == run[part] for part in ("weights", "train_rows", "evaluation")} == {True}
    assert copy["recipe"] is None and copy["seed"] is None
    assert [len(rows) for rows in Run.open(tmp_path, "demo").rows(9)] == [120, 9]
    assert "adopted model" in refused(capsys, train.main, *arguments)  # training would replace it


def test_classes_in_another_order_are_mapped_and_other_names_refused(trained, tmp_path, capsys):
    model = AutoModelForSequenceClassification.from_pretrained(trained / "demo")
    bias = model.classifier.bias.detach().clone()
    places = {}
    for name, classes in (("turned", ["POSITIVE", "negative"]), ("plain", ["LABEL_0", "LABEL_1"])):
        model.config.id2label, places[name] = dict(enumerate(classes)), tmp_path / name
        model.config.label2id = {label: i for i, label in enumerate(classes)}
        model.save_pretrained(places[name])
        AutoTokenizer.from_pretrained(trained / "demo").save_pretrained(places[name])
    base = ["--dataset_name", "demo", "--max_train_samples", "60"]
    train.main([*base, "--checkpoint_dir", str(tmp_path / "a"), "--adopt", str(places["turned"])])
    assert (
        "another order" in (out := capsys.readouterr().out) and "--label_order" in out
    )  # worse than the majority
    assert "cannot be told from the" in out
    stored = AutoModelForSequenceClassification.from_pretrained(tmp_path / "a/demo")
    assert np.array_equal(stored.classifier.bias.detach().numpy(), bias.numpy()[::-1])
    plain = [*base, "--checkpoint_dir", str(tmp_path / "b"), "--adopt", str(places["plain"])]
    assert "--label_order" in refused(capsys, train.main, *plain)
    train.main([*plain, "--label_order", "negative", "positive"])
    again = [*plain, "--label_order", "positive", "negative"]
    assert "other weights" in refused(capsys, train.main, *again)
    train.main([*again, "--overwrite"])


def test_outputs_without_names_are_the_classes_of_numbered_labels(trained, tmp_path, capsys):
    model = AutoModelForSequenceClassification.from_pretrained(trained / "demo")
    model.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    model.config.label2id = {"LABEL_0": 0, "LABEL_1": 1}
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(trained / "demo").save_pretrained(tmp_path / "model")
    table = demo.read_rows()["train"]
    rows = {"text": table["sentence"][:60], "label": table["label"][:60]}
    Dataset.from_dict(rows).to_csv(tmp_path / "rows.csv")
    own = ["--dataset_path", str(tmp_path / "rows.csv"), "--text_columns", "text"]
    where = ["--dataset_name", "mine", "--checkpoint_dir", str(tmp_path), "--label_column", "label"]
    train.main([*where, *own, "--adopt", str(tmp_path / "model")])
    assert "nothing can be retrained" in capsys.readouterr().out
    run = Run.open(tmp_path, "mine")
    assert run.task.class_names == ("0", "1") and run.adopted["outputs"] == [0, 1]
    assert torch.equal(run.model().classifier.bias, model.classifier.bias)  # not reordered
    table = {"text": rows["text"], "label": ["no" if label else "yes" for label in rows["label"]]}
    Dataset.from_dict(table).to_csv(tmp_path / "rows.csv")
    again = [*where, *own, "--adopt", str(tmp_path / "model"), "--overwrite"]
    assert "--label_order" in refused(capsys, train.main, *again)


def test_a_folder_with_another_number_of_classes_is_refused(tmp_path, capsys):
    model = AutoModelForSequenceClassification.from_pretrained(DEMO_MODEL, num_labels=3)
    model.save_pretrained(tmp_path / "three")
    AutoTokenizer.from_pretrained(DEMO_MODEL).save_pretrained(tmp_path / "three")
    base = ["--dataset_name", "demo", "--checkpoint_dir", str(tmp_path), "--adopt"]
    assert "3 classes" in refused(capsys, train.main, *base, str(tmp_path / "three"))
    plain = [*base, str(DEMO_MODEL), "--label_order", "negative", "positive"]
    assert "not fine-tuned" in refused(capsys, train.main, *plain)


def test_studies_of_an_adopted_model_need_its_recipe_and_say_how_far_it_is_the_models(
    trained, tmp_path, capsys
):
    where = ["--dataset_name", "demo", "--checkpoint_dir", str(tmp_path)]
    adopted = [*where, "--max_train_samples", "120", "--adopt", str(trained / "demo")]
    train.main(adopted)
    assert "not known how the adopted model" in refused(capsys, evaluate_lds.main, *where)
    assert "not known how the adopted model" in refused(capsys, run_counterfactual.main, *where)
    train.main([*adopted, "--num_train_epochs", "2", "--seed", "0", "--overwrite"])
    capsys.readouterr()
    quick = [
        "--max_queries",
        "12",
        "--num_masks",
        "3",
        "--num_repeats",
        "1",
        "--num_bootstrap",
        "9",
    ]
    output = [
        "--results_dir",
        str(tmp_path / "r"),
        "--figure_path",
        str(tmp_path / "f.png"),
        "--jobs_per_device",
        "1",
    ]
    evaluate_lds.main([*where, *quick, *output])
    assert (
        "they agree on 1.000 of 12 queries" in capsys.readouterr().out
    )  # its recipe and seed give the same model


def test_a_second_file_that_moved_is_found_beside_the_data_set_and_has_a_way_out(tmp_path, capsys):
    (tmp_path / "old").mkdir()
    for name in ("rows.csv", "more.csv"):
        reviews(20).to_csv(tmp_path / "old" / name)
    where = ["--dataset_name", "x", "--checkpoint_dir", str(tmp_path)]
    own = ["--dataset_path", str(tmp_path / "old/rows.csv"), "--text_columns", "text"]
    second = ["--label_column", "stars", "--validation_split", str(tmp_path / "old/more.csv")]
    train.main([*where, *own, *second, *QUICK])
    (tmp_path / "old").rename(tmp_path / "new")
    shutil.copy(tmp_path / "new/rows.csv", tmp_path / "rows.csv")
    quick = [*where, "--factor_strategy", "identity", "--dataset_path"]
    error = refused(capsys, analyze.main, *quick, str(tmp_path / "rows.csv"))
    assert "the file of validation rows" in error and "name that with --dataset_path" in error
    analyze.main([*quick, str(tmp_path / "new/rows.csv")])
    assert "20 training rows for 20 queries" in capsys.readouterr().out
