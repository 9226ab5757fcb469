"""Answers to what-ifs as text.

Symbols: K members, R seeds, Q queries.
"""

import numpy as np

from attribution.data.dataset import GlueDataset
from attribution.evidence.stats import t_interval
from attribution.evidence.what_if import Edit, Smallest
from attribution.files import printable
from attribution.influence.settings import halves_commands
from attribution.show.listing import LIKE, headline, likeness_text, row_line, wrapped
from attribution.show.tables import with_interval
from attribution.show.verdicts import CHANGES
from attribution.training.run import Run

SHOWN = 10  # rows that are listed with their texts


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


def edit_lines(edit: Edit, train: GlueDataset) -> list[str]:
    """The changed rows, the first SHOWN of them, with their new labels."""
    changed = [*edit.removed, *edit.relabelled]
    after = train.relabelled(edit.labels(train))
    labels = {row: f" -> [{printable(after.label_name(row))}]" for row in edit.relabelled}
    return first_of([row_line(train, row) + labels.get(row, "") for row in changed])


def first_of(lines: list[str]) -> list[str]:
    """The first SHOWN of the lines, and how many more there are."""
    more = [f"    and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return lines[:SHOWN] + more


def change_line(found: dict[str, np.ndarray], place: int, how: str, label: str | None) -> str:
    """Margin of one query before and after, and how many models say its label.

    found: "margins" and "right", each (K or R, 2, Q). how: "replayed" or "measured". label: None of
    a regression.
    """
    before, after = found["margins"][:, :, place].T
    style = CHANGES[label is None]
    margins = f"{np.nanmean(before):{style}} -> {np.nanmean(after):{style}}"
    change = with_interval(*t_interval(after - before), style=style)
    line = f"  {how}: margin {margins}, change {change}"
    if label is None:
        return line
    was, becomes = (np.nanmean(one) for one in found["right"][:, :, place].T)
    models = "replays" if how == "replayed" else "retrains"
    return f"{line}; {was:.0%} of the {models} say {label} before, {becomes:.0%} after"


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
    train: GlueDataset,
    queries: GlueDataset,
    places: list[int],
    found: dict[str, dict[str, np.ndarray]],
    custom: bool = False,
) -> str:
    """Answer to a what-if for the screen.

    places: of the targets among the queries. found: "replayed", and "measured" where it was
    checked -> margins and correctness, see `change_line`. custom: whether the queries are the
    user's own.
    """
    regression = queries.task.regression
    kinds = {"replayed": "members", "measured": "retrains"}
    counts = {how: len(one["margins"]) for how, one in found.items()}
    intervals = [f"{count} {kinds[how]}" for how, count in counts.items() if count > 1]
    shown = f" (95 % intervals over {' and '.join(intervals)})" if intervals else ""
    lines = [f"with {edit_text(edit)}{shown}:", *edit_lines(edit, train)]
    for place in places:
        lines += ["", headline(queries, place, custom)]
        label = None if regression else printable(queries.label_name(place))
        for how, one in found.items():
            lines.append(change_line(one, place, how, label))
    if not custom:
        lines += ["", f"all {len(queries):,} validation rows"]
        lines += [whole_line(one, how, regression) for how, one in found.items()]
    models = "Replays and retrains" if "measured" in found else "Replays"
    note = f"{models} are other trainings than the run: compare before with after, not with it."
    if "measured" not in found and counts["replayed"] > 1:
        note += " Members may all fall short: --check retrains."
    return "\n".join([*lines, "", *wrapped(note)])


def doubt_text(run: Run, max_queries: int, members: int, likeness: float | None) -> str:
    """Doubts about a replay, and the commands that make a better one; empty without any.

    members: checkpoints of the replay. likeness: see `answer.Context`.
    """
    lines = []
    if likeness is not None and likeness < LIKE:
        lines += ["", *wrapped(likeness_text(likeness))]
    if members > 1:
        return "\n".join(lines)
    doubt = "This is a replay of one checkpoint: it gives no interval and may be far off."
    lines += ["", *wrapped(doubt)]
    if commands := halves_commands(run, max_queries):
        lines += wrapped("Members that are trained on halves of the rows do give one:")
        lines += [f"  {printable(command)}" for command in commands]
    return "\n".join(lines)


def smallest_text(
    title: str, label: str, train: GlueDataset, found: Smallest, command: str | None, right: bool
) -> str:
    """The smallest set of rows that turns a prediction, for the screen.

    title, label: of the query. command: of run_counterfactual.py about it, without its question;
    None where nothing can be retrained. right: whether the run says the label.
    """
    rows = found.rows
    before = f"{found.before} of {found.members} replays say {label} with all rows"
    if rows is None:
        stays = "even without the strongest half of the rows the prediction stays, says the replay"
        return f"{title}\n  {stays} ({before})"
    if not rows:
        run = f"the run {'does' if right else 'does not'}"
        said = f"{title}\n  {before}, {run}: the seed may decide, and no row has to go"
        if command is None:
            return said
        command += f"{'' if right else ' --direction harmful'} --removals 1"
        return f"{said}\n  what do retrains say? {printable(command)}"
    many = f"these {len(rows)} rows" if len(rows) > 1 else "this row"
    turns = f"  turns in replays without {many} ({before}, {found.after} without)"
    lines = [title, turns, *first_of([row_line(train, row) for row in rows])]
    if command is not None:
        command += f" --remove_rows {' '.join(map(str, rows))} --check"
        lines.append(f"  check it with: {printable(command)}")
    return "\n".join(lines)
