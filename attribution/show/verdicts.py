"""Verdicts on single predictions as tables and sentences."""

import textwrap

from attribution.files import printable
from attribution.show.listing import heading
from attribution.show.tables import aligned


def number(value: float | None, interval=None) -> str:
    """`-1.20 [-2.00, -0.40]`; "-" where there is none."""
    if value is None or value != value:
        return "-"
    return f"{value:+.2f}" + (f" [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else "")


def lines_of(verdict: dict) -> list[list[str]]:
    """Rows of a table: arm, rows removed, predicted change of the margin, measured change, right,
    what became of it.
    """
    rows = []
    for name, levels in verdict["arms"].items():
        for level in levels:
            predicted = level["predicted"]
            rows.append(
                [
                    printable(name),
                    str(level["removed"]),
                    "-" if predicted is None else number(predicted[0], predicted[1:]),
                    number(level["change"], level["interval"]),
                    "-"
                    if level["outcome"] is None or level["right"] is None
                    else f"{level['right']:.0%}",
                    level["outcome"] or "-",
                ]
            )
    return rows


HEADER = ["removed by", "rows", "predicted [95 %]", "measured [95 %]", "right", "the prediction"]


def sentence(verdict: dict) -> str:
    """What the verdict says, in a sentence."""
    own = verdict["arms"][verdict["score"]]
    ((name, control),) = [item for item in verdict["arms"].items() if item[0] != verdict["score"]]
    turned = [level for level in own if level["outcome"] in ("flipped", "mended")]
    last = turned[0] if turned else own[-1]
    became = f"the prediction {'is ' + last['outcome'] if turned else 'stays as it is'}, and "
    became = "" if verdict["regression"] else became
    what, groups = (
        "output" if verdict["target"] == "output" else "margin",
        name.removeprefix("random, same "),
    )
    (random,) = [level for level in control if level["removed"] == last["removed"]]
    return (
        f"Without its {last['removed']} most {verdict['direction']} rows {became}the {what} "
        f"changes by {number(last['change'], last['interval'])}; without as many random rows of "
        f"the same {groups} by {number(random['change'], random['interval'])} "
        f"({len(verdict['seeds'])} seeds)."
    )


def text(verdict: dict) -> str:
    """A verdict for the screen."""
    shown = {"probability": None, "prediction": None} | verdict
    right, asked = verdict["base_right"]
    lines = [heading(shown)]
    if not verdict["regression"]:
        lines.append(
            f"  with nothing removed {right} of {asked} base seeds and "
            f"{sum(filter(None, verdict['right']))} of {len(verdict['seeds'])} retrains get it "
            "right"
        )
    table = aligned(HEADER, lines_of(verdict))
    return "\n".join([*lines, textwrap.indent(table, "  "), "  " + sentence(verdict)])
