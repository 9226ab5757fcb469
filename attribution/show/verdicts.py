"""Verdicts on single predictions, and answers to what-ifs, as tables and sentences.

Symbols: K members, R seeds, Q queries.
"""

import textwrap

import numpy as np

from attribution.data.dataset import GlueDataset
from attribution.evidence.arguments import MIN_SEEDS
from attribution.evidence.stats import t_interval
from attribution.evidence.verdict import share_right
from attribution.evidence.what_if import Edit
from attribution.files import printable
from attribution.show.listing import headline, indents, row_line, strong, width
from attribution.show.tables import aligned, with_interval

CHANGE = "+.2f"  # style of a change of the margin
SHOWN = 10  # rows of a smallest set, with their texts
# The arm, rows removed, change of the margin as predicted and as measured, share of right retrains.
HEADER = ["removed by", "rows", "predicted [95 %]", "measured [95 %]", "right", "the prediction"]


def lines_of(verdict: dict) -> list[list[str]]:
    """Rows of a table with the columns of HEADER."""
    rows = []
    for name, levels in verdict["arms"].items():
        for level in levels:
            predicted = level["predicted"]
            outcome = level["outcome"]
            right = level["right"]
            rows.append(
                [
                    printable(name),
                    str(level["removed"]),
                    with_interval(predicted[0], predicted[1], CHANGE) if predicted else "-",
                    with_interval(level["change"], level["interval"], CHANGE),
                    f"{right:.0%}" if outcome and right is not None else "-",
                    outcome or "-",
                ]
            )
    return rows


def deciding(verdict: dict) -> int:
    """Place of the removal that the sentence is about: the first that turned the prediction, else
    the last.
    """
    levels = verdict["arms"][verdict["score"]]
    turned = [i for i, one in enumerate(levels) if one["outcome"] in ("flipped", "mended")]
    return turned[0] if turned else len(levels) - 1


def word(verdict: dict) -> str:
    """The verdict in a word; of fewer seeds than MIN_SEEDS it is a hint."""
    level = verdict["arms"][verdict["score"]][deciding(verdict)]
    hint = "a hint: " if len(verdict["seeds"]) < MIN_SEEDS else ""
    more = f" (take {level['seeds']} seeds)" if level["seeds"] else ""
    return f"{hint}{level['word']}{more}"


def sentence(verdict: dict) -> str:
    """The verdict in plain words: what retrains say without the score's rows, and without random
    rows.
    """
    place = deciding(verdict)
    levels, control = verdict["arms"].values()
    level, random = levels[place], control[place]
    count = level["removed"]
    way = "for" if verdict["direction"] == "helpful" else "against"
    target = "output" if verdict["target"] == "output" else "margin"
    what = printable(verdict["label"]) if not verdict["regression"] else f"the {verdict['target']}"
    rows = f"the {count} rows" if count > 1 else "the row"
    without = f"Without {rows} that spoke most {way} {what}"
    changed, changed_by_chance = (
        with_interval(one["change"], one["interval"], CHANGE) for one in (level, random)
    )
    change = (
        f"the {target} changes by {changed}, without as many random rows by {changed_by_chance}."
    )
    if verdict["regression"]:
        return f"{without}, {change}"
    seeds = len(verdict["seeds"])
    shares = [level["right"], random["right"], share_right(np.array(verdict["right"], float))]
    gone, chance, everything = (
        "none that came to an end" if share is None else f"{share * seeds:.3g} of {seeds}"
        for share in shares
    )
    return (
        f"{without}, {gone} retrains say {what}; without as many random rows {chance}, with all "
        f"rows {everything}. T{change[1:]}"
    )


def text(verdict: dict) -> str:
    """A verdict for the screen."""
    number_of_query = "" if verdict["query"] is None else f" {verdict['query']}"
    texts = printable(" | ".join(verdict["texts"]))
    lines = [f"query{number_of_query} [{printable(verdict['label'])}]: {texts}"]
    lines += strong([f"  {word(verdict)}"])
    lines += textwrap.wrap(sentence(verdict), width(), **indents(2))
    return "\n".join([*lines, textwrap.indent(aligned(HEADER, lines_of(verdict)), "  ")])


# --- what if --------------------------------------------------------------------------------------


def edit_text(edit: Edit) -> str:
    """The change of the rows in a few words."""
    parts = [
        f"{count:,} {'row' if count == 1 else 'rows'} {what}"
        for count, what in (
            (len(edit.removed), "removed"),
            (len(edit.relabelled), "with another label"),
        )
        if count
    ]
    return " and ".join(parts)


def change_line(found: dict[str, np.ndarray], place: int, how: str, regression: bool) -> str:
    """Margin and correctness of one query before and after.

    found: "margins" and "right", each (K or R, 2, Q). how: "replayed" or "measured".
    """
    before, after = found["margins"][:, :, place].T
    margins = f"{np.nanmean(before):+.2f} -> {np.nanmean(after):+.2f}"
    change = with_interval(*t_interval(after - before), style=CHANGE)
    line = f"  {how}: margin {margins}, change {change}"
    if regression:
        return line
    was, becomes = (np.nanmean(one) for one in found["right"][:, :, place].T)
    models = "members" if how == "replayed" else "retrains"
    return f"{line}; right in {was:.0%} of the {models} before, {becomes:.0%} after"


def whole_line(found: dict[str, np.ndarray], how: str, regression: bool) -> str:
    """Accuracy (of a regression: mean squared error) of all queries before and after."""
    what, values = "accuracy", found["right"]
    if regression:
        what, values = "mean squared error", -found["margins"]
    before, after = values.mean(2).T
    change = with_interval(*t_interval(after - before), style="+.4f")
    return f"  {how}: {what} {np.nanmean(before):.3f} -> {np.nanmean(after):.3f}, change {change}"


def what_if_text(
    edit: Edit,
    queries: GlueDataset,
    places: list[int],
    found: dict[str, dict[str, np.ndarray]],
) -> str:
    """Answer to a what-if for the screen.

    places: of the targets among the queries. found: "replayed", and "measured" where it was
    checked -> margins and correctness, see `change_line`.
    """
    regression = queries.task.regression
    lines = [f"with {edit_text(edit)} (95 % intervals over members, or over seeds):"]
    for place in places:
        lines += ["", headline(queries, place)]
        for how, one in found.items():
            lines.append(change_line(one, place, how, regression))
    lines += ["", f"all {len(queries):,} validation rows"]
    lines += [whole_line(one, how, regression) for how, one in found.items()]
    return "\n".join(lines)


def smallest_text(
    queries: GlueDataset, train: GlueDataset, place: int, rows: list[int] | None
) -> str:
    """The smallest set of rows that turns a prediction, for the screen; None: there is none."""
    if rows is None:
        return f"{headline(queries, place)}\n  no half of the rows turns it in a replay"
    many = f"these {len(rows)} rows" if len(rows) > 1 else "this row"
    shown = [row_line(train, row) for row in rows[:SHOWN]]
    more = [f"    and {len(rows) - SHOWN} more"] if len(rows) > SHOWN else []
    check = f"  check it with: --remove_rows {' '.join(map(str, rows))} --check"
    return "\n".join(
        [headline(queries, place), f"  turns in a replay without {many}:", *shown, *more, check]
    )
