"""The tables of an LDS study, as aligned text for the screen and as Markdown. Nothing is computed
here.
"""

import numpy as np

from attribution.evidence import correction
from attribution.show.tables import aligned, markdown, share_of, with_interval

KINDS = {
    "plain": "LDS [95 %]",
    "balanced": "class balance controlled",
    "output": "LDS of the output",
}


def lds_rows(result: dict) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of an LDS result, best first. What an older result does not hold has no
    column.
    """
    kinds = [kind for kind in KINDS if kind in result["ceiling"]]  # JSON sorts its keys
    titles = KINDS | ({"balanced": "label sum controlled"} if "output" in kinds else {})
    entries = result["scores"]
    shares = any("share" in entry["plain"] for entry in entries.values())
    header = ["score"]
    for kind in kinds:
        header += [titles[kind], "minus ekfac [95 %]"] + ["share of ceiling [95 %]"] * shares
    asides = {"rows_at_top": "rows in all top 10s", "spearman_with_ekfac": "Spearman with ekfac"}
    asides["spearman_with_start"] = "with its own start"
    asides = {
        key: title
        for key, title in asides.items()
        if any(entry.get(key) for entry in entries.values())
    }
    rows = []
    for name, entry in sorted(entries.items(), key=lambda item: -item[1]["plain"]["lds"]):
        row = [name]
        for kind in kinds:
            part = entry[kind]
            row.append(with_interval(part["lds"], part["interval"]))
            row.append(
                with_interval(part.get("difference"), part.get("difference_interval"), sign=True)
            )
            row += [share_of(part)] * shares
        rows.append([*row, *(aside(entry.get(key)) for key in asides)])
    ceiling = ["noise ceiling"]
    for kind in kinds:
        value, interval = result["ceiling"][kind], result.get("ceiling_interval", {}).get(kind)
        shown = "needs repeats" if value is None else f"{value:.3f}"
        ceiling += [with_interval(value, interval) if interval else shown, "-"] + ["-"] * shares
    return [*header, *asides.values()], [*rows, [*ceiling, *["-"] * len(asides)]]


def aside(value: float | int | None) -> str:
    """A count as it is, a correlation with three digits, `-` for nothing."""
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def lds_notes(result: dict) -> str:
    """What the reader must know beside the table."""
    drawn = "with the same share of every class" if result["stratified"] else "drawn at random"
    notes = [
        f"{result['dataset']}: {result['masks']} masks x {result['repeats']} repeats, "
        f"{result['rows']:,} rows of which {result['alpha']:.0%} are kept, {drawn}; "
        f"{result['queries']} queries."
    ]
    metrics: dict = next(iter(result["evaluation"].values()), {})
    if "accuracy" in metrics and result["retrained_accuracy"] is not None:
        retrained = f"of retrains, on these queries, {result['retrained_accuracy']:.3f}"
        notes.append(f"Validation accuracy {metrics['accuracy']:.3f}; {retrained}.")
    if "pearson" in metrics and result.get("retrained_pearson") is not None:
        both = f"Validation Pearson {metrics['pearson']:.3f}, Spearman {metrics['spearmanr']:.3f}"
        notes.append(
            f"{both}; Pearson of retrains, on these queries, {result['retrained_pearson']:.3f}."
        )
    output = (
        f", of the output within +-{chance:.3f}"
        if (chance := result["chance"].get("output"))
        else ""
    )
    notes.append(f"Chance (masks permuted) stays within +-{result['chance']['plain']:.3f}{output}.")
    notes += agreement_notes(result)
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
        left_out = f"{result['incomplete_masks']} masks are left out for it"
        notes.append(f"{result['missing_repeats']} repeats have no finite margin; {left_out}.")
    if result["constant_queries"]["plain"]:
        notes.append(
            f"{result['constant_queries']['plain']} queries whose margin never changes are left "
            "out."
        )
    constant = {name: entry["plain"]["constant"] for name, entry in result["scores"].items()}
    if any(constant.values()):
        counts = ", ".join(f"{name} ({count} queries)" for name, count in constant.items() if count)
        notes.append(f"The same prediction for every mask, counted as 0: {counts}.")
    return " ".join([*notes, *member_notes(result)])


def agreement_notes(result: dict) -> list[str]:
    """How far two retrains on the same rows agree, and what is to be thought of a ceiling where
    they do not.
    """
    notes = []
    for kind, found in result.get("agreement", {}).items():  # older results do not say it
        if found is None or kind == "balanced":
            continue
        what = "Outputs" if kind == "output" else "Margins"
        value, *interval = found
        notes.append(
            f"{what} of two retrains on the same rows agree by {with_interval(value, interval)} "
            "(Spearman)."
        )
        if not result.get("ceiling_known", {}).get(kind, True):
            notes[-1] += " Noise alone may give such a ceiling, so no share of it is given."
    return notes


def member_notes(result: dict) -> list[str]:
    """What single members reach, and where those of a regression disagree."""
    notes = [
        f"Single members of {name}: {np.mean(each):.3f}, {min(each):.3f} to {max(each):.3f}."
        for name, entry in result["scores"].items()
        if (each := entry["plain"].get("single"))
    ]
    if (apart := result.get("residuals")) is not None:
        notes.append(
            f"The {apart['models']} checkpoints disagree about the sign of the residual (label "
            f"minus output) for {apart['apart']} of {apart['queries']} queries."
        )
    return notes


def corrected_rows(result: dict) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of the scores that retrains have corrected, best first."""
    found = dict(
        sorted(result["corrected"].items(), key=lambda item: -item[1]["plain"]["corrected"])
    )
    kinds = [kind for kind in KINDS if all(kind in entry for entry in found.values())]
    controlled = "label sum controlled" if "output" in result["ceiling"] else KINDS["balanced"]
    header, rows = ["score"], [[name] for name in found]
    for kind in kinds:
        what = "LDS on held-out masks" if kind == "plain" else controlled
        header += [what, "corrected", "gain [95 %]", "without the score"]
        for row, entry in zip(rows, found.values(), strict=True):
            part = entry[kind]
            row.append(with_interval(part["lds"], part["interval"]))
            row.append(with_interval(part["corrected"], part["corrected_interval"]))
            row.append(with_interval(part["difference"], part["difference_interval"], sign=True))
            row.append(f"{part['alone']:.3f}")
    return header, rows


def corrected_notes(result: dict) -> str:
    """What the reader must know beside the corrected scores."""
    return (
        f"{result['dataset']}: {result['masks']} masks x {result['repeats']} repeats, "
        f"{result['queries']} queries. Corrected by the retrains of {correction.FOLDS - 1} in "
        f"{correction.FOLDS} masks, judged on the others, each in turn, for "
        f"{correction.PARTITIONS} partitions. Over so few masks a correlation is lower than over "
        "all. Without the score: the same correction of nothing."
    )


def corrected_markdown(result: dict) -> str:
    """The table of the corrected scores alone, in Markdown."""
    return markdown(*corrected_rows(result)) + "\n\n" + corrected_notes(result)


def parts_of(result: dict) -> list[tuple[tuple, str]]:
    """((header, rows), notes) of each table of an LDS result."""
    corrected = (
        [(corrected_rows(result), corrected_notes(result))] if result.get("corrected") else []
    )
    return [(lds_rows(result), lds_notes(result)), *corrected]


def lds_text(result: dict) -> str:
    """The tables of an LDS result with aligned columns, and their notes."""
    return "\n\n".join(aligned(*table) + "\n\n" + notes for table, notes in parts_of(result))


def lds_markdown(result: dict) -> str:
    """The same in Markdown."""
    return "\n\n".join(markdown(*table) + "\n\n" + notes for table, notes in parts_of(result))
