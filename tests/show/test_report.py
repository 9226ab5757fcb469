"""The page is one file that runs nothing: texts are data, nothing is fetched, and it says what is
not known.
"""

import copy
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from datasets import Dataset

import analyze
import run_counterfactual
import train
from attribution.cli import run_script
from attribution.show.listing import Context, Query
from attribution.show.report import (
    card,
    clipped,
    common_words,
    lds_table,
    lds_words,
    marked,
    shown,
    signed,
)
from pipeline import DEMO_MODEL, get_glue_dataset

QUICK = ["--dataset_name", "demo", "--max_queries", "30", "--factor_strategy", "identity"]
EVIL = [
    "<script>alert(1)</script> a fine film",
    "A dull film &amp; <img src=x onerror=alert(1)>",
    "\u202eevil\u202c text \x1b[31m",
    "</div></body> \" ' ` {{ 7*7 }} {% raw %}",
    "<b>bold</b> soup",
    "plain words",
]


class Page(HTMLParser):
    """Tags, attributes and text of a page; whether every tag is closed in its order."""

    VOID = ("meta", "br", "img", "link", "input")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], "", []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def scored(trained, tmp_path_factory):
    """A run with stored scores of 30 queries; tests copy it (see `copied`)."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("report") / "checkpoints")
    analyze.main([*QUICK, "--checkpoint_dir", str(folder)])
    return folder


def report(folder, *argv: str, arguments=QUICK) -> tuple[str, Page]:
    path = folder / "page.html"
    analyze.main([*arguments, "--checkpoint_dir", str(folder), "--report", str(path), *argv])
    return path.read_text(), Page(path.read_text())


def test_the_page_is_one_file_that_fetches_and_runs_nothing(copied):
    html, page = report(copied)
    assert not page.open and not {"script", "link", "img", "iframe", "form", "object"} & set(
        page.tags
    )
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    assert not [value for name, value in page.attributes if name == "src" or name.startswith("on")]
    assert {value[0] for name, value in page.attributes if name == "href"} == {"#"}
    assert "http" not in re.sub(r'http-equiv="[^"]*"', "", html) and "url(" not in html
    assert str(copied) not in html and "/tmp" not in html  # no absolute paths
    assert "Most confidently wrong" in page.text and "Right, drawn at random" in page.text
    assert "This page contains training texts" in page.text
    anchors = [value for name, value in page.attributes if name == "id"]
    assert len(anchors) == len(set(anchors)) >= 6


def test_markup_in_texts_labels_and_questions_shows_as_text(tmp_path):
    rows = {"text": EVIL * 5, "kind": ["<i>good</i>", "bad&quot;"] * 15}
    Dataset.from_dict(rows).to_parquet(tmp_path / "evil.parquet")
    where = ["--dataset_name", "evil", "--checkpoint_dir", str(tmp_path)]
    own = [
        "--dataset_path",
        str(tmp_path / "evil.parquet"),
        "--text_columns",
        "text",
        "--label_column",
        "kind",
    ]
    train.main([*where, *own, "--model_name_or_path", str(DEMO_MODEL), "--num_train_epochs", "1"])
    plan = ["--dataset_name", "evil", "--factor_strategy", "identity"]
    analyze.main([*plan, "--checkpoint_dir", str(tmp_path)])
    analyze.main([*plan, "--checkpoint_dir", str(tmp_path), "--query_text", EVIL[0]])
    html, page = report(tmp_path, arguments=plan)
    assert not page.open and not {"script", "img", "i"} & set(page.tags)
    assert (
        EVIL[0] in page.text.replace("\n", " ")
        and "<i>good</i>" in page.text
        and "{{ 7*7 }}" in page.text
    )
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert (
        "\u202e" not in html
        and "\x1b" not in html
        and "\\u202e" in page.text
        and "\\x1b[31m" in page.text
    )


def test_bare_pieces_of_text_are_escaped_marked_and_bounded():
    assert marked("Cold soup, COLD.", {"cold"}) == [
        ("Cold", True),
        (" soup, ", False),
        ("COLD", True),
        (".", False),
    ]
    assert "".join(piece for piece, _ in marked("a <b>\u202e", {"b"})) == "a <b>\\u202e"
    assert shown(["a\nb", "c"]) == "a\\nb | c" and len(clipped("x" * 9999)) < 1600
    assert common_words(["the soup", "the film", "the bread", "the dog", "a dog"]) == {"the", "dog"}
    assert signed(-0.5) == "\N{MINUS SIGN}0.5"


def test_own_queries_members_and_verdicts_are_shown_and_forgotten(copied):
    text = ["--query_text", "Nobody must know this soup."]
    where = ["--checkpoint_dir", str(copied)]
    analyze.main([*QUICK, *where, *text])
    plan = [
        "--max_queries",
        "30",
        "--strategies",
        "identity",
        "--removals",
        "5",
        "--num_base_seeds",
        "1",
    ]
    run_counterfactual.main(
        ["--dataset_name", "demo", *where, *plan, *text, "--jobs_per_device", "1"]
    )
    _, page = report(copied)
    assert "Queries of your own" in page.text and "Nobody must know this soup." in page.text
    assert "Checked by retraining" in page.text and "measured change" in page.text
    _, page = report(copied, "--query_index", "2", "4")
    assert "Nobody must know" not in page.text and "query 2" in page.text and "query 4" in page.text
    analyze.main(["--dataset_name", "demo", *where, "--forget_queries"])
    assert "Nobody must know" not in report(copied)[1].text


def test_fifty_queries_stay_below_3_mb(copied):
    _, page = report(copied, "--query_index", *map(str, range(30)), "--top_k", "10")
    assert (
        len((copied / "page.html").read_bytes()) < 3e6 * 30 / 50
        and page.tags.count("article") == 30
    )


def test_a_report_without_scores_names_the_command(run_copy, capsys):
    where = [
        "--dataset_name",
        "demo",
        "--checkpoint_dir",
        str(run_copy),
        "--factor_strategy",
        "diagonal",
        "--report",
    ]
    assert run_script(analyze.main, where) == 2
    assert "--factor_strategy diagonal" in capsys.readouterr().err
    assert run_script(analyze.main, [*where, "--query_text", "x"]) == 2


def test_wrong_is_another_class_than_the_labels_and_nothing_of_a_regression():
    train = get_glue_dataset("demo", "train", max_samples=30)
    regression = copy.copy(train)
    regression.task = replace(train.task, num_labels=1, class_names=())

    def wrong(query: Query, train=train) -> bool:
        return card(Context(train), query, 1, [], set())["wrong"]

    query = Query(["a"], "positive", np.zeros(30), 0, logits=np.array([0.1, 0.9]), label_number=1.0)
    assert not wrong(query)
    assert wrong(replace(query, label="negative", label_number=0.0))
    assert not wrong(replace(query, label="negative", label_number=0.0, number=None))
    assert not wrong(replace(query, logits=None))
    output = replace(query, logits=np.array([3.2]), label="3.21", label_number=3.21)
    assert not wrong(output, regression)


@pytest.mark.parametrize(
    ("difference", "says"),
    [([0.1, 0.3], "is more than"), ([-0.3, -0.1], "is less than"), ([-0.1, 0.2], "cannot be told")],
)
def test_what_retraining_says_of_the_scores_is_claimed_as_far_as_intervals_go(difference, says):
    found = {
        "masks": 9,
        "repeats": 2,
        "ceiling": 0.5,
        "baseline": 0.2,
        "scores": 0.4,
        "interval": [0.3, 0.5],
    }
    words = lds_words(
        found | {"difference": difference, "share": 0.8, "share_interval": [0.6, 1.0]}, "command"
    )
    assert (
        says in words
        and "0.40 [0.30, 0.50]" in words
        and "80 % [60, 100] of what a perfect score could" in words
    )
    unknown = found | {"difference": difference}
    assert "not known well enough" in lds_words(unknown, "command")
    assert lds_words(None, "python command").endswith("find out with: python command")
    assert lds_table(unknown)[-1] == ("noise ceiling", "not known well enough")
