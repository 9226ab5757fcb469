"""The listing of a query: its most influential training rows, and all that is known of them.

`explain` gathers plain values. They are printed as plain lines for pipes, as aligned and wrapped
columns for people, or as JSON, and shown in the report. Texts go through `printable`, so that
nothing in them steers the terminal.
Symbols: Q queries, N training rows, M masks, R repeats, C classes.
"""

import contextlib
import json
import shutil
import sys
import textwrap
from dataclasses import dataclass

import numpy as np

from attribution.data.rows import Rows
from attribution.files import printable
from attribution.influence.stored import TOP, most_helpful

FORMATS = ("plain", "table", "json")
COLUMNS = ("score", "share", "members", "row", "label")
NARROWEST = 20  # characters of a column of text
MIN_QUERIES = 20  # from which it can be judged that a row ranks high for every query
MARK = 0.1  # share of the queries from which a row is marked as high for every query

FORMAT = """--format json prints one object a query:
  query (null, or number of the validation row), file_row (as below), texts, label, target (label,
  predicted or output), prediction, probability, margin, scores (their name), members (number),
  helpful and harmful: lists of row, file_row (null, or its number, from 0 on, in a file from which
  validation rows were drawn), rank (1: largest absolute score), score (of a replay in log-odds),
  share (of the summed absolute scores), texts, label, flipped (demo only), agreement (null, or
  members that have it among their top), everywhere (null, or share of queries that have it among
  their ten).
With --self_influence it prints one object a row instead, the top_k of the highest self-influence:
  row, file_row, rank, score, share, texts, label, flipped, scores, members, all as above."""


@dataclass(frozen=True)
class Context:
    """Facts that all queries of one set of scores share."""

    train: Rows
    name: str = ""  # of the scores
    num_members: int = 1
    replayed: bool = False  # whether scores are in units of the margin
    likeness: float | None = None  # of replayed and real margins, of rows that training left out
    unit: float = 1.0  # of replayed scores, by which they were multiplied
    everywhere: np.ndarray | None = None  # (N,) see `rank_high_everywhere`


@dataclass(frozen=True)
class Query:
    """One query with its scores."""

    texts: list[str]
    label: str
    scores: np.ndarray  # (N,)
    number: int | None = None  # of a validation row
    file_row: int | None = None  # its number in the file, if it was drawn from one
    target: str = "label"
    logits: np.ndarray | None = None  # (C,) of the run's model
    margin: float | None = None  # of the run's model
    label_number: float = np.nan  # class or value; NaN: a regression's output
    members: list[np.ndarray] | None = None  # (N,) of each member


# --- values -------------------------------------------------------------------------------------


def rank_high_everywhere(scores: np.ndarray) -> np.ndarray | None:
    """Share of the queries (N,) that have a row among their TOP absolute scores.

    scores: (Q, N). None for fewer than MIN_QUERIES queries, or hardly more rows than TOP.
    """
    if len(scores) < MIN_QUERIES or scores.shape[1] <= 2 * TOP:
        return None
    top = np.argpartition(-np.abs(scores), TOP, axis=1)[:, :TOP]
    return np.bincount(top.ravel(), minlength=scores.shape[1]) / len(scores)


def explain(context: Context, query: Query, top_k: int) -> dict:
    """Everything that is shown of one query; see FORMAT."""
    ranks = np.argsort(np.argsort(-np.abs(query.scores), kind="stable"))
    total = float(np.abs(query.scores).sum(dtype=np.float64)) or 1.0
    result = {
        "query": query.number,
        "file_row": query.file_row,
        "texts": query.texts,
        "label": query.label,
        "target": query.target,
        **prediction_of(context, query),
        "scores": context.name,
        "members": context.num_members,
    }
    for side in ("helpful", "harmful"):  # in the order in which the studies remove rows
        tops = [most_helpful(scores, side)[:top_k] for scores in query.members or []]
        result[side] = []
        for row in most_helpful(query.scores, side)[:top_k].tolist():
            score = float(query.scores[row])
            if score and (score > 0) != (side == "helpful"):
                break  # from here on the rows are of the other side
            more = {
                "share": abs(score) / total,
                "rank": int(ranks[row]) + 1,
                "agreement": sum(row in top for top in tops) if tops else None,
            }
            result[side].append(describe_row(context, row, score) | more)
    return result


def describe_row(context: Context, row: int, score: float | None = None) -> dict:
    """One training row, with its score; its share depends on the query."""
    train = context.train
    return {
        "row": row,
        "file_row": train.file_row(row),
        "score": score,
        "share": None,
        "texts": train.columns_of(row),
        "label": train.label_name(row),
        "flipped": None if train.truth is None else bool(train.truth[row]),
        "everywhere": None if context.everywhere is None else float(context.everywhere[row]),
    }


def prediction_of(context: Context, query: Query) -> dict:
    """Prediction, its probability, and the margin of the query; None where no model was run."""
    if query.logits is None:
        return {"prediction": None, "probability": None, "margin": None}
    task = context.train.task
    probability = None
    prediction = f"{query.logits[0]:.2f}"
    if not task.regression:
        place = int(query.logits.argmax())
        prediction = task.class_names[place] if task.class_names else str(place)
        probability = float(softmax(query.logits)[place])
    return {"prediction": prediction, "probability": probability, "margin": query.margin}


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (C,) of logits (C,)."""
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    return shifted / shifted.sum()


def meaning_of_scores(context: Context) -> str:
    """Sentence about the meaning of scores."""
    if not context.replayed:
        return (
            "A score has no unit: compare it with others of the same query. Those of analyze.py "
            "--factor_strategy replay are in log-odds."
        )
    alike = ""
    if context.likeness is not None:
        alike = (
            f" (of rows that training left out, its margins correlate with the model's by "
            f"{context.likeness:.2f}"
        )
        if context.unit != 1:
            alike += f"; sizes are {context.unit:.2f} times the replayed, as the members differ"
        alike += ")"
    unit = "squared units of the label" if context.train.task.regression else "log-odds"
    return (
        f"A score is in {unit}: what the row adds to the query's margin by being there, where half "
        f"of the others are, by a training that was replayed, not run{alike}. "
        "run_counterfactual.py --remove_rows replays any removal, and with --check retrains."
    )


# --- lines --------------------------------------------------------------------------------------


def terminal_width() -> int:
    """Characters in a line of the terminal."""
    return shutil.get_terminal_size().columns


def show(explained: dict, form: str) -> None:
    """Prints an explained query. form: one of FORMATS."""
    if form == "json":
        lines = [json.dumps(explained)]
    elif form == "plain":
        lines = plain_lines(explained)
    else:
        lines = table_lines(explained, terminal_width())
    print(*lines, sep="\n")


def heading(explained: dict) -> str:
    """Number, label and text of a query; for a predicted label also its probability."""
    number = "" if explained["query"] is None else f" {explained['query']}{file_place(explained)}"
    label = printable(explained["label"])
    if explained["target"] == "output":
        label = f"output {explained['prediction'] or ''}".rstrip()
    elif explained["target"] == "predicted" and explained["probability"] is not None:
        label += f", predicted with probability {explained['probability']:.2f}"
    return f"query{number} [{label}]: {joined(explained['texts'])}"


def headline(queries: Rows, place: int) -> str:
    """Heading of a validation row, by its place among the queries."""
    about = {
        "query": queries.first_number + place,
        "file_row": queries.file_row(place),
        "label": queries.label_name(place),
        "target": "label",
    }
    return heading(about | {"texts": [queries.text(place)]})


def joined(texts: list[str]) -> str:
    """Text columns on one line, joined by ' | '."""
    return printable(" | ".join(texts))


def side_titles(explained: dict) -> dict[str, str]:
    """Titles of the two sides: rows help or harm, or raise or lower a regression's output."""
    if explained["target"] == "output":
        return {"helpful": "raise the output most", "harmful": "lower the output most"}
    return {"helpful": "most helpful", "harmful": "most harmful"}


def label_of(row: dict) -> str:
    """A row's label, and on the demo whether it was flipped."""
    return printable(row["label"]) + (", flipped" if row["flipped"] else "")


def file_place(row: dict) -> str:
    """` (row 42 of the file)`, if the file numbers its rows in another way."""
    return "" if row["file_row"] is None else f" (row {row['file_row']} of the file)"


def plain_row(row: dict, num_members: int = 1) -> str:
    """One line for a described row: score (if any), agreement (if any), number, label, text."""
    score = "" if row["score"] is None else f"{row['score']:+12.4g}  "
    agreement = row.get("agreement")
    agreed = "" if agreement is None else f"{agreement}/{num_members} "
    place = f"row {row['row']:>6}{file_place(row)}"
    return f"    {score}{agreed}{place} [{label_of(row)}] {joined(row['texts'])}"


def plain_lines(explained: dict) -> list[str]:
    """The listing with one line a row."""
    lines = ["", heading(explained)]
    for side, title in side_titles(explained).items():
        lines.append(f"  {title}:" + " none" * (not explained[side]))
        lines += [plain_row(row, explained["members"]) for row in explained[side]]
    return lines


def table_lines(explained: dict, width: int) -> list[str]:
    """The listing in columns, texts wrapped; a narrow terminal gets fewer columns."""
    lines = ["", *textwrap.wrap(heading(explained), max(width, 40))]
    titles = side_titles(explained)
    sides = {title: explained[side] for side, title in titles.items()}
    return lines + block_lines(sides, explained["members"], width)


def block_lines(sides: dict[str, list[dict]], num_members: int, width: int) -> list[str]:
    """Described rows in columns, below the title of their side."""
    lines = []
    rows = [cells_of(row, num_members) for side in sides.values() for row in side]
    columns = [name for name in COLUMNS if any(row[name] != "-" for row in rows)]
    for dropped in ("share", "members", ""):
        widths = [max(len(name), *(len(row[name]) for row in rows)) for name in columns]
        if width - sum(widths) - 2 * len(widths) - 4 >= NARROWEST:
            break
        columns = [name for name in columns if name != dropped]
    for title, side in sides.items():
        if not side:
            lines.append(f"  {title}: none")
            continue
        lines.append(f"  {title}:")
        lines += table_row(columns, widths, "text", width)
        for row in side:
            cells = cells_of(row, num_members)
            text = cells["mark"] + joined(row["texts"])
            lines += table_row([cells[name] for name in columns], widths, text, width)
    return lines


def cells_of(row: dict, num_members: int) -> dict[str, str]:
    """Columns of one row without its text; "-" for an unknown value. "mark" precedes the text."""
    agreed = row["agreement"]
    everywhere = row["everywhere"] or 0.0
    mark = f"(in the top ten of {everywhere:.0%} of all queries) "
    return {
        "mark": mark if everywhere >= MARK else "",
        "score": f"{row['score']:+.3g}",
        "share": f"{row['share']:.1%}",
        "members": "-" if agreed is None else f"{agreed} of {num_members}",
        "row": f"{row['row']}{file_place(row)}",
        "label": label_of(row),
    }


def table_row(cells: list[str], widths: list[int], text: str, width: int) -> list[str]:
    """Lines of one row: right-aligned cells, the label left-aligned, then the wrapped text."""
    padded = [cell.rjust(size) for cell, size in zip(cells[:-1], widths[:-1], strict=True)]
    start = "    " + "  ".join([*padded, cells[-1].ljust(widths[-1])]) + "  "
    left = width - len(start)
    if left < NARROWEST:  # the text below the numbers
        below = textwrap.wrap(text, max(width - 16, NARROWEST - 8))
        return [start.rstrip(), *(" " * 8 + line for line in below)]
    first, *rest = textwrap.wrap(text, left) or [""]
    return [(start + first).rstrip(), *(" " * len(start) + line for line in rest)]


# --- listings of rows ---------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """Form of the answers."""

    form: str  # one of listing.FORMATS
    top_k: int

    @property
    def rich(self) -> bool:
        """Whether predictions, margins and marks are shown."""
        return self.form != "plain"

    def progress(self):
        """Context that prints progress to standard error where JSON goes to standard output."""
        if self.form == "json":
            return contextlib.redirect_stdout(sys.stderr)
        return contextlib.nullcontext()


def view_of(form: str | None, top_k: int) -> View:
    """View in this form; by default columns on a terminal, and plain lines in a pipe."""
    return View(form or ("table" if sys.stdout.isatty() else "plain"), top_k)


def show_queries(context: Context, queries: list[Query], view: View) -> None:
    """Prints queries and the meaning of their scores."""
    for query in queries:
        show(explain(context, query, view.top_k), view.form)
    if view.form == "table":
        meaning = meaning_of_scores(context)
        print("\n" + textwrap.fill(meaning, max(terminal_width(), 40)))
