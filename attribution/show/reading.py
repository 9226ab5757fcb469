"""Prints what scores say: the training rows that shaped a prediction, with their text.

`queries` and `train` are data sets that offer `text(row)`, `label_name(row)`, a length, and the
`table` of their columns. One query is also shown as `explain` returns it: plain lines for pipes,
aligned and wrapped columns for people, JSON. Texts go through `printable`: nothing in them steers
the terminal.
"""

import json
import shutil
import sys
import textwrap

import numpy as np
import torch

from attribution.evidence import stats, wrong_labels
from attribution.evidence.counterfactual import Arm
from attribution.evidence.lds import REFERENCE, usable_masks
from attribution.files import Refused, printable
from attribution.show import tables
from attribution.show.explain import MARK

FORMATS = ("plain", "table", "json")
COLUMNS = ("score", "share", "margin [95 %]", "members", "row", "label")
NARROWEST = 20  # columns of text


def check_index(queries, index: int, flag: str = "--query_index") -> None:
    """Raises Refused for a query number that there is not. flag: the argument that named it."""
    if not 0 <= index < len(queries):
        raise Refused(f"{flag} must be from 0 to {len(queries) - 1}, not {index}")


def show_query(queries, train, scores: torch.Tensor, index: int, top_k: int) -> None:
    """Prints a query and its most helpful and most harmful training rows."""
    check_index(queries, index)
    print(f"\n{headline(queries, index)}")
    order = torch.argsort(scores[index], descending=True, stable=True).tolist()
    for title, rows in (("most helpful", order[:top_k]), ("most harmful", order[::-1][:top_k])):
        print(f"  {title}:")
        for row in rows:
            print(describe(train, row, scores[index, row].item()))


def headline(queries, index: int) -> str:
    """A query as it is shown: number, label, text."""
    return (
        f"query {index} [{printable(queries.label_name(index))}]: {printable(queries.text(index))}"
    )


def describe(train, row: int, score: float | None = None) -> str:
    """One training row as it is shown: score (if any), number, label, text, and on the demo whether
    it was flipped.
    """
    flipped = "flipped" in train.table.column_names and train.table[row]["flipped"]
    shown = "" if score is None else f"{score:+12.4g}  "
    label = printable(train.label_name(row))
    label = f"[{label}{', flipped' if flipped else ''}]"
    return f"    {shown}row {row:>6}{place_of(train.file_row(row))} {label} {printable(train.text(row))}"


def show_self_influence(
    train, scores: torch.Tensor, top_k: int, losses: np.ndarray | None = None
) -> None:
    """Prints the rows with the highest self-influence and, where the truth is recorded, how many
    wrong labels it finds.

    losses: of the rows (N,), the ranking that is compared with it.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    print("\nhighest self-influence:")
    for row in order[:top_k].tolist():
        print(describe(train, row, scores[row].item()))
    if "flipped" in train.table.column_names:
        flipped = np.array(train.table["flipped"])
        top = min(50, len(flipped))
        expected = top * flipped.mean()
        found = flipped[order[:top].numpy()].sum()
        print(
            f"  {found} of the top {top} rows by self-influence are planted flips; chance gives "
            f"{expected:.1f}"
        )
    if (wrong := wrong_labels.truth_of(train)) is not None and losses is not None:
        print(
            f"\nwho finds the {wrong.sum():,} wrong labels of {len(wrong):,} rows (95 % intervals "
            "over rows):"
        )
        rankings = {"self-influence": scores.numpy(), "loss of the row": losses}
        print(
            tables.wrong_labels_text(
                {name: wrong_labels.found(one, wrong) for name, one in rankings.items()}
            )
        )


def show_query_lds(
    queries,
    train,
    scores: dict[str, np.ndarray],
    index: int,
    masks: np.ndarray,
    margins: np.ndarray,
) -> None:
    """Prints a query, its top influential row, and how well stored scores predict its margins.

    scores: name -> (Q, N); ekfac's are taken, else the first. masks (M, N), margins (M, R, Q).
    """
    check_index(queries, index)
    name = REFERENCE if REFERENCE in scores else next(iter(scores), None)
    if name is None:
        raise Refused("no stored scores; make them with analyze.py")
    whole = usable_masks(margins)
    masks, margins = masks[whole], margins[whole]
    agreed = stats.agreement(scores[name], masks, stats.make_truth(stats.mean_margins(margins)))
    top = int(np.argmax(scores[name][index]))
    print(f"{headline(queries, index)}\n  most influential by {name}:")
    print(describe(train, top, float(scores[name][index, top])))
    print(
        f"  LDS of {name} for this query: {agreed.per_query[index]:.3f} "
        f"({len(masks)} masks; mean over queries {agreed.mean:.3f})"
    )


def show_removed(queries, train, arms: dict[str, Arm], index: int, count: int) -> None:
    """Prints the first `count` rows that each arm would remove for one query."""
    check_index(queries, index)
    print(headline(queries, index))
    for name, arm in arms.items():
        print(f"  {name} removes, in this order:")
        for row in arm(index)[0][:count]:
            print(describe(train, int(row)))


# --- one query, as `explain` returns it -----------------------------------------------------------


def default_format() -> str:
    """Columns on a terminal; plain lines, of the same form always, where the output is piped."""
    return "table" if sys.stdout.isatty() else "plain"


def show(explained: dict, form: str, width: int | None = None) -> None:
    """Prints what `explain` returned. form: one of FORMATS. width: of the terminal (its own)."""
    if form == "json":
        print(json.dumps(explained))
    elif form == "plain":
        print("\n".join(plain(explained)))
    else:
        print("\n".join(table(explained, width or shutil.get_terminal_size().columns)))


def text_of(texts: list[str]) -> str:
    """Text columns on one line, joined by ' | '."""
    return printable(" | ".join(texts))


def heading(explained: dict) -> str:
    """A query as it is shown: number, label, text; of a predicted label also its probability."""
    number, label = explained["query"], printable(explained["label"])
    if explained["target"] == "predicted" and explained["probability"] is not None:
        label += f", predicted with probability {explained['probability']:.2f}"
    elif explained["target"] == "output":
        label = f"output {explained['prediction']}" if explained["prediction"] else "output"
    return f"query{'' if number is None else f' {number}'} [{label}]: {text_of(explained['texts'])}"


def titles(explained: dict) -> dict[str, str]:
    """What the two sides are called: of a regression's output rows raise it or lower it."""
    if explained["target"] == "output":
        return {"helpful": "raise the output most", "harmful": "lower the output most"}
    return {"helpful": "most helpful", "harmful": "most harmful"}


def label_of(row: dict) -> str:
    """A row's label, and on the demo whether it was flipped."""
    return printable(row["label"]) + (", flipped" if row["flipped"] else "")


def plain(explained: dict) -> list[str]:
    """One line a row, as in the README."""
    lines = ["", heading(explained)]
    for side, title in titles(explained).items():
        lines.append(f"  {title}:")
        for row in explained[side]:
            agreed = (
                "" if row["agreement"] is None else f"{row['agreement']}/{explained['members']} "
            )
            score, number = (
                f"{row['score']:+12.4g}",
                f"row {row['row']:>6}{place_of(row['file_row'])}",
            )
            lines.append(f"    {score}  {agreed}{number} [{label_of(row)}] {text_of(row['texts'])}")
    return lines


def table(explained: dict, width: int) -> list[str]:
    """Columns of equal width, texts wrapped to the terminal's; where it is narrow, the less
    important columns go.
    """
    lines = ["", *textwrap.wrap(heading(explained), max(width, 40))]
    sides = {
        side: [cells_of(row, explained) for row in explained[side]] for side in titles(explained)
    }
    columns, widths = fitting([line for cells in sides.values() for line in cells], width)
    for side, title in titles(explained).items():
        lines.append(f"  {title}:")
        lines += join(columns, widths, "text", width)
        for line, row in zip(sides[side], explained[side], strict=True):
            lines += join(
                [line[name] for name in columns], widths, mark(row) + text_of(row["texts"]), width
            )
    return lines


def fitting(cells: list[dict[str, str]], width: int) -> tuple[list[str], list[int]]:
    """(columns, their widths) that leave room for the text, as far as dropping columns can make it."""
    columns = [name for name in COLUMNS if any(line[name] != "-" for line in cells)]
    for dropped in ("share", "members", "margin [95 %]", ""):
        widths = [max(len(line[name]) for line in [{name: name}, *cells]) for name in columns]
        if width - sum(widths) - 2 * len(widths) - 4 >= NARROWEST:
            break
        columns = [name for name in columns if name != dropped]
    return columns, widths


def cells_of(row: dict, explained: dict) -> dict[str, str]:
    """The columns of one row, its text left out; "-" where there is nothing to say."""
    margin, agreed = row["margin"], row["agreement"]
    return {
        "score": f"{row['score']:+.3g}",
        "share": f"{row['share']:.1%}",
        "margin [95 %]": "-" if margin is None else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*margin),
        "members": "-" if agreed is None else f"{agreed} of {explained['members']}",
        "row": f"{row['row']}{place_of(row['file_row'])}",
        "label": label_of(row),
    }


def place_of(file_row: int | None) -> str:
    """` (row 42 of the file)`, where the file numbers its rows otherwise."""
    return "" if file_row is None else f" (row {file_row} of the file)"


def mark(row: dict) -> str:
    """What is said in front of a row that ranks high whatever is asked."""
    share = row["everywhere"]
    return (
        "" if share is None or share < MARK else f"(in the top ten of {share:.0%} of all queries) "
    )


def join(cells: list[str], widths: list[int], text: str, width: int) -> list[str]:
    """One row's lines: cells to the right, the label to the left, the text wrapped in what is left
    of the width.
    """
    padded = [cell.rjust(size) for cell, size in zip(cells[:-1], widths[:-1], strict=True)]
    start = "    " + "  ".join([*padded, cells[-1].ljust(widths[-1])]) + "  "
    left = width - len(start)
    if left < NARROWEST:  # the text below the numbers
        return [
            start.rstrip(),
            *textwrap.wrap(
                text, max(width - 8, NARROWEST), initial_indent=" " * 8, subsequent_indent=" " * 8
            ),
        ]
    wrapped = textwrap.wrap(text, left) or [""]
    return [(start + wrapped[0]).rstrip(), *(" " * len(start) + line for line in wrapped[1:])]


def wrapped(sentences: list[str], width: int | None = None) -> list[str]:
    """Sentences cut to the width of the terminal."""
    size = max(width or shutil.get_terminal_size().columns, 40)
    return [line for sentence in sentences for line in textwrap.wrap(sentence, size)]
