"""Figures, drawn from the JSON that a script left; nothing is measured here."""

import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from attribution.evidence.arguments import TURNED
from attribution.files import write_bytes

# Okabe and Ito's colours, which colour-blind readers tell apart; markers say the same once more.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
BARS = {"plain": COLOURS[0], "balanced": COLOURS[4], "output": COLOURS[2]}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 150,
    "svg.hashsalt": "",
}


def save(figure, path: Path) -> None:
    """Writes the figure as PNG, complete or absent, without the date and version of its making."""
    content = io.BytesIO()
    # Tight, because a legend may be wider than the figure.
    figure.savefig(content, format="png", metadata={"Software": None}, bbox_inches="tight")
    plt.close(figure)
    write_bytes(Path(path), content.getvalue())


@plt.rc_context(STYLE)
def draw_lds(result: dict, path: Path) -> None:
    """Bars of LDS with 95 % intervals, one a score and kind; noise ceilings are dashed lines."""
    names = sorted(result["scores"], key=lambda name: result["scores"][name]["plain"]["lds"])
    width = 5 + 0.085 * max(map(len, names))  # names are at the left of the bars
    figure, axes = plt.subplots(figsize=(width, 1.2 + 0.34 * max(8, len(names))))
    labels = {"plain": "as usual", "balanced": "class balance controlled"}
    if "output" in result["ceiling"]:
        labels = {
            "plain": "of the margin",
            "balanced": "label sum controlled",
            "output": "of the output",
        }
    kinds = [kind for kind in labels if kind in result["ceiling"]]  # JSON sorts its keys
    known = result.get("ceiling_known", {})
    known = [kind for kind in kinds if known.get(kind, result["ceiling"][kind] is not None)]
    thick = 0.76 / max(len(kinds), 1.1)
    for i, kind in enumerate(kinds):
        places = np.arange(len(names)) + thick * ((len(kinds) - 1) / 2 - i)
        values = np.array([result["scores"][name][kind]["lds"] for name in names])
        low, high = np.array([result["scores"][name][kind]["interval"] for name in names]).T
        axes.barh(places, values, height=thick, color=BARS[kind], label=labels[kind])
        axes.hlines(places, low, high, color="black", linewidth=1.2)
        if kind in known:
            axes.axvline(result["ceiling"][kind], color=BARS[kind], linestyle="--", linewidth=1.2)
    if known:
        axes.plot([], [], color="grey", linestyle="--", linewidth=1.2, label="noise ceiling")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("LDS, mean over queries, 95 % interval")
    axes.set_title(
        f"{result['dataset']}: {result['masks']} masks x {result['repeats']} repeats", loc="left"
    )
    # A legend under the axis and its label, whose size is in inches.
    below = -0.05 * plt.rcParams["font.size"] / figure.get_figheight()
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(0, below))
    save(figure, path)


@plt.rc_context(STYLE | {"font.size": 15})
def draw_counterfactual(result: dict, path: Path) -> None:
    """Share of flipped (or mended) targets against removed rows, one line an arm, named at its end;
    random rows in grey.

    To be read at 380 pixels.
    """
    figure, axes = plt.subplots(figsize=(8, 5))
    outcome = TURNED[result["direction"]]
    arms = result["strategies"]
    removals = np.array(result["removals"], dtype=float)
    width = removals.max() * 0.012  # intervals of several arms are side by side
    highest = max(max(curve[outcome]) for curve in result["curves"].values())
    top = 1.0 if highest > 0.5 else 1.25 * highest + 0.01
    lowest = -np.inf  # height of a name, above those of lower lines
    for name in sorted(arms, key=lambda name: result["curves"][name][outcome][-1]):
        curve = result["curves"][name]
        i = arms.index(name)
        places = removals + (i - (len(arms) - 1) / 2) * width
        low, high = np.array(curve[f"{outcome}_interval"]).T
        colour = "#8a939b" if name == "random" else COLOURS[i % 8]
        style = {"color": colour, "marker": MARKERS[i % 8], "markersize": 8, "linewidth": 2.5}
        axes.plot(places, curve[outcome], label=name, **style)
        axes.vlines(places, low, high, color=colour, linewidth=1.8, alpha=0.8)
        lowest = max(curve[outcome][-1], lowest + 0.065 * top)
        axes.text(1.02 * removals.max() + len(arms) * width / 2, lowest, name, color=colour)
    axes.set_ylim(-0.02, top)
    axes.set_xticks(removals)
    axes.set_xlabel("training rows removed")
    axes.set_ylabel(f"share of targets {outcome}")
    title = f"{result['dataset']}, {len(result['targets'])} targets, 95 % intervals"
    axes.set_title(title, loc="left", fontsize=14)
    save(figure, path)
