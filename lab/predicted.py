"""Are replayed changes of predictions true? Verdicts, as predicted and as measured by retraining.

    python run_counterfactual.py --dataset_name demo --targets 0 1 2 --removals 20 60
    python -m lab.predicted --dataset_name demo

Reads every verdict of the run: for each removal the change of the query's margin as its replay
predicts it, and as retraining measured it, of the score's rows and of as many random rows of the
same classes. Writes RESULTS_DIR/predicted_DATASET_NAME.json, .md and .png.
"""

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import spearmanr

from attribution.cli import Parser, run_script
from attribution.evidence import stats
from attribution.evidence.kept_verdicts import stored_verdicts
from attribution.files import Refused
from attribution.processes import choose_device
from attribution.show import plotting, results
from attribution.show.tables import markdown, with_interval
from attribution.training.arguments import add_data_arguments
from attribution.training.run import Run
from lab.common import add_results_argument
from pipeline import quiet_libraries

NUM_BOOTSTRAP = 2000


def parse_args(argv=None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__)
    add_data_arguments(parser)
    add = parser.add_argument_group("results").add_argument
    add_results_argument(add, "predicted_DATASET_NAME.json, .md and .png")
    add("--figure_path", type=Path, metavar="FILE", help="place of the figure (beside the results)")
    add("--plot_only", action="store_true", help="draw the figure again from the JSON")
    return parser.parse_args(argv)


def points_of(verdicts: list[dict]) -> list[dict]:
    """One entry for each removal of each verdict that has a prediction and finite retrains."""
    found = []
    for verdict in verdicts:
        for arm, levels in verdict["arms"].items():
            for level in levels:
                if level["predicted"] is None or not np.isfinite(level["change"]):
                    continue
                found.append(
                    {
                        "query": verdict["query"],
                        "arm": "random" if arm != verdict["score"] else arm,
                        "removed": level["removed"],
                        "predicted": level["predicted"],
                        "measured": [level["change"], level["interval"]],
                    }
                )
    return found


def agreement(points: list[dict]) -> dict:
    """Slope of measured on predicted changes (least squares through 0), and their correlations,
    with 95 % intervals by a bootstrap over queries.
    """
    x = np.array([one["predicted"][0] for one in points])
    y = np.array([one["measured"][0] for one in points])
    queries = np.array([one["query"] for one in points])
    names = np.unique(queries)

    def measure(rows: np.ndarray) -> list[float]:
        a, b = x[rows], y[rows]
        slope = float((a * b).sum() / (a * a).sum())
        return [slope, float(np.corrcoef(a, b)[0, 1]), float(spearmanr(a, b).statistic)]

    generator = np.random.default_rng(0)
    places = [np.flatnonzero(queries == name) for name in names]
    drawn = [
        measure(
            np.concatenate([places[i] for i in generator.integers(len(names), size=len(names))])
        )
        for _ in range(NUM_BOOTSTRAP)
    ]
    values = measure(np.arange(len(points)))
    measures = ("slope", "pearson", "spearman")
    return {"points": len(points), "queries": len(names)} | {
        name: [value, stats.interval(sample)]
        for name, value, sample in zip(measures, values, np.array(drawn).T, strict=True)
    }


def summary(points: list[dict]) -> dict[str, dict]:
    """Agreement of the score's removals, by their number and in all, and with random rows."""
    scored = [one for one in points if one["arm"] != "random"]
    groups = {
        f"{count} rows": [one for one in scored if one["removed"] == count]
        for count in sorted({one["removed"] for one in scored})
    }
    groups |= {"the score's rows": scored, "with random rows": points}
    return {name: agreement(group) for name, group in groups.items()}


def predicted_markdown(result: dict) -> str:
    """The agreement as a Markdown table."""
    header = ["removals", "points", "slope [95 %]", "Pearson [95 %]", "Spearman [95 %]"]
    rows = [
        [
            name,
            str(one["points"]),
            *(with_interval(*one[key], ".2f") for key in ("slope", "pearson", "spearman")),
        ]
        for name, one in result["agreement"].items()
    ]
    note = (
        f"{result['dataset']}: changes of the margin of {result['queries']} queries, replayed and "
        "measured by retraining. Slope: measured on replayed, through 0. Intervals: bootstrap over "
        "queries."
    )
    return markdown(header, rows) + "\n\n" + note


def draw(result: dict, path: Path) -> None:
    """Scatter of measured against replayed changes, with the line on which they are equal."""
    with plt.rc_context(plotting.STYLE | {"font.size": 14}):
        figure, axes = plt.subplots(figsize=(6.4, 6))
        ends = [
            end
            for one in result["points"]
            for end in (one["predicted"][0], *(one["measured"][1] or [one["measured"][0]]))
        ]
        line = [min(ends), max(ends)]
        axes.plot(line, line, color="black", linewidth=1, linestyle="--")
        axes.annotate("as replayed", (line[1], line[1]), ha="right", va="bottom", fontsize=12)
        for i, (kind, colour) in enumerate((("random", "#999999"), ("", plotting.COLOURS[0]))):
            chosen = [one for one in result["points"] if (one["arm"] == "random") == (i == 0)]
            x = [one["predicted"][0] for one in chosen]
            y = [one["measured"][0] for one in chosen]
            low, high = np.array(
                [one["measured"][1] or [one["measured"][0]] * 2 for one in chosen]
            ).T
            axes.vlines(x, low, high, color=colour, linewidth=1, alpha=0.4)
            label = (
                "random rows of the same classes" if kind else "the rows with the highest scores"
            )
            axes.scatter(x, y, color=colour, s=26, label=label, zorder=3)
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set_xlabel("replayed change of the margin (log-odds)")
        axes.set_ylabel("measured by retraining")
        found = result["agreement"]["the score's rows"]
        axes.set_title(
            f"{result['dataset']}: slope {found['slope'][0]:.2f}, r {found['pearson'][0]:.2f}",
            loc="left",
        )
        axes.legend(frameon=False, fontsize=12, loc="upper left")
        plotting.save(figure, path)


def main(argv=None) -> None:
    """Compares, stores and prints. Raises Refused where no verdict has a prediction."""
    quiet_libraries()
    args = parse_args(argv)
    stem = args.results_dir / f"predicted_{args.dataset_name}"
    place = results.Place(stem, args.figure_path or stem.with_suffix(".png"))
    if args.plot_only:
        results.redraw(place, draw)
        return
    place.check()
    run = Run.open(args.checkpoint_dir, args.dataset_name, args.dataset_path)
    verdicts = [one for one in stored_verdicts(run) if one["query"] is not None]
    points = points_of(verdicts)
    if not points:
        raise Refused(
            f"no verdict below {run.folder} has a replayed prediction; score by analyze.py "
            "--factor_strategy replay, then check by run_counterfactual.py --targets"
        )
    result = {
        "dataset": args.dataset_name,
        "queries": len({one["query"] for one in points}),
        "points": points,
        "agreement": summary(points),
        "scores": sorted({one["score"] for one in verdicts}),
        "seeds": verdicts[0]["seeds"],
    }
    print(predicted_markdown(result))
    origin = {
        "arguments": vars(args),
        "device": choose_device(),
        "fingerprints": run.fingerprints(run.rows(1)[1]),
    }
    results.save(result, place, markdown=predicted_markdown(result), draw=draw, **origin)


if __name__ == "__main__":
    sys.exit(run_script(main))
