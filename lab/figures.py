"""Figures of README.md, for people who see them for the first time, and of removals on SST-2, whose
arms are of two studies; drawn from results/.

python -m lab.figures    # truth, mended, how, counterfactual_sst2 and _harmful, in figure/
"""

import sys
from functools import partial

import matplotlib.pyplot as plt
import numpy as np

from attribution.cli import run_script
from attribution.show.plotting import COLOURS, STYLE, draw_counterfactual, save
from lab.common import RESULTS, ROOT, read_result, with_replay
from lab.pages import REPLAY, SHORT_LDS

FOLDER = ROOT / "figure"
GREY = "#9aa3ab"
STUDIES = {
    "short reviews (demo)": "demo",
    "film reviews (SST-2)": "sst2",
    "similarity (STS-B)": "stsb",
}
MENDED = (
    "without the 40 rows that a\nreplay calls most harmful",
    "without 40 rows\nof similar words",
    "without 40\nrandom rows",
)


def draw_truth() -> None:
    """LDS of six scores on three data sets, with the noise ceiling as a band."""
    with plt.rc_context(STYLE | {"font.size": 13}):
        figure, panels = plt.subplots(1, 3, figsize=(12, 4.2), sharey=True)
        for place, (axes, (title, study)) in enumerate(zip(panels, STUDIES.items(), strict=True)):
            result = read_result(RESULTS, f"replay/lds_{study}")
            kind = "output" if study == "stsb" else "plain"
            names = [scores[place] for scores in SHORT_LDS.values()][::-1]
            entries = [result["scores"][name][kind] for name in names]
            values = [entry["lds"] for entry in entries]
            ours = [name.startswith("replay") for name in names]
            colours = [COLOURS[0] if replay else GREY for replay in ours]
            axes.barh(range(len(names)), values, color=colours)
            low, high = np.array([entry["interval"] for entry in entries]).T
            axes.hlines(range(len(names)), low, high, color="black", linewidth=1.4)
            axes.axvspan(*result["ceiling_interval"][kind], color=COLOURS[2], alpha=0.3)
            ceiling = result["ceiling"][kind]
            axes.text(ceiling, len(names) - 0.4, "ceiling", ha="center", va="bottom", fontsize=11)
            axes.set_title(title, loc="left", pad=20)
            axes.set_xlim(0, 1)
        figure.supxlabel("agreement with retraining (LDS), with 95 % intervals", fontsize=13)
        panels[0].set_yticks(range(len(SHORT_LDS)), [*SHORT_LDS][::-1])
        save(figure, FOLDER / "truth.png")


def draw_mended() -> None:
    """Shares of wrong predictions of SST-2 that retraining mends without some of the rows."""
    result = with_replay(partial(read_result, RESULTS), "counterfactual_sst2_harmful")
    level = result["removals"].index(40)
    arms = [REPLAY, "tfidf", "random"]
    with plt.rc_context(STYLE | {"font.size": 15}):
        figure, axes = plt.subplots(figsize=(7, 3.6))
        for place, name in enumerate(arms):
            curve = result["curves"][name]
            share = curve["mended"][level]
            colour = COLOURS[0] if place == 0 else GREY
            axes.barh(-place, share, color=colour)
            axes.hlines(-place, *curve["mended_interval"][level], color="black", linewidth=1.8)
            count = round(share * len(result["targets"]))
            axes.text(1.03, -place, f"{count} of {len(result['targets'])}", va="center")
        axes.set_yticks([0, -1, -2], [*MENDED])
        axes.set_xlim(0, 1)
        axes.set_xlabel("wrong predictions that retraining mends (SST-2)")
        save(figure, FOLDER / "mended.png")


def draw_how() -> None:
    """Diagram of what the four scripts do."""
    boxes = {
        "train": "train.py\nfine-tunes BERT, or\nadopts your model",
        "score": "analyze.py\nscores every training\nrow for every prediction",
        "without": "run_counterfactual.py\nremoves rows,\nretrains",
        "compare": "evaluate_lds.py\nasks whether scores\npredict retraining",
    }
    with plt.rc_context(STYLE | {"font.size": 13}):
        figure, axes = plt.subplots(figsize=(11.5, 2.2))
        for place, text in enumerate(boxes.values()):
            style = {"boxstyle": "round,pad=0.6", "facecolor": "#eef2f6", "edgecolor": GREY}
            axes.text(place, 0, text, ha="center", va="center", bbox=style, linespacing=1.4)
            if place:
                arrow = {"arrowstyle": "->", "color": "black", "linewidth": 1.6}
                axes.annotate("", (place - 0.41, 0), (place - 0.59, 0), arrowprops=arrow)
        axes.set_xlim(-0.5, 3.5)
        axes.set_ylim(-1, 1)
        axes.axis("off")
        save(figure, FOLDER / "how.png")


def draw_removals() -> None:
    """Shares of predictions of SST-2 that flip, and of wrong ones that are mended."""
    for name in ("counterfactual_sst2", "counterfactual_sst2_harmful"):
        result = with_replay(partial(read_result, RESULTS), name)
        draw_counterfactual(result, FOLDER / f"{name}.png")


def main(argv=None) -> None:
    """Draws all of them."""
    draw_truth()
    draw_mended()
    draw_how()
    draw_removals()


if __name__ == "__main__":
    sys.exit(run_script(main))
