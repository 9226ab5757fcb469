"""Answers on a terminal, in a pipe, as JSON and as CSV.

Texts go through `printable`, so that nothing in them steers the terminal. Symbols: N training rows.
"""

import contextlib
import json
import os
import shutil
import sys
import textwrap
from dataclasses import dataclass

from attribution.data.rows import Rows
from attribution.files import printable
from attribution.show.answer import Answer, AnswerRow, is_linked, write_csv

FORMATS = ("table", "json", "csv")
NARROWEST = 30  # characters of a column of text
NARROW, WIDE = 60, 120  # characters of a line, at least and at most

FORMAT = """--format json prints one object a query:
  format (2), query (number of the validation row, or null), file_row (its number in the file, from
  0 on, if validation rows were drawn from it), texts, label, target (label, predicted, output or
  group), said (prediction), probability, margin, scores (their name), members (number), unit (of
  amounts: share, log-odds, label or squared label), conclusion, check (command; of a group
  one that asks about some of its queries), cost,
  verdicts (stored, of that command: word and sentence of each), also (null, or how many of its
  strongest rows are among those of other scores: scores, shared, strongest), likeness (null, or of
  a replay the correlation of its margins with the model's on rows that training left out),
  sides: two objects, with towards (a class, or raised and lowered), title, direction (helpful or
  harmful to the margin of the label), and rows: row, file_row, texts, label, score (as stored),
  share (of all absolute scores), rank (1: largest absolute score), agreement (null, or members that
  have it among their top), everywhere (null, or share of queries that have it among their ten),
  high (whether those are many),
  said (class that the model gives it, if not its label), alike (nearly the query's text), flipped
  (demo only), words (with --words: pieces of each text with how much they link row and query, 1 for
  the most).
With --label_issues or --self_influence it prints one object a training row, the most suspicious
  first: row, file_row, texts, given_label, predicted_label, label_score (probability of the given
  label; of a regression minus the squared error), is_label_issue (whether the two labels differ;
  null: a regression), neighbours (rows of the nearest texts), duplicates (a list of row, equal,
  same_label), validation_duplicates (the same of validation rows), ranking, scores. A replay
  predicts without the row.
--format csv prints one line a row: query, query_text, towards, and what JSON says of the row, but
  its words."""

NOTES = {
    "the model says": "It gives this training row another class than its label.",
    "high for many queries": "Such a row tells more about itself than about this query.",
    "nearly the same text": "It has the words of the query, or nearly.",
    "flipped on purpose": "The demo has such labels, so that they can be found.",
}
SLOPE = "by the slope of a replayed training; --remove_rows replays its removal"
UNITS = {
    "share": "Percentages are shares of all absolute scores of the query.",
    "log-odds": f"Numbers are log-odds: how far the row pushed, {SLOPE}.",
    "label": f"Numbers are in units of the label, {SLOPE}.",
    "squared label": f"Numbers are in squared units of the label, {SLOPE}.",
}
LONGEST = 400  # characters of a text on the screen; CSV, JSON and pages have more
LIKE = 0.5  # correlation of replayed with real margins below which a replay is doubted


@dataclass(frozen=True)
class View:
    """Form of the answers."""

    form: str  # one of FORMATS
    top_k: int
    raw: bool = False  # whether scores, ranks and members stand beside the rows

    def progress(self):
        """Context that prints progress to standard error where data go to standard output."""
        if self.form == "table":
            return contextlib.nullcontext()
        return contextlib.redirect_stdout(sys.stderr)


def show(answers: list[Answer], view: View) -> None:
    """Prints answers; of a launch the main process does."""
    if not answers or os.environ.get("RANK", "0") != "0":
        return
    if view.form == "csv":
        write_csv(answers, sys.stdout)
        return
    for answer in answers:
        if view.form == "json":
            print(json.dumps(answer.record()))
        else:
            print(*answer_lines(answer, view.raw), sep="\n")


# --- an answer ------------------------------------------------------------------------------------


def width() -> int:
    """Characters of a line."""
    return min(max(shutil.get_terminal_size().columns, NARROW), WIDE)


def strong(lines: list[str]) -> list[str]:
    """The lines in bold on a terminal; as they are in a pipe, or where NO_COLOR is set."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return lines
    return [f"\x1b[1m{line}\x1b[0m" for line in lines]


def answer_lines(answer: Answer, raw: bool = False) -> list[str]:
    """The answer in lines of the terminal's width. raw: with the stored scores."""
    number = f"query {answer.query}{file_place(answer)}: " if answer.query is not None else ""
    lines = ["", *strong(wrapped(f"{number}{joined(answer)}"))]
    lines += [*textwrap.wrap(said_of(answer), width()), *wrapped(answer.conclusion)]
    rows = [row for side in answer.sides for row in side.rows]
    for side in answer.sides:
        lines += ["", *strong(wrapped(side.title + ": nothing" * (not side.rows)))]
        lines += block(side.rows, rows, answer, raw)
    lines.append("")
    for words, note in NOTES.items():
        if any(mark.startswith(words) for row in rows for mark in row.marks):
            lines += wrapped(f"[{words}] {note}")
    group = answer.target == "group"
    unit = UNITS[answer.unit]
    lines += wrapped(unit.replace("the query", "the group") if group else unit)
    if answer.likeness is not None:
        lines += wrapped(likeness_text(answer.likeness))
    if answer.words is not None:
        lines += wrapped("Words between *stars* link the row and the query most.")
    for one in answer.verdicts:
        lines += wrapped(f"Checked by retraining: {one.word}. {one.sentence}")
    if answer.also is not None:
        lines += wrapped(str(answer.also))
    if answer.check and not answer.verdicts:
        sure = f"Not sure? Retrain without the strongest of the first side ({answer.cost}):"
        lines += wrapped("To ask about single ones of these:" if group else sure)
        lines.append(f"  {printable(answer.check)}")
    return lines


def likeness_text(likeness: float) -> str:
    """How like the training a replay was, in a sentence."""
    doubt = ": this replay says little" if likeness < LIKE else ""
    return (
        "Replayed margins of rows that training left out correlate with the model's by "
        f"{likeness:.2f}{doubt}."
    )


def said_of(answer: Answer) -> str:
    """What the label is, and what the model said."""
    label = "" if answer.target != "label" else f"label {printable(answer.label)}"
    if answer.said is None:
        return label
    said = f"the model says {printable(answer.said)}"
    if answer.probability is not None:
        said += f" ({answer.probability:.0%})"
    return ", ".join(filter(None, [label, said]))


def block(side: list[AnswerRow], rows: list[AnswerRow], answer: Answer, raw: bool) -> list[str]:
    """Rows of one side, in columns that are as wide as those of all rows of the answer."""
    widths = widths_of([cells(row, answer, raw) for row in rows])
    lines = []
    for row in side:
        text = joined(row).rstrip() + "".join(f" [{printable(mark)}]" for mark in row.marks)
        lines += columns_and_text(cells(row, answer, raw), widths, text)
    return lines


def widths_of(rows: list[list[str]]) -> list[int]:
    """Characters of each column."""
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def columns_and_text(cells: list[str], widths: list[int], text: str) -> list[str]:
    """Lines of a row: cells, the second to the left and the others to the right, then the text."""
    padded = zip(cells, widths, "><" + ">" * len(widths), strict=False)
    start = "  " + "  ".join(f"{cell:{way}{size}}" for cell, size, way in padded) + "  "
    if width() - len(start) < NARROWEST:  # the text below the numbers
        numbers = textwrap.wrap(start.strip(), width(), **indents(4) | {"initial_indent": "  "})
        return [*numbers, *textwrap.wrap(text, width(), **indents(6))]
    hanging = indents(len(start)) | {"initial_indent": start}
    return textwrap.wrap(text, width(), **hanging) or [start.rstrip()]


def cells(row: AnswerRow, answer: Answer, raw: bool) -> list[str]:
    """Columns of one row without its text."""
    amount = answer.amount(row)
    shown = f"{amount:.1%}" if answer.unit == "share" else f"{amount:.3f}"
    found = [shown, f"{printable(row.label)}", f"row {row.row}{file_place(row)}"]
    if raw:
        found += [f"score {row.score:+.3e}", f"rank {row.rank}"]
        found += [] if row.agreement is None else [f"{row.agreement} of {answer.members} members"]
    return found


def indents(size: int) -> dict:
    """Arguments of `textwrap` that indent by so many characters."""
    return {"initial_indent": " " * size, "subsequent_indent": " " * size}


def wrapped(text: str) -> list[str]:
    """Lines of the terminal's width, without what steers it."""
    return textwrap.wrap(printable(text), width()) or [""]


# --- rows -----------------------------------------------------------------------------------------


def joined(one: Answer | AnswerRow) -> str:
    """Text columns on one line, joined by ' | '; words that link row and query as *word*."""
    if one.words is None:
        return cut(" | ".join(one.texts))
    return cut(
        " | ".join(
            "".join(f"*{text}*" if is_linked(text, value) else text for text, value in column)
            for column in one.words
        )
    )


def cut(text: str, longest: int = LONGEST) -> str:
    """The text without what steers a terminal or a browser, of a long one the first words."""
    if len(text) > longest:
        words = text[: longest + 1].rpartition(" ")[0].rstrip()
        text = f"{words if len(words) > longest / 2 else text[:longest]} ..."
    return printable(text)


def file_place(row) -> str:
    """` (row 42 of the file)` of a row or an answer, if the file numbers its rows another way."""
    return place_in_file(row.file_row)


def place_in_file(file_row: int | None) -> str:
    """The same of a number in the file; empty for None."""
    return "" if file_row is None else f" (row {file_row} of the file)"


def headline(queries: Rows, place: int, custom: bool = False) -> str:
    """Number, label and text of a validation row, by its place among the queries; of a custom query
    without a number.
    """
    number = f" {queries.first_number + place}{place_in_file(queries.file_row(place))}"
    label = printable(queries.label_name(place))
    return f"query{'' if custom else number} [{label}]: {cut(queries.text(place))}"


def row_line(train: Rows, row: int) -> str:
    """One line for a training row: number, label, text."""
    where = place_in_file(train.file_row(row))
    flipped = ", flipped" if train.truth is not None and train.truth[row] else ""
    label = printable(train.label_name(row)) + flipped
    return f"    row {row:>6}{where} [{label}] {cut(train.text(row))}"
