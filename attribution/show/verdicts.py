"""Verdicts on single predictions as tables and sentences."""

import textwrap

from attribution.files import printable
from attribution.show.listing import heading
from attribution.show.tables import aligned

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
                    number(predicted[0], predicted[1:]) if predicted else "-",
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
