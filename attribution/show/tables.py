"""Results as tables: aligned text for the screen, Markdown for a page. Nothing is computed here."""

import numpy as np

from attribution.evidence.arguments import OVERLAP, TURNED

KINDS = {
    "plain": "LDS [95 %]",
    "balanced": "class balance controlled",
    "output": "LDS of the output",
}
ASIDES = {
    "rows_at_top": "rows in all top 10s",
    "spearman_with_ekfac": "Spearman with ekfac",
    "seconds": "seconds",
}


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


def with_interval(value: float | None, interval=None, style: str = ".3f") -> str:
    """`0.320 [0.300, 0.350]`, numbers in this style; without an interval the value alone; `-` for
    a missing or undefined value.
    """
    if value is None or value != value:
        return "-"
    low_to_high = f" [{interval[0]:{style}}, {interval[1]:{style}}]" if interval else ""
    return f"{value:{style}}{low_to_high}"


def share_of(part: dict) -> str:
    """`58 % [52, 63]`, the share of the noise ceiling that a score reaches; `-` if unknown."""
    if "share" not in part or part["share"] != part["share"]:
        return "-"
    low, high = part["share_interval"]
    return f"{100 * part['share']:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


# --- LDS ------------------------------------------------------------------------------------------


def lds_rows(result: dict, every: bool = True) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of an LDS result, best first. Values that no score has get no column.

    every: all columns, not only the LDS, its share of the ceiling, and seconds.
    """
    kinds = [kind for kind in KINDS if kind in result["ceiling"]]  # JSON sorts its keys
    titles = KINDS | ({"balanced": "label sum controlled"} if "output" in kinds else {})
    entries = result["scores"]
    shares = any("share" in entry["plain"] for entry in entries.values())
    asides = [key for key in ASIDES if any(entry.get(key) for entry in entries.values())]
    if not every:
        kinds = [kind for kind in kinds if kind != "balanced"]
        asides = [key for key in asides if key == "seconds"]
    header = ["score"]
    ceiling = ["noise ceiling"]
    for kind in kinds:
        header += [titles[kind], *["minus ekfac [95 %]"] * every]
        header += ["share of ceiling [95 %]"] * shares
        value = result["ceiling"][kind]
        shown = with_interval(value, result["ceiling_interval"][kind])
        ceiling.append("needs repeats" if value is None else shown)
        ceiling += ["-"] * (every + shares)
    rows = []
    for name, entry in sorted(entries.items(), key=lambda item: -item[1]["plain"]["lds"]):
        row = [name]
        for kind in kinds:
            part = entry[kind]
            difference = with_interval(
                part.get("difference"), part.get("difference_interval"), "+.3f"
            )
            row += [with_interval(part["lds"], part["interval"]), *[difference] * every]
            row += [share_of(part)] * shares
        for key in asides:  # counts as they are, correlations with three digits
            value = entry.get(key)
            style = ",d" if isinstance(value, int) else ".3f"
            row.append("-" if value is None else f"{value:{style}}")
        rows.append(row)
    rows.append([*ceiling, *["-"] * len(asides)])
    return [*header, *(ASIDES[key] for key in asides)], rows


def lds_notes(result: dict) -> str:
    """Notes to the table of an LDS result: its size, its chance level, and its weaknesses."""
    notes = [
        "{dataset}: {masks} masks x {repeats} repeats, {rows:,} rows of which {alpha:.0%} are "
        "kept, drawn at random; {queries} queries.".format(**result)
    ]
    metrics: dict = next(iter(result["evaluation"].values()), {})
    if "accuracy" in metrics and result["retrained_accuracy"] is not None:
        notes.append(
            "Validation accuracy {accuracy:.3f}; of retrains, on these queries, "
            "{retrained_accuracy:.3f}.".format(**result | metrics)
        )
    if "pearson" in metrics and result.get("retrained_pearson") is not None:
        notes.append(
            "Validation Pearson {pearson:.3f}, Spearman {spearmanr:.3f}; Pearson of retrains, on "
            "these queries, {retrained_pearson:.3f}.".format(**result | metrics)
        )
    chance = "Chance (masks permuted) stays within +-{plain:.3f}"
    if result["chance"].get("output"):
        chance += ", of the output within +-{output:.3f}"
    notes.append(chance.format(**result["chance"]) + ".")
    for kind, found in result.get("agreement", {}).items():  # not in every committed result
        if found is None or kind == "balanced":
            continue
        measured = "Outputs" if kind == "output" else "Margins"
        value, *interval = found
        notes.append(
            f"{measured} of two retrains on the same rows agree by "
            f"{with_interval(value, interval)} (Spearman)."
        )
        if not result.get("ceiling_known", {}).get(kind, True):
            notes[-1] += " Noise alone may give such a ceiling, so no share of it is given."
    if result["foreign"]:
        notes.append("Ground truth of others: it carries no fingerprint, only shapes were checked.")
    if result["shared_seeds"]:
        seeds = ", ".join(map(str, result["shared_seeds"]))
        notes.append(
            f"Retrains and scored models share seeds ({seeds}), hence head and row order: this LDS "
            "is too high."
        )
    if result["ceiling"]["plain"] is None:
        notes.append(
            "No noise ceiling: it needs two repeats of at least three masks, and margins that vary."
        )
    if result["incomplete_masks"] or result["missing_repeats"]:
        notes.append(
            "{missing_repeats} repeats have no finite margin; {incomplete_masks} masks are left "
            "out for it.".format(**result)
        )
    if constant := result["constant_queries"]["plain"]:
        notes.append(f"{constant} queries whose margin never changes are left out.")
    constant = [
        f"{name} ({count} queries)"
        for name, entry in result["scores"].items()
        if (count := entry["plain"]["constant"])
    ]
    if constant:
        notes.append(f"The same prediction for every mask, counted as 0: {', '.join(constant)}.")
    notes += [
        f"Single members of {name}: {np.mean(each):.3f}, {min(each):.3f} to {max(each):.3f}."
        for name, entry in result["scores"].items()
        if (each := entry["plain"].get("single"))
    ]
    if (apart := result.get("residuals")) is not None:
        notes.append(
            f"The {apart['models']} checkpoints disagree about the sign of the residual (label "
            f"minus output) for {apart['apart']} of {apart['queries']} queries."
        )
    return " ".join(notes)


def ties_of(result: dict) -> str:
    """Sentences with the scores that cannot be told from the best one by their LDS, and with those
    of word overlap that EKFAC is not above; empty if there are none.
    """
    parts = {name: entry["plain"] for name, entry in result["scores"].items()}
    best = max(parts, key=lambda name: parts[name]["lds"])
    intervals = {name: part["behind_best_interval"] for name, part in parts.items() if name != best}
    ties = [name for name, (low, high) in intervals.items() if low <= 0 <= high]
    sentences = []
    if ties:
        sentences.append(
            f"Cannot be told from {best}, the best (the 95 % interval of the difference holds 0): "
            f"{', '.join(ties)}."
        )
    from_ekfac = {name: parts.get(name, {}).get("difference_interval") for name in OVERLAP}
    if overlap := [name for name, ends in from_ekfac.items() if ends and ends[1] >= 0]:
        sentences.append(
            f"ekfac cannot be told from word overlap, which needs no model: {', '.join(overlap)}."
        )
    return "\n".join(sentences)


def lds_text(result: dict, every: bool = False) -> str:
    """The table of an LDS result with aligned columns, the ties with the best, and its notes."""
    parts = aligned(*lds_rows(result, every)), ties_of(result), lds_notes(result)
    return "\n\n".join(filter(None, parts))


def lds_markdown(result: dict) -> str:
    """The same in Markdown."""
    return markdown(*lds_rows(result)) + "\n\n" + lds_notes(result)


# --- removals -------------------------------------------------------------------------------------


def counterfactual_parts(result: dict) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, header, rows) of the tables of a counterfactual result.

    Differences begin after the first removal: before it, arms do not differ.
    """
    from attribution.evidence.counterfactual import differences  # it imports torch

    arms = {name: result["curves"][name] for name in result["strategies"]}
    pairs = {
        f"{name} minus {other}": values for (name, other), values in differences(result).items()
    }
    outcome = TURNED[result["direction"]]
    wanted = [
        (f"share of {outcome} targets [95 %, Wilson]", arms, outcome, ".3f", 0),
        ("mean margin change [95 %, bootstrap over targets]", arms, "margin_change", "+.3f", 0),
        (f"share {outcome}, difference [95 %, paired bootstrap]", pairs, outcome, "+.3f", 1),
        ("margin change, difference [95 %, paired bootstrap]", pairs, "margin_change", "+.3f", 1),
    ]
    parts = []
    for title, found, key, style, first in wanted:
        rows = []
        for name, values in found.items():
            cells = list(zip(values[key], values[f"{key}_interval"], strict=True))
            rows.append([name, *(with_interval(*cell, style) for cell in cells[first:])])
        if rows:
            parts.append((title, ["rows removed", *map(str, result["removals"][first:])], rows))
    return parts


def counterfactual_notes(result: dict) -> str:
    """Notes to the tables of a counterfactual result: its targets and its retrains."""
    direction = result["direction"]
    outcome = TURNED[direction]
    right = "correctly" if direction == "helpful" else "wrongly"
    carried = "every target is retrained at every removal"
    if result["carry_forward"]:
        carried = f"a {outcome} target stays {outcome} and keeps its last margin"
    diverged = result.get("diverged", 0)
    lost = f" {diverged} retrains diverged and do not count." if diverged else ""
    if bases := result.get("diverged_base_seeds"):
        lost += f" Models of base seeds {', '.join(map(str, bases))} diverged and are left out."
    return (
        f"{result['dataset']}: {len(result['targets'])} targets, classified {right} by all "
        f"{len(result['base_seeds'])} base seeds (accuracy {result['base_accuracy']:.3f}) among "
        f"the first {result['sought']} validation rows; {result['rows']:,} training rows, "
        f"{len(result['retrain_seeds'])} retrains a removal, {carried}.{lost}"
    )


def counterfactual_text(result: dict) -> str:
    """The tables of a counterfactual result with aligned columns, and their notes."""
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
