"""Verdicts on single predictions, as tables and sentences."""

import textwrap
from itertools import compress

import numpy as np

from attribution.evidence.arguments import MIN_SEEDS
from attribution.evidence.kept_verdicts import share_right
from attribution.files import printable
from attribution.show.listing import cut, indents, strong, width
from attribution.show.tables import aligned, with_interval

CHANGES = {False: "+.2f", True: "+.3f"}  # regression or not -> style of a change of the margin


def table_of(verdict: dict) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of the removals: the arm, the rows removed, the change of the margin as a
    replay predicted it, and as measured, the share of retrains that are right. Columns of which
    nothing is known are left out.
    """
    header = ["removed by", "rows", "predicted [95 %]", "measured [95 %]", "right in", "outcome"]
    style = CHANGES[verdict["regression"]]
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
                    with_interval(predicted[0], predicted[1], style) if predicted else "-",
                    with_interval(level["change"], level["interval"], style),
                    f"{right:.0%}" if outcome and right is not None else "-",
                    outcome or "-",
                ]
            )
    known = [any(cell != "-" for cell in column) for column in zip(*rows, strict=True)]
    return [*compress(header, known)], [[*compress(row, known)] for row in rows]


def deciding(verdict: dict) -> int:
    """Place of the removal that the sentence is about: the first that turned the prediction, else
    the last.
    """
    levels = verdict["arms"][verdict["score"]]
    turned = [i for i, one in enumerate(levels) if one["outcome"] in ("flipped", "mended")]
    return turned[0] if turned else len(levels) - 1


def other_way(level: dict, direction: str) -> bool:
    """Whether the margin moves against what the scores say: its 95 % interval is on that side of
    0. direction: of the scores whose rows are removed.
    """
    low, high = level["interval"] or [0.0, 0.0]
    return low > 0 if direction == "helpful" else high < 0


def word(verdict: dict) -> str:
    """The verdict in a few words; of fewer seeds than MIN_SEEDS it is a hint."""
    level = verdict["arms"][verdict["score"]][deciding(verdict)]
    hint = "a hint: " if len(verdict["seeds"]) < MIN_SEEDS else ""
    turned = ", the other way round" * other_way(level, verdict["direction"])
    return f"{hint}{level['word']}{turned}"


def sentence(verdict: dict) -> str:
    """The verdict in plain words: what retrains say without the score's rows, and without random
    rows.
    """
    place = deciding(verdict)
    levels, control = verdict["arms"].values()
    level, random = levels[place], control[place]
    count = level["removed"]
    helpful = verdict["direction"] == "helpful"
    target = "output" if verdict["target"] == "output" else "margin"
    what = "the label" if verdict["regression"] else printable(verdict["label"])
    pushed = f"pushed most {'towards' if helpful else 'away from'} {what}"
    if target == "output":
        pushed = f"{'raised' if helpful else 'lowered'} the output most"
    rows, these = (f"the {count} rows", "these rows") if count > 1 else ("the row", "this row")
    without = f"Without {rows} that, by the scores, {pushed}"
    style = CHANGES[verdict["regression"]]
    changed, changed_by_chance = (
        with_interval(one["change"], one["interval"], style) for one in (level, random)
    )
    change = (
        f"the {target} changes by {changed}, without as many random rows by {changed_by_chance}"
    )
    if level.get("difference_interval"):
        apart = with_interval(level["difference"], level["difference_interval"], style)
        change += f": seed by seed a difference of {apart}"
    change += "."
    if other_way(level, verdict["direction"]):
        way = "rises" if helpful else "falls"
        change += f" It is the other way round: without {these} the {target} {way} "
        change += f"by {abs(level['change']):{style[1:]}}."
    seeds = len(verdict["seeds"])
    if level["seeds"]:  # those that were seen would decide when to stop
        fresh = f"--retrain_seed {verdict['seeds'][-1] + 1} --num_retrain_seeds {level['seeds']}"
        change += f" Fresh seeds may tell: {fresh}."
    if verdict["regression"]:
        return f"{without}, {change}"
    shares = [level["right"], random["right"], share_right(np.array(verdict["right"], float))]
    gone, chance, everything = (
        "none that came to an end" if share is None else f"{share * seeds:.3g} of {seeds}"
        for share in shares
    )
    said = (
        f"{without}, {gone} retrains say {what}; without as many random rows {chance}, with all "
        f"rows {everything}. T{change[1:]}"
    )
    if of_the_seed(verdict, shares[2]):
        said += " With all rows most retrains say otherwise than the run: that may be its seed's."
    return said


def of_the_seed(verdict: dict, right: float | None) -> bool:
    """Whether fewer than half of the retrains on all rows say what the run said, as far as two
    classes tell: the label, or not the label. right: share of them that say the label.
    """
    said = verdict.get("said")  # not recorded in every stored verdict
    if said is None or right is None:
        return False
    return (right if said == verdict["label"] else 1 - right) < 0.5


def note(verdict: dict) -> str:
    """What stands behind the columns: which replay predicted, how many retrains measured."""
    by = verdict.get("predicted_by")  # not recorded in every stored verdict
    measured = f"Measured by {len(verdict['seeds'])} retrains."
    predicted = verdict["arms"][verdict["score"]][0]["predicted"]
    if predicted is None:
        return measured
    if predicted[1] is None:
        return (
            "Predicted by a replay in one checkpoint, which has no interval and may be far off. "
            f"{measured}"
        )
    if by is None:
        return f"Predicted by a replay. {measured}"
    return (
        f"Predicted by a replay in {by['checkpoints']} checkpoints ({by['scores']}): the interval "
        f"is how far they differ, not how far they err. {measured}"
    )


def text(verdict: dict) -> str:
    """A verdict for the screen."""
    number_of_query = "" if verdict["query"] is None else f" {verdict['query']}"
    texts = cut(" | ".join(verdict["texts"]))
    lines = [f"query{number_of_query} [{printable(verdict['label'])}]: {texts}"]
    lines += strong([f"  {word(verdict)}"])
    lines += textwrap.wrap(sentence(verdict), width(), **indents(2))
    lines.append(textwrap.indent(aligned(*table_of(verdict)), "  "))
    return "\n".join([*lines, *textwrap.wrap(note(verdict), width(), **indents(2))])
