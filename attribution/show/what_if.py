"""Answers to what-ifs as text.

Symbols: K members, R seeds, Q queries.
"""

import numpy as np

from attribution.data.dataset import GlueDataset
from attribution.evidence.stats import t_interval
from attribution.evidence.what_if import Edit
from attribution.show.listing import headline, row_line
from attribution.show.tables import with_interval
from attribution.show.verdicts import CHANGE

SHOWN = 10  # rows of a smallest set, with their texts


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
