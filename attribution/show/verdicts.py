"""Verdicts on single predictions: what is asked, where verdicts are stored, and what they say as
text.
"""

import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path

from attribution.data.dataset import GlueDataset
from attribution.evidence.calibration import Slope, random_subsets, slope
from attribution.evidence.verdict import Target
from attribution.files import Refused, printable, read_json, write_json
from attribution.influence.names import CORRECTED, remedy
from attribution.influence.stored import look_up, scores_named
from attribution.show.reading import check_index, heading
from attribution.show.tables import aligned
from attribution.training.queries import ask

# --- what is asked --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """Queries, those of them that are to be checked, and what the names of their scores end with."""

    queries: GlueDataset
    targets: list[Target]
    suffix: str


def validation_targets(
    folder: Path,
    run: dict,
    name: str,
    queries: GlueDataset,
    wanted: list[int],
    checkpoint_dir: Path,
    max_queries: int | None = None,
) -> Asked:
    """Validation rows with their stored scores. Raises Refused where there are none, or no such
    row.

    max_queries: how many rows were asked for, None for the default; the command that the refusal
    names repeats it.
    """
    if (scores := scores_named(folder, run, name, queries.fingerprint())) is None:
        where = run["dataset_name"], checkpoint_dir, max_queries
        _, why = look_up(folder, run, queries.fingerprint()).get(name, (None, None))
        what = (
            f"the scores {name} do not count: {why}"
            if why
            else f"there are no scores {name} of the validation rows"
        )
        raise Refused(f"{what}; {remedy(name, *where, again=why is not None)}")
    targets = []
    for i in wanted:
        check_index(queries, i, "--targets")
        texts = [queries.table[i][column] for column in queries.task.columns]
        about = {"query": i, "texts": texts, "label": queries.label_name(i), "target": "label"}
        targets.append(Target(i, scores[i], about))
    return Asked(queries, targets, "")


def own_target(
    folder: Path, run: dict, name: str, texts: list[str], label: str | None, checkpoint_dir: Path
) -> Asked:
    """A query of one's own with the scores that analyze.py stored. Raises Refused where there are
    none.
    """
    questions = ask(folder, run, [texts], [label])
    scores = scores_named(folder, run, name + questions.suffix, questions.data.fingerprint())
    if scores is None:
        flags = f"--query_text {shlex.join(texts)}" + (
            f" --query_label {shlex.quote(label)}" if label else ""
        )
        command = remedy(name, run["dataset_name"], checkpoint_dir, more=flags)
        raise Refused(f"there are no scores {name} of this query; {command}")
    about = {
        "query": None,
        "texts": texts,
        "label": questions.data.label_name(0),
        "target": questions.targets[0],
    }
    return Asked(questions.data, [Target(0, scores[0], about)], questions.suffix)


def known_slope(folder: Path, run: dict, name: str, queries: GlueDataset) -> Slope | None:
    """What a score of this name is worth in margins; None without scores of the validation rows, or
    random subsets.

    None also for scores that these retrains may have corrected.
    """
    if CORRECTED in name:
        return None
    truth = random_subsets(folder, run, queries.fingerprint())
    scores = scores_named(folder, run, name, queries.fingerprint()) if truth is not None else None
    return None if truth is None or scores is None else slope(scores, *truth)


# --- what came out --------------------------------------------------------------------------------


def place_of(folder: Path, verdict: dict, suffix: str) -> Path:
    """Where the verdict is stored. suffix: `_queries-...` of a query of one's own, else empty."""
    which = suffix or f"_query{verdict['query']}"
    return (
        folder
        / "retraining"
        / "verdicts"
        / f"{verdict['score']}_{verdict['direction']}{which}.json"
    )


def keep(folder: Path, run: dict, verdict: dict, suffix: str = "") -> Path:
    """Stores a verdict with what it was made from; returns where."""
    path = place_of(folder, verdict, suffix)
    made_from = {"weights": run["weights"], "training rows": run["train_rows"]}
    write_json(path, verdict | {"fingerprint": made_from}, compact=True)
    return path


def stored(folder: Path, run: dict) -> list[dict]:
    """All verdicts of this run: those on another model or other rows do not count."""
    made_from = {"weights": run["weights"], "training rows": run["train_rows"]}
    records = [
        read_json(path) for path in sorted((folder / "retraining" / "verdicts").glob("*.json"))
    ]
    return [record for record in records if record and record.get("fingerprint") == made_from]


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
