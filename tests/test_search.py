"""Any table of a few rows and any combination of flags either runs or is refused in one sentence:
no other end.

In `make test` the search has a fixed seed and little time; `make test-search` gives it more of
both, and `make faults` also has it write how often it ended in which way (SEARCH_RESULT, a JSON
file).
"""

import json
import os
import random
import shutil
import time
from pathlib import Path

import datasets
import pytest
import small
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import analyze
import evaluate_lds
import run_counterfactual
import train
from attribution.cli import run_script
from attribution.files import read_json, write_json
from attribution.provenance import origin

SECONDS = float(os.environ.get("SEARCH_SECONDS", "30")) / 2
SETTINGS = settings(
    max_examples=100_000 if "SEARCH_SECONDS" in os.environ else 40,
    deadline=None,
    database=None,
    derandomize="SEARCH_SECONDS" not in os.environ,
    suppress_health_check=list(HealthCheck),
)


class Clock:
    """When a search began, and how often it ended in which way."""

    def __init__(self) -> None:
        self.start, self.ends = time.monotonic(), {0: 0, 2: 0}

    def keep(self, what: str) -> None:
        """Writes the counts to where SEARCH_RESULT says, beside those of other searches."""
        if path := os.environ.get("SEARCH_RESULT"):
            found = (read_json(Path(path)) or {}).get("searches", {})
            ends = {"ran": self.ends[0], "refused": self.ends[2]}
            write_json(Path(path), {"searches": found | {what: ends}, **origin()})


def end_of(main, arguments: list[str], capsys, clock: Clock) -> None:
    """Runs a script; anything but a run or one sentence of refusal raises or fails."""
    capsys.readouterr()
    status = run_script(main, arguments)
    error = capsys.readouterr().err
    assert status in (0, 2), (arguments, error)
    said = [line for line in error.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert len(said) == (status == 2) and "Traceback" not in error, (arguments, error)
    clock.ends[status] += 1


# --- rows ---

ODD = ["", " ", "NA", "null", '"', "a\tb", "x,y\nz", "the soup was hot"]
TEXTS = st.one_of(st.text(max_size=20), st.sampled_from(ODD))
LABELS = {
    "classes": st.integers(0, 1),
    "integers": st.integers(-2, 3),
    "floats": st.sampled_from([0.0, 1.0, 0.5, float("nan"), -1.0]),
    "words": st.sampled_from(["negative", "positive", "0", "1", "good", ""]),
    "truths": st.booleans(),
    "missing": st.sampled_from([0, 1, None]),
}


@st.composite
def tables(draw):
    """(texts, labels) of a few rows, labels of one sort."""
    count, labels = draw(st.integers(1, 5)), LABELS[draw(st.sampled_from(sorted(LABELS)))]
    texts = [
        draw(st.one_of(TEXTS, st.none()) if draw(st.integers(0, 9)) == 0 else TEXTS)
        for _ in range(count)
    ]
    return texts, [draw(labels) for _ in range(count)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return small.save_model(tmp_path_factory.mktemp("tiny"), "bert", num_hidden_layers=1)


def test_any_rows_run_or_are_refused(tiny, tmp_path, capsys):
    clock = Clock()

    @SETTINGS
    @given(st.sampled_from(["parquet", "csv", "jsonl"]), tables(), tables())
    def search(kind, train_rows, validation_rows):
        if time.monotonic() - clock.start > SECONDS:
            return
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        splits = {}
        for split, (texts, labels) in (("train", train_rows), ("validation", validation_rows)):
            splits[split] = datasets.Dataset.from_dict({"sentence": texts, "label": labels})
        path = small.write(tmp_path / "data", "sst2", splits, kind)
        arguments = [
            "--dataset_name",
            "sst2",
            "--dataset_path",
            path,
            "--model_name_or_path",
            str(tiny),
        ]
        arguments += ["--checkpoint_dir", str(tmp_path / "runs"), "--num_train_epochs", "1"]
        end_of(train.main, arguments, capsys, clock)

    search()
    assert min(clock.ends.values()) > 0, clock.ends
    clock.keep("any rows, train.py")


# --- files of the user's own rows and queries, and adopted models ---

CELLS = st.one_of(TEXTS, st.sampled_from(["01", "1.0", "true", "nan", "1e3", "\u2028", "\ud83d"]))
VALUES = st.one_of(CELLS, st.integers(-2, 3), st.booleans(), st.none(), st.just([1]))
PLAIN = st.sampled_from(["a", "b"])
NAMES = st.sampled_from(["sentence", "label", "stars", "Label", "id", ""])


@st.composite
def files(draw) -> tuple[str, bytes]:
    """(suffix, content) of a file of rows: of a spreadsheet or of JSON, odd in some way or not."""
    kind = draw(st.sampled_from(["csv", "tsv", "jsonl", "json", "parquet", "txt", ""]))
    head = ["sentence", "stars"]
    if draw(st.integers(0, 3)) == 0:
        head = draw(st.lists(NAMES, min_size=1, max_size=3))
    cells = draw(st.sampled_from([PLAIN, PLAIN, VALUES if kind in ("jsonl", "json") else CELLS]))
    rows = [[draw(cells) for _ in head] for _ in range(draw(st.integers(0, 8)))]
    if kind in ("jsonl", "json"):
        objects = [dict(zip(head, row, strict=True)) for row in rows]
        text = "\n".join(map(json.dumps, objects)) if kind == "jsonl" else json.dumps(objects)
    else:
        gap = "\t" if kind == "tsv" else ","
        quote = "" if kind == "tsv" else draw(st.sampled_from(['"', ""]))
        text = "\n".join(gap.join(f"{quote}{cell}{quote}" for cell in row) for row in [head, *rows])
    content = text.encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 5)) == 0:  # cut, marked, or of another encoding
        content = draw(
            st.sampled_from([content[:-3], b"\xef\xbb\xbf" + content, content + b"\xff"])
        )
    return f".{kind}" if kind else "", content


def test_any_file_of_own_rows_and_of_queries_runs_or_is_refused(tiny, run_copy, tmp_path, capsys):
    clock = Clock()

    @SETTINGS
    @given(files())
    def search(made):
        if time.monotonic() - clock.start > SECONDS:
            return
        suffix, content = made
        path = tmp_path / f"rows{suffix}"
        path.write_bytes(content)
        rows = ["--dataset_path", str(path), "--text_columns", "sentence"]
        rows += ["--label_column", "stars", "--model_name_or_path", str(tiny)]
        runs = ["--checkpoint_dir", str(tmp_path / "runs"), "--num_train_epochs", "1"]
        end_of(train.main, ["--dataset_name", "own", *rows, *runs], capsys, clock)
        asked = ["--dataset_name", "demo", "--checkpoint_dir", str(run_copy)]
        asked += ["--factor_strategy", "identity", "--query_path", str(path)]
        end_of(analyze.main, asked, capsys, clock)

    search()
    assert min(clock.ends.values()) > 0, clock.ends
    clock.keep("any file of rows, train.py and analyze.py")


CONFIGS = {
    "problem_type": ("multi_label_classification", "regression", "single_label_classification", 3),
    "num_labels": (1, 2, 3),
    "id2label": (
        {"0": "negative", "1": "positive"},
        {"0": "POSITIVE", "1": "Negative"},
        {"0": "x"},
    ),
    "label2id": ({"negative": 1, "positive": 0}, {}, {"a": 0}),
    "architectures": (["BertModel"], ["BertForTokenClassification"], []),
    "sentence_transformers": ({"activation_fn": "torch.nn.Sigmoid"}, {}),
    "sbert_ce_default_activation_function": ("torch.nn.modules.linear.Identity", "x"),
    "model_type": ("roberta", "gpt2", "x"),
    "num_hidden_layers": (1, 0, 9),
    "vocab_size": (5, 100_000),
}


CHANGES = st.lists(st.sampled_from(sorted(CONFIGS)), max_size=2, unique=True).flatmap(
    lambda keys: st.fixed_dictionaries({key: st.sampled_from(CONFIGS[key]) for key in keys})
)


def test_any_adopted_configuration_runs_or_is_refused(trained, tmp_path, capsys):
    clock = Clock()
    model = tmp_path / "model"
    shutil.copytree(trained / "demo", model, ignore=shutil.ignore_patterns("run.json", "influence"))
    config = json.loads((model / "config.json").read_bytes())

    @SETTINGS
    @given(CHANGES)
    def search(changes):
        if time.monotonic() - clock.start > SECONDS:
            return
        (model / "config.json").write_text(json.dumps(config | changes))
        adopted = ["--adopt", str(model), "--checkpoint_dir", str(tmp_path / "runs")]
        rows = ["--dataset_name", "demo", "--max_train_samples", "20", "--overwrite"]
        end_of(train.main, [*rows, *adopted], capsys, clock)

    search()
    assert min(clock.ends.values()) > 0, clock.ends
    clock.keep("any adopted configuration, train.py")


# --- flags ---

NUMBERS = ("0", "1", "2", "3", "-1", "nan", "x", "0.5", "1e-4")
SHARED = {
    "--max_queries": ("1", "5", "0", "3000"),
    "--checkpoint_dir": ("nowhere",),
    "--dataset_name": ("rte", "foo", ".."),
}
FLAGS = {
    train.main: {
        "--max_train_samples": NUMBERS,
        "--max_length": ("1", "3", "40", "4000"),
        "--num_hidden_layers": NUMBERS,
        "--learning_rate": NUMBERS,
        "--train_batch_size": ("1", "50", "0"),
        "--lr_schedule": ("linear", "x"),
        "--freeze_embeddings": None,
        "--new_head": None,
        "--max_grad_norm": NUMBERS,
        "--seed": NUMBERS,
        "--model_name_or_path": ("demo", "nowhere/at all"),
        "--tokenizer_name_or_path": ("demo", "nowhere"),
        "--num_members": ("1", "2", "0"),
        "--member_share": NUMBERS,
        "--member_steps": ("1", "2", "0", "9999"),
        "--adopt": ("demo", "nowhere"),
    },
    analyze.main: SHARED
    | {
        "--factor_strategy": ("identity", "diagonal", "kfac", "x"),
        "--use_half_precision": None,
        "--stock": None,
        "--covariance_dtype": ("float32", "x"),
        "--query_gradient_rank": NUMBERS,
        "--seed": ("0", "1"),
        "--damping_factor": (*NUMBERS, "heuristic"),
        "--query_batch_size": NUMBERS,
        "--train_batch_size": NUMBERS,
        "--overwrite": None,
        "--profile": None,
        "--query_index": NUMBERS,
        "--top_k": NUMBERS,
        "--self_influence": None,
        "--label_issues": ("loss", "self_influence", "replay", "x"),
        "--max_factor_rows": NUMBERS,
        "--fisher": ("exact", "sampled", "x"),
        "--first_query": NUMBERS,
        "--num_members": ("1", "2", "0"),
        "--member_share": NUMBERS,
        "--format": ("json", "csv", "table", "x"),
        "--raw": None,
        "--words": None,
        "--particular": None,
        "--report": None,
        "--query_text": ("fine", "a b c d", ""),
        "--query_label": ("positive", "x", "1"),
        "--forget_queries": None,
        "--query_group": ("wrong", "right", "all", "positive", "x", ""),
    },
    evaluate_lds.main: SHARED
    | {
        "--num_masks": ("3", "2", "4", "x"),
        "--num_repeats": ("1", "0"),
        "--alpha": ("0.5", "0", "0.01", "nan"),
        "--mask_seed": NUMBERS,
        "--dry_run": None,
        "--plot_only": None,
        "--masks_path": ("nowhere.npy",),
        "--num_train_epochs": ("1", "0"),
        "--first_query": NUMBERS,
        "--retrain_queries": ("5", "0", "-1"),
        "--weight_decay": NUMBERS,
    },
    run_counterfactual.main: SHARED
    | {
        "--strategies": ("random", "tfidf random", "ekfac", "x", "label"),
        "--removals": ("1 2", "2 1", "1000", "0"),
        "--num_targets": NUMBERS,
        "--num_base_seeds": ("1", "0"),
        "--num_retrain_seeds": ("1", "0"),
        "--retrain_seed": ("100", "0"),
        "--no_carry_forward": None,
        "--dry_run": None,
        "--plot_only": None,
        "--num_random_draws": ("1", "0"),
        "--num_train_epochs": ("1",),
        "--direction": ("harmful", "helpful", "x"),
        "--max_targets": ("1", "0"),
        "--targets": ("3", "1 2", "3000", "x"),
        "--base_seed": NUMBERS,
        "--query_text": ("fine",),
        "--query_label": ("positive", "x"),
        "--retrain_queries": ("5", "0", "-1"),
    },
}
DEFAULTS = {
    train.main: ["--max_train_samples", "20", "--num_train_epochs", "1"],
    analyze.main: ["--max_queries", "3"],
    evaluate_lds.main: [
        "--num_masks",
        "3",
        "--num_repeats",
        "1",
        "--jobs_per_device",
        "1",
        "--num_bootstrap",
        "5",
    ],
    run_counterfactual.main: [
        "--strategies",
        "random",
        "--removals",
        "1",
        "--num_base_seeds",
        "1",
        "--num_retrain_seeds",
        "1",
        "--jobs_per_device",
        "1",
        "--num_targets",
        "1",
    ],
}


@pytest.mark.parametrize("main", list(FLAGS), ids=lambda main: main.__module__)
def test_any_flags_run_or_are_refused(main, run_copy, capsys, monkeypatch):
    clock, flags = Clock(), FLAGS[main]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("attribution.hub.constants.HF_HUB_OFFLINE", True)
    places = ["--dataset_name", "demo", "--checkpoint_dir", str(run_copy)]
    if main in (evaluate_lds.main, run_counterfactual.main):
        places += [
            "--results_dir",
            str(run_copy / "r"),
            "--figure_path",
            str(run_copy / "r" / "f.png"),
        ]

    @SETTINGS
    @given(st.lists(st.sampled_from(sorted(flags)), unique=True, max_size=4), st.integers(0, 2**31))
    def search(chosen, number):
        if time.monotonic() - clock.start > SECONDS / 4 and clock.ends[2]:
            return  # at least one is refused, also where a run takes all of the time
        pick, arguments = random.Random(number), [*places, *DEFAULTS[main]]
        for flag in chosen:
            arguments += (
                [flag] if flags[flag] is None else [flag, *pick.choice(flags[flag]).split(" ")]
            )
        end_of(main, arguments, capsys, clock)

    search()
    assert clock.ends[2] > 0, clock.ends
    clock.keep(f"any flags, {main.__module__}.py")
