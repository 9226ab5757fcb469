"""Labels to look at: wrong ones come first, tables say what is stored, duplicates are named."""

import csv
import io
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from running import DEMO
from safetensors.torch import load_file

import analyze
import train
from attribution.cli import options_of
from attribution.data.demo import LABEL_NAMES, read_rows
from attribution.data.duplicates import Duplicate
from attribution.evidence.label_issues import LabelIssue, Ranking
from attribution.show.label_issues import better_lines, issue_lines, named
from attribution.training.members import Members
from attribution.training.run import Run
from pipeline import DEMO_MODEL

COUNT = 400
OWN = ["--dataset_path", "x.csv", "--text_columns", "text", "--label_column", "label"]
LOSS = Ranking("loss", np.zeros(1), np.zeros(1))
COLUMNS = ["given_label", "predicted_label", "label_score", "is_label_issue"]


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A replayed run on 400 rows of the demo, of which one in twenty is flipped on purpose."""
    folder = tmp_path_factory.mktemp("labels")
    where = [*DEMO, "--checkpoint_dir", str(folder)]
    train.main([*where, "--max_train_samples", str(COUNT), "--num_train_epochs", "6"])
    analyze.main([*where, "--max_queries", "2", "--label_issues", "replay"])
    return folder


def issue_of(rows, row: int, probability: float) -> LabelIssue:
    """A row with this probability of its label."""
    label = rows.label_name(row)
    return LabelIssue(row, None, rows.columns_of(row), label, label, probability, False, [], [], [])


def answer(capsys, folder, *arguments: str, name: str = "demo") -> str:
    """What analyze.py prints of the labels of a run."""
    capsys.readouterr()
    where = ["--dataset_name", name, "--checkpoint_dir", str(folder), "--max_queries", "9"]
    analyze.main([*where, "--label_issues", *arguments])
    return capsys.readouterr().out


@pytest.mark.parametrize("ranking", ["replay", "loss", "self_influence"])
def test_most_of_the_first_rows_are_wrong_where_one_in_twenty_is(scored, capsys, ranking):
    lines = answer(capsys, scored, ranking, "--format", "json").splitlines()
    rows = [json.loads(line) for line in lines]
    wrong = np.array(read_rows()["train"]["flipped"][:COUNT])
    assert sorted(one["row"] for one in rows) == list(range(COUNT))
    assert wrong.mean() < 0.06
    assert wrong[[one["row"] for one in rows[: wrong.sum()]]].mean() > 0.5
    assert {one["ranking"] for one in rows} == {ranking}


def test_csv_has_the_rows_and_what_the_replay_stored_of_them(scored, capsys):
    """A stored replay is the ranking of a question that names none."""
    text = answer(capsys, scored, "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    of_texts = ["neighbours", "duplicates", "validation_duplicates"]
    assert list(rows[0]) == ["row", "file_row", "sentence", *COLUMNS, *of_texts]
    path = scored / "demo/influence/scores/replay/self_scores.safetensors"
    log_odds = load_file(path)["outputs"][:, 0].double()
    data = read_rows()["train"]
    for one in rows:
        row = int(one["row"])
        label = data["label"][row]
        says = int(log_odds[row] > 0)
        assert one["sentence"] == data["sentence"][row]
        assert one["given_label"] == LABEL_NAMES[label]
        assert one["predicted_label"] == LABEL_NAMES[says]
        assert one["is_label_issue"] == str(label != says)
        probability = torch.sigmoid(log_odds[row] * (2 * label - 1)).item()
        assert float(one["label_score"]) == pytest.approx(probability)
        neighbours = one["neighbours"].split()
        assert 0 < len(neighbours) <= 5 and one["row"] not in neighbours
    scores = [float(one["label_score"]) for one in rows]
    assert scores == sorted(scores) and len(scores) == COUNT


def test_the_title_says_which_ranking_it_is_and_which_leaves_the_row_out(scored, capsys):
    shown = {
        ranking: " ".join(answer(capsys, scored, ranking, "--format", form).split())
        for ranking, form in (("replay", "table"), ("loss", "table"), ("self_influence", "table"))
    }
    for ranking, title, seen in (
        ("replay", "by a replay (replay; the default, as it is stored)", "a replay of a check"),
        ("loss", "by the loss of the model (the default, until a replay is stored)", "a model"),
        ("self_influence", "by self-influence", "a model"),
    ):
        text = shown[ranking]
        assert text.startswith(f"labels to look at, {title}")
        assert f"The ranking comes from {seen}" in text and "that has seen these labels" in text
        assert "no label is doubted" not in text and "of the top 50 are planted flips" in text


def test_what_finds_more_is_printed_as_commands_and_what_is_there_is_left_out(own, capsys):
    folder = own[0]
    out = answer(capsys, folder, name="own")
    train_line, analyze_line = [line.split() for line in out.splitlines() if "  python " in line]
    assert train_line[1:4] == ["train.py", "--dataset_name", "own"]
    asked = analyze.parse_args(analyze_line[2:])
    assert (asked.factor_strategy, asked.label_issues) == ("replay", "best")
    assert asked.checkpoint_dir == folder
    run = Run.open(folder, "own")
    halves = Ranking("loss", np.zeros(1), np.zeros(1), seen=False)
    trained = train.parse_args([*train_line[2:], *OWN])
    halves_of_rows = Members(num_members=8, member_share=0.5, member_steps=2)
    assert options_of(Members, trained) == halves_of_rows and trained.checkpoint_dir == folder
    assert better_lines(run, halves) == better_lines(replace(run, recipe=None), LOSS) == []


def test_rows_whose_labels_the_model_is_sure_of_are_not_called_doubtful(own):
    rows, _ = Run.open(own[0], "own").rows(9)
    for probability, said in ((0.85, True), (0.75, False)):
        issues = [issue_of(rows, row, probability) for row in range(len(rows))]
        text = " ".join(issue_lines(issues, LOSS, rows, 5))
        assert ("no label is doubted by this ranking" in text) == said


def test_the_number_of_rows_that_is_named_shows_every_doubted_one(own):
    rows, _ = Run.open(own[0], "own").rows(9)
    issues = [issue_of(rows, row, 0.4) for row in range(9)]
    issues = [replace(one, is_label_issue=one.row in (0, 2, 7)) for one in issues]
    for top_k, more in ((5, "; --top_k 8 shows them."), (8, ".")):
        text = " ".join(issue_lines(issues, LOSS, rows, top_k))
        assert f"Of 9 rows 3 are said to have another{more}" in text


ODD = [  # texts that a table must keep as they are
    'He said "fine", twice',
    "two\nlines; and; more",
    "a\ttab, \x1b[31mred\x1b[0m",
    "=1+1",
]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """(checkpoints, texts and labels of a file) of custom rows with odd texts and duplicates."""
    folder = tmp_path_factory.mktemp("own")
    texts = [*ODD, *read_rows()["train"]["sentence"][:60]]
    texts += [texts[10], texts[11].upper(), texts[12] + " !"] * 2
    labels = [("low", "mid", "high")[row % 3] for row in range(64)] + ["low"] * 3 + ["high"] * 3
    path = folder / "rows.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], *zip(texts, labels, strict=True)])
    train.main(
        [
            *[
                "--dataset_name",
                "own",
                "--checkpoint_dir",
                str(folder),
                "--dataset_path",
                str(path),
            ],
            *["--text_columns", "text", "--label_column", "label", "--num_train_epochs", "1"],
            *["--model_name_or_path", str(DEMO_MODEL)],
        ]
    )
    return folder, texts, labels


def test_csv_numbers_rows_as_the_file_does_and_keeps_every_text(own, capsys):
    folder, texts, labels = own
    text = answer(capsys, folder, "--format", "csv", name="own")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert 50 < len(rows) < len(texts)  # the others are for validation
    for one in rows:
        place = int(one["file_row"])
        assert (one["text"], one["given_label"]) == (texts[place], labels[place])
        assert 0 < float(one["label_score"]) < 1
    assert {one["text"] for one in rows} & set(ODD)


def test_of_many_duplicates_those_of_another_label_are_named_first():
    rows = SimpleNamespace(first_number=0, file_row=lambda row: None)
    same = [Duplicate(row, True, True) for row in range(8)]
    text = named([*same, Duplicate(9, False, False)], rows)
    assert text.startswith(" [row 9: nearly equal, another label; row 0: equal, same label; ")
    assert text.endswith("; and 6 more]") and "more" not in named(same[:3], rows)


def test_equal_and_nearly_equal_texts_are_named_with_whether_their_labels_differ(own, capsys):
    folder, texts, labels = own
    lines = answer(capsys, folder, "--format", "json", name="own").splitlines()
    rows = {one["row"]: one for one in map(json.loads, lines)}
    keys = [" ".join(text.casefold().split()) for text in texts]
    seen = set()
    for one in rows.values():
        key = keys[one["file_row"]]
        others = {row for row, other in rows.items() if keys[other["file_row"]] == key}
        equal = {other["row"]: other["same_label"] for other in one["duplicates"] if other["equal"]}
        assert set(equal) == others - {one["row"]}
        for other, same in equal.items():
            assert same == (one["given_label"] == rows[other]["given_label"])
            seen.add(same)
        near = {other["row"] for other in one["duplicates"] if not other["equal"]}
        without = key.removesuffix(" !")
        assert {keys[rows[row]["file_row"]].removesuffix(" !") for row in near} <= {without}
        seen |= {"near"} if near else set()
    assert seen >= {False, "near"}


def test_duplicates_of_validation_rows_are_in_json_and_csv_too(own, capsys):
    folder, texts, labels = own
    rows, queries = Run.open(folder, "own").rows(9)
    keys = [" ".join(queries.text(place).casefold().split()) for place in range(len(queries))]
    found = {}
    for line in answer(capsys, folder, "--format", "json", name="own").splitlines():
        one = json.loads(line)
        equal = [twin for twin in one["validation_duplicates"] if twin["equal"]]
        key = " ".join(rows.text(one["row"]).casefold().split())
        assert [twin["row"] for twin in equal] == [
            i for i, other in enumerate(keys) if other == key
        ]
        for twin in equal:
            same = queries.labels[twin["row"]] == rows.labels[one["row"]]
            assert twin["same_label"] == same
        found[one["row"]] = len(one["validation_duplicates"])
    assert sum(found.values()) > 0
    text = answer(capsys, folder, "--format", "csv", name="own")
    for one in csv.DictReader(io.StringIO(text, newline="")):
        twins = list(filter(None, one["validation_duplicates"].split("; ")))
        assert len(twins) == found[int(one["row"])]
        assert all(re.fullmatch(r"\d+ (nearly )?equal, (same|another) label", x) for x in twins)


def test_the_listing_names_duplicates_and_no_text_steers_the_terminal(own, capsys):
    folder, *_ = own
    lines = answer(capsys, folder, "--top_k", "90", name="own").splitlines()
    out = " ".join(" ".join(lines).split())
    assert "\x1b" not in out
    begin = next(place for place, line in enumerate(lines) if "equal, another label: " in line)
    for line, number in zip(
        lines[begin + 1 :], re.findall(r"(\d+) \(", lines[begin]), strict=False
    ):
        row = rf"(query|row) +{number} \(row \d+ of the file\) \[(low|mid|high)\]:? \S"
        assert re.match(f"    {row}", line)
    assert "training rows, equal, another label: " in out
    assert "training rows, nearly equal, " in out
    assert re.search(r"\[row \d+ \(row \d+ of the file\): equal, another label", out)
