"""Verdicts on single predictions, and answers to what-ifs, as tables and sentences.

Symbols: K members, R seeds, Q queries.
"""

import textwrap

import numpy as np

from attribution.data.dataset import GlueDataset
from attribution.evidence.stats import t_interval
from attribution.evidence.what_if import Edit
from attribution.files import printable
from attribution.show.listing import Context, describe_row, heading, headline, plain_row
from attribution.show.tables import aligned

SHOWN = 10  # rows of a smallest set, with their texts
# The arm, rows removed, change of the margin as predicted and as measured, share of right retrains.
HEADER = ["removed by", "rows", "predicted [95 %]", "measured [95 %]", "right", "the prediction"]


def number(value: float | None, interval=None) -> str:
    """`-1.20 [-2.00, -0.40]`; "-" where there is none."""
    if value is None or value != value:
        return "-"
    return f"{value:+.2f}" + (f" [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else "")


def counted(right: list[float | None], models: str) -> str:
    """`4 of 5 base seeds`, those that diverged (None) left out, which is said."""
    there = [one for one in right if one is not None]
    left_out = f" ({len(right) - len(there)} diverged)" if len(there) < len(right) else ""
    return f"{sum(there):.0f} of {len(there)} {models}{left_out}"


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
                    number(*predicted) if predicted else "-",
                    number(level["change"], level["interval"]),
                    f"{right:.0%}" if outcome and right is not None else "-",
                    outcome or "-",
                ]
            )
    return rows


def sentence(verdict: dict) -> str:
    """The verdict in one sentence: changes without the score's rows and without random rows."""
    arms = dict(verdict["arms"])
    levels = arms.pop(verdict["score"])
    ((name, control),) = arms.items()
    changed = [level for level in levels if level["outcome"] in ("flipped", "mended")]
    last = changed[0] if changed else levels[-1]
    became = f"the prediction {'is ' + last['outcome'] if changed else 'stays as it is'}, and "
    (random,) = [level for level in control if level["removed"] == last["removed"]]
    return (
        f"Without its {last['removed']} most {verdict['direction']} rows "
        f"{'' if verdict['regression'] else became}the "
        f"{'output' if verdict['target'] == 'output' else 'margin'} "
        f"changes by {number(last['change'], last['interval'])}; without as many random rows of "
        f"the same {name.removeprefix('random, same ')} by "
        f"{number(random['change'], random['interval'])} ({len(verdict['seeds'])} seeds)."
    )


def text(verdict: dict) -> str:
    """A verdict for the screen."""
    shown = {"probability": None, "prediction": None} | verdict
    lines = [heading(shown)]
    if not verdict["regression"]:
        lines.append(
            f"  with nothing removed {counted(verdict['base_right'], 'base seeds')} and "
            f"{counted(verdict['right'], 'retrains')} get it right"
        )
    table = aligned(HEADER, lines_of(verdict))
    return "\n".join([*lines, textwrap.indent(table, "  "), "  " + sentence(verdict)])


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
    line = f"  {how}: margin {margins}, change {number(*t_interval(after - before))}"
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
    mean, interval = t_interval(after - before)
    spread = f" [{interval[0]:+.4f}, {interval[1]:+.4f}]" if interval else ""
    return (
        f"  {how}: {what} {np.nanmean(before):.3f} -> {np.nanmean(after):.3f}, change "
        f"{mean:+.4f}{spread}"
    )


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
    shown = [plain_row(describe_row(Context(train), row)) for row in rows[:SHOWN]]
    more = [f"    and {len(rows) - SHOWN} more"] if len(rows) > SHOWN else []
    check = f"  check it with: --remove_rows {' '.join(map(str, rows))} --check"
    return "\n".join(
        [headline(queries, place), f"  turns in a replay without {many}:", *shown, *more, check]
    )
