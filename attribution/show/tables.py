"""Results as tables: aligned text for the screen, Markdown for a page. Nothing is computed here."""

from attribution.evidence.flips import TURNED, differences
from attribution.evidence.wrong_labels import MEASURES


def aligned(header: list[str], rows: list[list[str]]) -> str:
    """Columns padded to their widest cell: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [row[0].ljust(widths[0])] + [
            cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(
        "| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]
    )


def with_interval(value: float | None, interval: list[float] | None, sign: bool = False) -> str:
    """`0.32 [0.30, 0.35]`, with a plus sign where a difference is shown; `-` where there is none."""
    if value is None or interval is None or value != value:
        return "-"
    style = "+.3f" if sign else ".3f"
    return f"{value:{style}} [{interval[0]:{style}}, {interval[1]:{style}}]"


def two_digits(value: float, interval: list[float]) -> str:
    """`0.32 [0.30, 0.35]`."""
    return f"{value:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"


def share_of(part: dict) -> str:
    """`58 % [52, 63]`, what a score reaches of the noise ceiling; `-` where that is not known."""
    if "share" not in part or part["share"] != part["share"]:
        return "-"
    low, high = part["share_interval"]
    return f"{100 * part['share']:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def members_markdown(result: dict) -> str:
    """One line a set of checkpoints: LDS of the mean that the scripts take, beside it those of
    other means.

    What each set adds is against the first line, one checkpoint; another score also against the
    same members under the first score.
    """
    first, *others = dict.fromkeys(row["mean"] for row in result["rows"])
    keys = ("kind", "score", "checkpoints", "members", "mean")
    found = {tuple(row[key] for key in keys): row for row in result["rows"]}
    rows, more = [], any("against_first" in row for row in result["rows"])
    for kind, *which, mean in found:
        if (kind, mean) == ("plain", first):
            cells = list(map(str, which))
            for one in (found["plain", *which, mean], found["balanced", *which, mean]):
                cells.append(with_interval(one["lds"], one["interval"]))
                cells.append(
                    with_interval(one["difference"], one["difference_interval"], sign=True)
                )
            beside = [found.get(("plain", *which, name)) for name in others]
            cells += ["-" if other is None else f"{other['lds']:.3f}" for other in beside]
            entry = found["plain", *which, mean]
            if more:
                against = entry.get("against_first"), entry.get("against_first_interval")
                cells.append("-" if against[0] is None else with_interval(*against, sign=True))
            spread, singles = entry["deviations"], entry.get("singles", [])
            rows.append(
                [
                    *cells,
                    f"{min(spread):.2g} to {max(spread):.2g}",
                    ", ".join(f"{one:.2f}" for one in singles) or "-",
                ]
            )
    shown = {
        kind: "-" if value is None else f"{value:.3f}" for kind, value in result["ceiling"].items()
    }
    rows.append(
        [
            "noise ceiling",
            "-",
            "-",
            shown["plain"],
            "-",
            shown["balanced"],
            *["-"] * (len(others) + 3 + more),
        ]
    )
    header = [
        "score",
        "checkpoints",
        "members",
        "LDS [95 %]",
        "minus the first line",
        "class balance controlled",
    ]
    header += ["minus the first line", *(f"{name} mean" for name in others)]
    header += [f"minus the same members' {result['scores'][0]}"] * more
    header += ["standard deviation of the scores", "LDS of each alone"]
    note = (
        f"{result['dataset']}: {result['masks']} masks x {result['repeats']} repeats, "
        f"{result['queries']} queries from row {result['first_query']} on. Used for tuning only."
    )
    return markdown(header, rows) + "\n\n" + note


def additive_markdown(result: dict) -> str:
    """How much of the signal is a sum over rows, and how scores agree with that part."""
    share, scores = result["additive"], result["scores"].items()
    rows = [
        [name, with_interval(one["lds"], one["interval"]), share_of(one)]
        for name, one in sorted(scores, key=lambda item: -item[1]["lds"])
    ]
    rows.append(["noise ceiling of the odd part", f"{result['ceiling']:.3f}", "-"])
    low, high = result["interval"]
    bounds = [min(max(value, 0), 1) ** 0.5 for value in (share, low, high)]
    note = (
        f"{result['dataset']}: {result['masks']} masks and their complements x {result['repeats']} "
        f"repeats, {result['queries']} queries from row {result['first_query']} on. Odd part of "
        f"the signal: {share:.0%} [{low:.0%}, {high:.0%}]; so a sum over rows can correlate with "
        f"the signal up to {bounds[0]:.2f} [{bounds[1]:.2f}, {bounds[2]:.2f}]. Noise ceiling of "
        f"the margins themselves: {result['ceiling of margins']:.3f}."
    )
    return (
        markdown(["score", "LDS with the odd part [95 %]", "share of its ceiling [95 %]"], rows)
        + "\n\n"
        + note
    )


def counterfactual_parts(result: dict) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, header, rows) of the tables of a counterfactual result. Before the first removal,
    arms do not differ.
    """
    arms = {name: result["curves"][name] for name in result["strategies"]}
    pairs = {
        f"{name} minus {other}": values for (name, other), values in differences(result).items()
    }
    turned = TURNED[result.get("direction", "helpful")]
    wanted = [
        (f"share of {turned} targets [95 %, Wilson]", arms, turned, False, 0),
        ("mean margin change [95 %, bootstrap over targets]", arms, "margin_change", True, 0),
        (f"share {turned}, difference [95 %, paired bootstrap]", pairs, turned, True, 1),
        ("margin change, difference [95 %, paired bootstrap]", pairs, "margin_change", True, 1),
    ]
    parts = []
    for title, found, key, sign, first in wanted:
        rows = []
        for name, values in found.items():
            cells = list(zip(values[key], values[f"{key}_interval"], strict=True))
            rows.append([name, *(with_interval(*cell, sign) for cell in cells[first:])])
        if rows:
            parts.append((title, ["rows removed", *map(str, result["removals"][first:])], rows))
    return parts


def counterfactual_notes(result: dict) -> str:
    """What the reader must know beside the tables."""
    direction = result.get("direction", "helpful")
    turned, right = TURNED[direction], {"helpful": "correctly", "harmful": "wrongly"}[direction]
    carried = "every target is retrained at every removal"
    if result["carry_forward"]:
        carried = f"a {turned} target stays {turned} and keeps its last margin"
    diverged = result.get("diverged", 0)
    lost = f" {diverged} retrains diverged and do not count." if diverged else ""
    return (
        f"{result['dataset']}: {len(result['targets'])} targets, classified {right} by all "
        f"{len(result['base_seeds'])} base seeds (accuracy {result['base_accuracy']:.3f}) among "
        f"the first {result['sought']} validation rows; {result['rows']:,} training rows, "
        f"{len(result['retrain_seeds'])} retrains a removal, {carried}.{lost}"
    )


def counterfactual_text(result: dict) -> str:
    """The tables of a counterfactual result with aligned columns, and their note."""
    parts = [
        f"{title}\n{aligned(header, rows)}" for title, header, rows in counterfactual_parts(result)
    ]
    return "\n\n".join([*parts, counterfactual_notes(result)])


def counterfactual_markdown(result: dict) -> str:
    """The same in Markdown."""
    parts = [
        f"{title}:\n\n{markdown(header, rows)}"
        for title, header, rows in counterfactual_parts(result)
    ]
    return "\n\n".join([*parts, counterfactual_notes(result)])


def wrong_label_rows(result: dict[str, dict]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of rankings that look for wrong labels, the best first."""
    rows = [
        [
            name,
            *(
                with_interval(entry[measure]["value"], entry[measure]["interval"])
                for measure in MEASURES
            ),
        ]
        for name, entry in sorted(result.items(), key=lambda item: -item[1]["auroc"]["value"])
    ]
    return ["ranking", *("AUROC" if measure == "auroc" else measure for measure in MEASURES)], rows


def wrong_labels_text(result: dict[str, dict]) -> str:
    """The table of who finds wrong labels with aligned columns."""
    return aligned(*wrong_label_rows(result))


def wrong_labels_markdown(result: dict) -> str:
    """The same in Markdown, with its note."""
    kept = {key: value for key, value in result["metrics"].items() if key not in ("loss", "margin")}
    metrics = ", ".join(f"{key.replace('_', ' ')} {value:.3f}" for key, value in kept.items())
    note = (
        f"{result['dataset']}: {result['wrong']} of {result['rows']:,} training labels are wrong. "
        f"Validation: {metrics}. Recall at 5% is the share of the wrong rows that are among the "
        "first 5% of all rows."
    )
    return markdown(*wrong_label_rows(result["rankings"])) + "\n\n" + note
