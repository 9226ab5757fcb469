"""An adopted model is what its configuration says, or is refused; what a run knows is not lost to
it.
"""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from running import DEMO, refusal
from safetensors.torch import load_file, save_file

import analyze
import train
from attribution.data import demo
from attribution.training.run import Run
from pipeline import DEMO_MODEL

FEW = [*DEMO, "--max_train_samples", "60"]
PAIR = ("negative", "positive")
SIGMOID = "torch.nn.modules.activation.Sigmoid"


def named(*names: str) -> dict:
    """Parts of a configuration that name the classes."""
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


def head_of(outputs: int):
    """A change of weights: a head with this number of outputs, the demo's two and copies."""

    def change(state: dict) -> dict:
        rows = [i % 2 for i in range(outputs)]
        names = ("classifier.weight", "classifier.bias")
        return state | {name: state[name][rows].contiguous() for name in names}

    return change


@pytest.fixture
def model(trained, tmp_path):
    """A function that makes a folder to adopt: the small run's model with another configuration,
    other weights and more files.
    """

    def make(weights=None, files: dict | None = None, name: str = "model", **config) -> str:
        folder = shutil.copytree(trained / "demo", tmp_path / name)
        (folder / "run.json").unlink()
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        for file, content in (files or {}).items():
            (folder / file).write_text(json.dumps(content))
        if weights:
            path = folder / "model.safetensors"
            save_file(weights(load_file(path)), path, {"format": "pt"})
        return str(folder)

    return make


def reviews(folder: Path, *labels) -> list[str]:
    """Arguments of custom rows: 60 sentences of the demo, whose two classes have these labels."""
    rows = demo.read_rows()["train"]
    stars = [labels[label] for label in rows["label"][:60]]
    Dataset.from_dict({"text": rows["sentence"][:60], "stars": stars}).to_csv(folder / "rows.csv")
    columns = ["--text_columns", "text", "--label_column", "stars"]
    return ["--dataset_name", "mine", "--dataset_path", str(folder / "rows.csv"), *columns]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"problem_type": "multi_label_classification"}, "is multi_label_classification, and"),
        ({"problem_type": "regression"}, "problem_type is regression"),
        ({"sentence_transformers": {"activation_fn": SIGMOID}}, "go through torch.*Sigmoid"),
        ({"sbert_ce_default_activation_function": SIGMOID}, "go through torch.*Sigmoid"),
        (
            {"files": {"config_sentence_transformers.json": {"activation_fn": "torch.nn.Tanh"}}},
            "go through torch.nn.Tanh",
        ),
        ({"architectures": ["BertForTokenClassification"]}, "a BertForTokenClassification"),
        ({"label2id": {"negative": 1, "positive": 0}}, "negative is class 1 by its label2id"),
        ({"id2label": {"1": "negative", "2": "positive"}}, "numbered from 0 .*--label_order"),
        ({"id2label": {"0": "positive", "1": "positive"}}, "each once .*--label_order"),
        (named("LABEL_0", "LABEL_1"), "calls its classes LABEL_0, LABEL_1.*--label_order"),
        (named(*PAIR, "neutral") | {"weights": head_of(3)}, "has 3 classes .negative, positive"),
        (named("score") | {"weights": head_of(1), "problem_type": None}, "has one output, but"),
        ({"weights": lambda s: s | {"adapter.down": torch.zeros(2)}}, "not use.*: adapter.down"),
        (
            {"weights": lambda s: s | {"bert.encoder.layer.9.x": torch.zeros(2)}},
            "not use.*: bert.encoder.layer.9.x",
        ),
        ({"files": {"adapter_config.json": {}}}, "holds an adapter"),
    ],
)
def test_a_model_that_is_not_what_the_task_needs_is_refused_before_anything_is_written(
    model, tmp_path, capsys, change, message
):
    checkpoints = tmp_path / "runs"
    argv = [*FEW, "--checkpoint_dir", str(checkpoints), "--adopt", model(**change)]
    error = refusal(capsys, train.main, argv)
    assert error.count("\n") == 1 and "--new_head" not in error
    assert "--model_name_or_path" not in error
    assert re.search(message, error), error
    assert not list(checkpoints.rglob("*.*"))


def test_what_the_configuration_allows_is_adopted_and_leftovers_of_pretraining_are_said(
    model, tmp_path, capsys
):
    identity = {"activation_fn": "torch.nn.modules.linear.Identity"}
    folder = model(
        lambda state: state | {"cls.predictions.bias": torch.zeros(2)},
        sentence_transformers=identity,
        label2id={"LABEL_0": 0, "LABEL_1": 1},  # placeholders contradict nothing
    )
    train.main([*FEW, "--checkpoint_dir", str(tmp_path / "a"), "--adopt", folder])
    assert "stored, but not used: cls.predictions.bias" in capsys.readouterr().out
    bare = Path(model(name="bare"))
    torch.save(load_file(bare / "model.safetensors"), bare / "pytorch_model.bin")
    (bare / "model.safetensors").unlink()
    train.main([*FEW, "--checkpoint_dir", str(tmp_path / "b"), "--adopt", str(bare)])
    first, second = (Run.open(tmp_path / place, "demo") for place in "ab")
    assert first.weights == second.weights


def test_names_in_another_order_are_adopted_as_label_order_says(model, tmp_path, capsys):
    turned = model(label2id={"negative": 1, "positive": 0})
    where = ["--checkpoint_dir", str(tmp_path / "runs"), "--adopt", turned, "--label_order"]
    train.main([*FEW, *where, "negative", "positive"])
    assert "another order" not in capsys.readouterr().out
    assert "names 3 classes" in refusal(capsys, train.main, [*FEW, *where, *PAIR, "x"])
    one = model(head_of(1), name="one", problem_type=None, **named("LABEL_0"))
    rows = reviews(tmp_path, 0.5, 1.5)
    argv = [*rows, "--checkpoint_dir", str(tmp_path / "runs"), "--adopt", one]
    assert "one output" in refusal(capsys, train.main, [*argv, "--label_order", "x"])
    train.main(argv)


def test_a_trainers_folder_names_its_checkpoints(model, tmp_path, capsys):
    for step in (500, 1500):
        model(name=f"out/checkpoint-{step}")
    for flag in ("--adopt", "--model_name_or_path"):
        error = refusal(capsys, train.main, [*FEW, flag, str(tmp_path / "out")])
        assert error.endswith(f"with one (checkpoint-1500, checkpoint-500); name one: {flag}\n")


def test_the_start_of_an_adopted_model_offers_no_flag_that_adopt_refuses(model, capsys):
    three = model(head_of(3), name="three", **named("a", "b", "c"))
    argv = [*FEW, "--adopt", model(), "--model_name_or_path", three]
    error = refusal(capsys, train.main, argv)
    assert "another number of classes" in error and "--new_head" not in error


def test_custom_rows_have_all_classes_of_the_model_and_one_without_rows_can_be_explained(
    model, tmp_path, capsys
):
    def third(state: dict) -> dict:
        """The second of three classes is likely where the others are equally so."""
        rows = state["classifier.weight"]
        bias = state["classifier.bias"]
        weight = torch.stack([rows[0], rows.mean(0), rows[1]])
        return state | {
            "classifier.weight": weight,
            "classifier.bias": torch.stack([bias[0], bias.mean() + 9, bias[1]]),
        }

    folder = model(third, **named("negative", "neutral", "positive"))
    rows = reviews(tmp_path, "Negative", "positive")
    where = ["--dataset_name", "mine", "--checkpoint_dir", str(tmp_path / "runs")]
    recipe = ["--model_name_or_path", str(DEMO_MODEL), "--num_train_epochs", "1"]
    train.main([*rows, *where, "--adopt", folder, *recipe])
    run = Run.open(tmp_path / "runs", "mine")
    assert run.task.class_names == ("Negative", "neutral", "positive") and run.num_labels == 3
    adopted = load_file(run.folder / "model.safetensors")["classifier.weight"]
    assert torch.equal(adopted, load_file(Path(folder) / "model.safetensors")["classifier.weight"])
    quick = [*where, "--factor_strategy", "identity"]
    analyze.main([*quick, "--fisher", "exact"])
    capsys.readouterr()
    analyze.main([*quick, "--query_text", "The soup.", "--format", "json"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["said"] == shown["label"] == "neutral"
    towards, other = shown["sides"]
    assert towards["towards"] == "neutral" and not towards["rows"]  # no row is neutral
    assert len(other["rows"]) == 5


@pytest.mark.parametrize(
    ("labels", "extra", "message"),
    [
        (("bad", "positive"), [], "have the class 'bad', but the model's are negative, neutral, p"),
        ((0, 1), [], "have the class '0', .*--label_order with all of its classes"),
        (("bad", "good"), ["--label_order", "bad", "meh", "goood"], "have the class 'good'"),
        ((0.5, 1.5), [], "3 classes .*needs one output"),
    ],
)
def test_rows_of_a_class_that_the_model_lacks_are_refused(
    model, tmp_path, capsys, labels, extra, message
):
    folder = model(head_of(3), **named("negative", "neutral", "positive"))
    argv = [*reviews(tmp_path, *labels), "--checkpoint_dir", str(tmp_path), "--adopt", folder]
    error = refusal(capsys, train.main, [*argv, *extra])
    assert re.search(message, error) and error.count("\n") == 1, error


def test_what_a_run_knows_is_not_lost_to_its_own_weights(run_copy, model, capsys):
    path = run_copy / "demo/run.json"
    known = path.read_bytes()
    argv = [*DEMO, "--max_train_samples", "120", "--checkpoint_dir", str(run_copy)]
    argv += ["--adopt", model()]
    recipe = ["--num_train_epochs", "2", "--seed", "0"]
    assert "another recipe" in refusal(capsys, train.main, argv)
    same = "a run with another training; pass --overwrite"
    assert same in refusal(capsys, train.main, [*argv, *recipe])
    assert path.read_bytes() == known
    train.main([*argv, *recipe, "--overwrite"])
    train.main([*argv, *recipe])  # the same again loses nothing
    for other in ([], [*recipe, "--seed", "3"], [*recipe, "--max_train_samples", "60"]):
        assert "pass --overwrite to replace it" in refusal(capsys, train.main, [*argv, *other])
    assert Run.open(run_copy, "demo").recipe


def test_a_damaged_run_names_the_command_that_makes_the_same_again(run_copy, model, capsys):
    given = [*DEMO, "--checkpoint_dir", str(run_copy)]
    turned = model(**named("LABEL_0", "LABEL_1"))
    stated = ["--num_train_epochs", "2", "--max_train_samples", "60"]
    adopted = ["--adopt", turned, "--label_order", "positive", "negative"]
    for more in ([], [*adopted, *stated, "--overwrite"]):
        if more:
            train.main([*given, *more])
        run = Run.open(run_copy, "demo")
        (run.folder / "model.safetensors").write_bytes(b"")
        error = refusal(capsys, analyze.main, given)
        assert "is damaged" in error
        train.main(shlex.split(error.partition("; run: ")[2])[2:])
        again = Run.open(run_copy, "demo")
        assert (again.weights, again.recipe) == (run.weights, run.recipe)
        assert (again.train_rows, again.seed) == (run.train_rows, run.seed)


def test_members_are_trained_beside_an_adopted_model_which_stays(model, tmp_path, capsys):
    where = [*DEMO, "--checkpoint_dir", str(tmp_path / "runs")]
    stated = ["--num_train_epochs", "2", "--max_train_samples", "60", "--seed", "0"]
    halves = ["--num_members", "2", "--member_share", "0.5", "--member_steps", "2"]
    folder = model()
    train.main([*where, "--max_train_samples", "60", "--adopt", folder])
    error = refusal(capsys, train.main, [*where, *halves])
    assert "seed or recipe are not known; adopt it again" in error and folder in error
    train.main([*where, *stated, "--adopt", folder, "--overwrite"])
    before = Run.open(tmp_path / "runs", "demo")
    for idle in ([], ["--member_steps", "2"]):
        assert "holds an adopted model" in refusal(capsys, train.main, [*where, *idle])
    for members in (["--num_members", "2"], halves):
        train.main([*where, *members])
        analyze.main([*where, "--max_queries", "3", "--factor_strategy", "replay", *members])
    assert Run.open(tmp_path / "runs", "demo") == before


def test_rows_of_more_classes_than_the_model_has_are_refused_for_that(model, tmp_path, capsys):
    argv = [*reviews(tmp_path, "one", "two"), "--checkpoint_dir", str(tmp_path)]
    path = tmp_path / "rows.csv"
    path.write_text(path.read_text().replace(",two", ",three", 1))
    error = refusal(capsys, train.main, [*argv, "--adopt", model()])
    assert "the rows have 3 classes, but the model has 2 (negative, positive)" in error
