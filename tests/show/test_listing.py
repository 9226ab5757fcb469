"""The listing fits the terminal, looks the same in a pipe, and reads as the golden files do.

`GOLDEN=write pytest tests/show/test_listing.py` writes tests/show/golden/ again; look at the
difference before you keep it.
"""

import dataclasses
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from small import Plain

from attribution.data.rows import Rows
from attribution.data.tasks import GlueTask
from attribution.show.answer import Answer, Check, Context, Query, explain
from attribution.show.listing import View, answer_lines, cut, show, width

GOLDEN = Path(__file__).parent / "golden"
N = 40
TWO = GlueTask(("text",), 2, ("negative", "positive"))
STARS = GlueTask(("text",), 1, ())
CHECK = Check("python run_counterfactual.py --dataset_name demo", 15, "about 8 minutes")
SENTENCES = [
    "The soup was cold.",
    "A film that takes its time, and earns every minute of it.",
    "We waited an hour for bread, which came burnt on one side and frozen on the other, and nobody "
    "at the counter seemed to think that this was anything out of the ordinary.",
    "Lovely garden.",
    "The lead sings as if paid by the decibel.",
]
TEXTS = [f"{SENTENCES[row % 5]} ({row})" for row in range(N)]


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch):
    """A terminal of 80 columns, whatever runs the tests."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)


def scores() -> np.ndarray:
    """Scores (N,) that do not depend on a random generator's version."""
    found = np.cos(np.arange(N) * 1.7) * (1 + np.arange(N) % 7)
    return found.astype(np.float32)


def two_classes(**more) -> Answer:
    """A wrong prediction with every mark, checkable."""
    truth = np.zeros(N, bool)
    truth[13] = True
    train: Rows = Plain(TWO, TEXTS, np.arange(N) % 2, truth=truth)
    said = train.labels.copy()
    said[[20, 34]] = 1 - said[[20, 34]]
    everywhere = np.zeros(N)
    everywhere[33] = 0.9
    context = Context(train, "ekfac", 3, everywhere=everywhere, said=said, check=CHECK)
    about = {"logits": np.array([2.0, 0.0]), "label_number": 1.0, "margin": -2.0}
    members = [scores(), np.roll(scores(), 1), scores()[::-1]]
    asked = Query([TEXTS[20]], "positive", scores(), 79, members=members, **about | more)
    return explain(context, asked, 4)


def regression() -> Answer:
    """A replayed regression, of a file from which validation rows were drawn."""
    train = Plain(STARS, TEXTS, np.linspace(1, 5, N), file_rows=np.arange(N) * 3)
    context = Context(train, "replay", replayed=True, likeness=0.87, check=CHECK)
    about = {"logits": np.array([3.21]), "label_number": 4.5, "margin": -1.7}
    return explain(context, Query([TEXTS[2]], "4.50", scores(), 7, 22, **about), 3)


def group() -> Answer:
    """The mean over the wrong predictions."""
    train = Plain(TWO, TEXTS, np.arange(N) % 2)
    words = ["12 of 872 validation rows (wrong)"]
    asked = Query(words, "their labels", scores(), target="group", margin=-0.5)
    return explain(Context(train, "ekfac", check=CHECK), asked, 3)


ANSWERS = {"two_classes": two_classes, "regression": regression, "group": group}


def printed(capsys, answer: Answer, **view) -> str:
    capsys.readouterr()
    show([answer], View("table", 4, **view))
    return capsys.readouterr().out


class Terminal:
    """Standard output that says that it is a terminal."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", ANSWERS)
def test_the_listing_reads_as_its_golden_file(name, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    out = printed(capsys, ANSWERS[name]())
    path = GOLDEN / f"{name}_{columns}.txt"
    if os.environ.get("GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(out)
    assert out == path.read_text()


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("columns", [20, 60, 61, 80, 100, 120, 500])
@pytest.mark.parametrize("name", ANSWERS)
def test_no_line_is_wider_than_the_terminal_but_a_command_to_copy(name, columns, raw, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert width() == min(max(columns, 60), 120)  # below 60 nothing could be read
    answer = ANSWERS[name]()
    lines = answer_lines(answer, raw)
    if answer.check:
        assert lines.pop() == f"  {answer.check}"
    assert max(map(len, lines)) <= width()
    words = "".join("".join(lines).split())
    for side in answer.sides:
        for row in side.rows:
            assert "".join(row.texts[0].split()) in words
            assert f"{row.score:+.3e}" in words or not raw


def test_rows_of_both_sides_stand_in_the_same_columns():
    answer = two_classes()
    lines = answer_lines(answer)
    for row in [row for side in answer.sides for row in side.rows]:
        (line,) = [one for one in lines if f"row {row.row}  " in one]
        assert line[: line.index("row")].split() == [f"{row.share:.1%}", row.label]
    ends = {line.index("  ", line.index("row ")) for line in lines if "%  " in line}
    assert len(ends) == 1


def test_raw_has_the_stored_score_the_rank_and_the_members(capsys):
    answer = two_classes()
    out = printed(capsys, answer, raw=True)
    for side in answer.sides:
        for row in side.rows:
            stored = f"score {row.score:+.3e}", f"rank {row.rank} ", f"{row.agreement} of 3 members"
            (line,) = [one for one in out.splitlines() if stored[0] in one]
            assert " ".join(stored[1].split()) in " ".join(line.split()) and stored[2] in line
    assert "score " not in printed(capsys, answer)


def test_a_terminal_without_colour_shows_what_a_pipe_gets_and_bold_is_for_terminals(
    capsys, monkeypatch
):
    answer = two_classes()
    piped = printed(capsys, answer)
    monkeypatch.setattr(sys, "stdout", Terminal(sys.stdout))
    bold = printed(capsys, answer)
    monkeypatch.setenv("NO_COLOR", "1")
    assert printed(capsys, answer) == piped and "\x1b" not in piped
    assert bold.replace("\x1b[1m", "").replace("\x1b[0m", "") == piped
    strong = [line for line in bold.splitlines() if "\x1b" in line]
    titles = [side.title for side in answer.sides]
    assert strong == [f"\x1b[1m{line}\x1b[0m" for line in (f"query 79: {TEXTS[20]}", *titles)]


def test_notes_explain_the_marks_that_are_shown_and_no_others():
    words = " ".join(" ".join(answer_lines(two_classes())).split())
    for mark in ("flipped on purpose", "nearly the same text", "high for many queries"):
        assert words.count(f"[{mark}]") == 2, mark  # beside the row, and below
    assert "[the model says positive]" in words and "[the model says]" in words
    bare = " ".join(answer_lines(group()))
    assert "[" not in bare


@pytest.mark.parametrize(("likeness", "says"), [(0.3, True), (0.6, False)])
def test_a_replay_that_is_unlike_the_training_is_doubted(likeness, says):
    text = " ".join(answer_lines(dataclasses.replace(regression(), likeness=likeness)))
    assert f"by {likeness:.2f}" in text and ("says little" in text) == says


def test_of_a_long_text_the_screen_shows_the_beginning():
    assert cut("word " * 80) == "word " * 80 and cut("a\x1b") == "a\\x1b"
    assert cut("word " * 1000) == ("word " * 80).rstrip() + " ..."
    assert cut("words " * 1000) == ("words " * 66).rstrip() + " ..."  # none is cut in two
    assert cut("字" * 1000) == "字" * 400 + " ..." and cut("a " + "字" * 999)[-5] == "字"


def test_a_row_without_text_is_still_listed():
    answer = group()
    (row, *_) = answer.sides[0].rows
    side = dataclasses.replace(answer.sides[0], rows=[dataclasses.replace(row, texts=[""])])
    lines = answer_lines(dataclasses.replace(answer, sides=[side]))
    assert any(line.endswith(f"row {row.row}") for line in lines)


def test_a_label_that_is_longer_than_the_line_leaves_the_text_its_own_lines(monkeypatch):
    task = GlueTask(("text",), 2, ("a name of a class that is much longer than others are", "no"))
    train = Plain(task, TEXTS, np.arange(N) % 2)
    asked = Query([TEXTS[0]], "no", scores(), 1, label_number=1.0)
    monkeypatch.setenv("COLUMNS", "70")
    lines = answer_lines(explain(Context(train), asked, 3))
    assert any(line.startswith("      ") and "(6)" in line for line in lines)
