"""The report: one page about a run that can be shared, with all queries, the rows behind some of
them, rows to look at, and what retraining says.

Nothing is retrained here. The page needs no network. Its one script sorts and filters the table;
without it everything is still there. Texts are data, escaped by Jinja2 and by `printable`.
Symbols: Q queries, N training rows, C classes.
"""

import base64
import hashlib
from dataclasses import replace
from pathlib import Path

import jinja2
import numpy as np
import torch
from markupsafe import Markup

from attribution.data.dataset import GlueDataset
from attribution.data.duplicates import relatives
from attribution.evidence import baselines, stats
from attribution.evidence.kept_verdicts import stored_verdicts
from attribution.evidence.label_issues import label_issues, rank
from attribution.evidence.lds import random_subsets
from attribution.evidence.study import models_of
from attribution.files import check_file, printable, read_json, write_bytes
from attribution.influence.analysis import Influence
from attribution.influence.stored import TOP, scores_named, seconds_of
from attribution.processes import ALONE
from attribution.show import tables, verdicts
from attribution.show.answer import (
    LINKED,
    Answer,
    AnswerRow,
    Context,
    Query,
    describe_row,
    explain,
    is_linked,
    prediction_of,
)
from attribution.show.asking import custom_queries, lds_command, scored_rows, with_words
from attribution.show.label_issues import label_text
from attribution.show.listing import NOTES, UNITS, cut, likeness_text
from attribution.show.results import place_of
from attribution.show.scored import ScoredRows, check_for, with_other
from attribution.training.arguments import command_of
from attribution.training.queries import ask
from pipeline import compute_correct

TEMPLATES = Path(__file__).parent / "templates"
WRONG = 5  # queries that the model gets wrong
RIGHT = 5  # queries that it gets right
SUSPECTS = 12  # rows to look at of each kind
DRAWS = 300  # bootstrap draws behind an interval
LONGEST = 1500  # characters of a text that are shown
SHORT = 160  # characters of a text in the table of all queries
TOUCHED = 12  # queries that are named for one training row
LEVELS = (LINKED, 0.6, 0.85)  # values of words from which their tint is stronger
COLOURS = 6  # classes that have a colour of their own
BASELINE = "tfidf2"  # sees no model; the strongest such score on RTE, near it on other data


def write_report(
    influence: Influence, path: Path | None, numbers: list[int] | None, top_k: int
) -> Path | None:
    """Writes the page, after scoring what is not stored, and returns its place; None on all
    processes but the main one. numbers: of validation rows; None: see `choose`.
    """
    scores = influence.compute("pairwise")
    if scores is None:
        return None
    influence = replace(influence, processes=ALONE)  # the main process goes on alone
    path = path or influence.scores.path / "report.html"
    check_file(path, "--report")
    write_bytes(path, render(build(influence, scores, numbers, top_k)).encode())
    return path


def render(page: dict) -> str:
    """The page as HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "text": shown,
        "signed": signed,
        "share": lambda x: f"{100 * x:.1f} %",
        "tinted": tinted,
    }
    script = (TEMPLATES / "report.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    more = {"script": Markup(script), "digest": digest}
    return environment.get_template("report.html").render(page | more)


def build(influence: Influence, scores: np.ndarray, numbers: list[int] | None, top_k: int) -> dict:
    """Everything that the page shows, as plain values. scores: (Q, N)."""
    run = influence.run
    scored = scored_rows(influence, scores)
    check = check_for(run, influence.name, influence.settings.first_query, bare=True)
    context = replace(scored.context(run), check=check)
    places = choose(scored, influence.settings.seed)
    if numbers is not None:
        places = [influence.queries.place_of(one, "query_index") for one in dict.fromkeys(numbers)]
    compared = with_other(run, scored)
    groups = [(influence.queries.subset(places), [compared.query(place) for place in places])]
    if numbers is None:
        groups += stored_custom_queries(influence)
    stored = [one for one in stored_verdicts(run) if one["score"] == influence.name]
    cards = []
    for data, queries in groups:
        shared = context
        if len(queries) > 1 and queries[0].number is None:  # only those asked alone can be checked
            shared = replace(context, check=None)
        answers = with_words(influence, data, [explain(shared, one, top_k) for one in queries])
        cards += [card(answer, stored) for answer in answers]
    for number, one in enumerate(cards):
        if one["answer"].query is None:
            one["anchor"] = f"own-{number}"
    longest = max([card["answer"].amount(row) for card in cards for row in card["rows"]] or [1.0])
    top = np.argsort(-np.abs(scores), axis=1, kind="stable")[:, :TOP]
    look = rows_to_look_at(influence, context)
    marks = {mark for group in [*cards, *look] for row in group["rows"] for mark in row.marks}
    known = measured(influence, scores)
    classes = run.task.class_names
    return {
        "name": run.dataset_name,
        "scores": context.name,
        "doubts": run.doubts,
        "checked": checked_words(known, stored),
        "trust": lds_words(known, lds_command(influence)),
        "table": [query_line(scored, place, scores[place], stored) for place in range(len(scores))],
        "classes": [] if run.task.regression else classes,
        "colours": {name: i % COLOURS for i, name in enumerate(classes)},
        "cards": cards,
        "linked": {card["answer"].query for card in cards}.__contains__,
        "scale": longest or 1.0,
        "look": look,
        "rows": touched(cards, look, top, influence.queries),
        "flips": counterfactual_table(influence),
        "unit": " ".join(dict.fromkeys(UNITS[one["answer"].unit] for one in cards)),
        "notes": {
            words: note
            for words, note in NOTES.items()
            if any(mark.startswith(words) for mark in marks)
        },
        "likeness": None if context.likeness is None else likeness_text(context.likeness),
        "run": about(influence),
    }


# --- queries --------------------------------------------------------------------------------------


def choose(scored: ScoredRows, seed: int) -> list[int]:
    """Places of the most confidently wrong queries, and of right ones drawn by the seed; of a
    regression of those with the largest errors, and of others.
    """
    order = np.argsort(scored.margins, kind="stable")
    right = np.zeros(len(order), bool)
    right[order[WRONG:]] = True
    if not scored.queries.task.regression:
        labels = torch.from_numpy(scored.queries.labels.copy())
        right = compute_correct(torch.from_numpy(scored.logits), labels).numpy()
    others = np.flatnonzero(right)
    drawn = np.random.default_rng(seed).choice(others, min(RIGHT, len(others)), replace=False)
    return [*order[~right[order]][:WRONG].tolist(), *sorted(drawn.tolist())]


def stored_custom_queries(influence: Influence) -> list[tuple[GlueDataset, list[Query]]]:
    """Custom queries that were scored under these settings, as they were asked together: (their
    rows, the queries).
    """
    found = []
    pattern = f"influence/scores/{influence.name}_queries-*/queries.json"
    for path in sorted(influence.run.folder.glob(pattern)):
        record = read_json(path)
        if not record:  # damaged
            continue
        rows = record["queries"]
        labels = [row["label"] if row["target"] == "label" else None for row in rows]
        questions = ask(influence.run, [row["texts"] for row in rows], labels)
        query_rows = questions.data.fingerprint()
        if scores_named(influence.run, path.parent.name, query_rows) is not None:
            found.append((questions.data, custom_queries(influence, questions, alone=True)))
    return found


def query_line(scored: ScoredRows, place: int, scores: np.ndarray, stored: list[dict]) -> dict:
    """A query in the table of all: what the model said, and the share of its strongest row.

    scores: (N,). stored: all verdicts.
    """
    queries = scored.queries
    texts, label = queries.columns_of(place), queries.label_name(place)
    said, probability = prediction_of(queries.task, scored.logits[place])
    sizes = np.abs(scores)
    return {
        "query": queries.first_number + place,
        "text": printable(" | ".join(texts))[:SHORT],
        "label": label,
        "said": said,
        "probability": probability,
        "wrong": probability is not None and said != label,
        "top": float(sizes.max() / (sizes.sum(dtype=np.float64) or 1.0)),
        "verdict": ", ".join(map(verdicts.word, verdicts_on(texts, label, stored))),
    }


def verdicts_on(texts: list[str], label: str, stored: list[dict]) -> list[dict]:
    """Those of all verdicts that are on the query of these texts and this label."""
    return [one for one in stored if (one["texts"], one["label"]) == (texts, label)]


def card(answer: Answer, stored: list[dict]) -> dict:
    """One query on the page, with its verdicts. stored: all of them."""
    return {
        "answer": answer,
        "rows": [row for side in answer.sides for row in side.rows],
        "anchor": f"query-{answer.query}",
        "verdicts": [
            {
                "word": verdicts.word(one),
                "sentence": verdicts.sentence(one),
                "note": verdicts.note(one),
                "table": verdicts.table_of(one),
                "plot": plot_of(one),
            }
            for one in verdicts_on(answer.texts, answer.label, stored)
        ],
    }


def plot_of(verdict: dict) -> dict:
    """Dots and intervals of a verdict, in percent of the width of its plot."""
    levels = [
        (f"{name.split(',')[0]}, {one['removed']}", name != verdict["score"], one)
        for name, found in verdict["arms"].items()
        for one in found
    ]
    ends = [0.0]
    for _, _, one in levels:
        ends += [one["change"], *(one["interval"] or [])]
        ends += [one["predicted"][0]] if one["predicted"] else []
    ends = [value for value in ends if np.isfinite(value)]
    low, high = min(ends), max(ends)
    span = (high - low) or 1.0

    def at(value: float) -> float:
        return round(4 + 92 * (min(max(value, low), high) - low) / span, 2)

    lines = []
    for name, random, one in levels:
        if np.isfinite(one["change"]):
            interval = one["interval"] or [one["change"]] * 2
            predicted = at(one["predicted"][0]) if one["predicted"] else None
            ends_at = [at(value) for value in interval]
            dot = at(one["change"])
            lines.append({"name": name, "random": random, "dot": dot, "ends": ends_at})
            lines[-1]["predicted"] = predicted
    return {"zero": at(0.0), "lines": lines}


def shown(texts: list[str] | str) -> str:
    """Texts as one line that steers no terminal or browser; Jinja2 escapes markup afterwards."""
    text = texts if isinstance(texts, str) else " | ".join(texts)
    return cut(text, LONGEST).rstrip()


def tinted(one: Answer | AnswerRow) -> list[tuple[str, int]]:
    """The texts of a query or a row as (piece, strength of its tint, 0 to 3)."""
    if one.words is None:
        return [(shown(one.texts), 0)]
    pieces: list[tuple[str, int]] = []
    left = LONGEST
    for number, column in enumerate(one.words):
        pieces += [(" | ", 0)] * (number > 0)
        for text, value in column:
            level = sum(value >= least for least in LEVELS) if is_linked(text, value) else 0
            pieces.append((printable(text[:left]), level))
            left -= len(text[:left])
    if left and pieces:  # texts of GLUE end with a blank
        pieces[-1] = (pieces[-1][0].rstrip(), pieces[-1][1])
    return [*pieces, *([] if left else [(" ...", 0)])]


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign, a true minus in front of negative ones."""
    return f"{value:+.{digits}g}".replace("-", "\N{MINUS SIGN}")


# --- training rows --------------------------------------------------------------------------------


def rows_to_look_at(influence: Influence, context: Context) -> list[dict]:
    """Groups of rows that somebody who cleans data wants to see, each row once: suspicious labels,
    equal texts with different labels, rows that are high for many queries.
    """
    train = influence.train
    ranking = rank(influence, "stored")
    assert ranking is not None  # only the main process writes a page
    like = relatives(train, train)
    suspects = {
        one.row: f"the model says {label_text(one.predicted_label)}"
        + " without it" * (ranking.name == "replay")
        for one in label_issues(train, ranking, like)[:SUSPECTS]
        if one.is_label_issue is not False
    }
    doubles = {
        row: f"row {one.row} has {'the same' if one.equal else 'nearly the same'} text"
        for row, found in enumerate(like)
        for one in found.duplicates
        if not one.same_label
    }
    shares = np.zeros(len(train)) if context.everywhere is None else context.everywhere
    order = np.argsort(-shares, kind="stable")[:SUSPECTS].tolist()
    high = {row: "" for row in order if describe_row(context, row).high}
    found = []
    seen: set[int] = set()
    for title, notes in (
        ("Labels that may be wrong", suspects),
        ("The same text with another label", doubles),
        ("High whatever is asked", high),
    ):
        chosen = [row for row in notes if row not in seen][:SUSPECTS]
        seen |= {*chosen}
        rows = [describe_row(context, row) for row in chosen]
        if rows:
            found.append({"title": title, "rows": rows, "notes": notes})
    return found


def touched(cards: list[dict], look: list[dict], top: np.ndarray, queries) -> list[dict]:
    """Every training row of the page, once, with the queries that have it among their TOP.

    top: (Q, TOP) rows of the largest absolute scores of each query.
    """
    rows: dict[int, AnswerRow] = {}
    for one in [row for group in [*cards, *look] for row in group["rows"]]:
        rows.setdefault(one.row, replace(one, alike=False))
    found = []
    for number, row in sorted(rows.items()):
        places = np.flatnonzero((top == number).any(1)).tolist()
        named = [
            {"number": queries.first_number + place, "text": queries.text(place)[:SHORT]}
            for place in places[:TOUCHED]
        ]
        found.append({"row": row, "queries": named, "count": len(places)})
    return found


# --- the run --------------------------------------------------------------------------------------


def about(influence: Influence) -> list[tuple[str, str]]:
    """Facts about the run, (name, value); no absolute path."""
    run = influence.run
    task = run.task
    settings = influence.settings
    record = influence.scores.record("pairwise") or {}
    metrics = [
        f"{split}: " + ", ".join(f"{key} {value:.3f}" for key, value in found.items())
        for split, found in run.evaluation.items()
    ]
    classes = f"{task.num_labels} classes: {', '.join(task.class_names)}"
    start = Path(run.model_name_or_path or "the default of the task").name
    origin = "adopted" if run.adopted else f"fine-tuned from {start}"
    command = command_of("analyze.py", run.dataset_name, run.folder.parent, bare=True)
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    took = seconds_of(run, settings)
    with_damping = "damping_factor" not in settings.unused
    damping = f"damping {settings.damping_factor}, " if with_damping else ""
    facts = [
        ("Data", f"{run.dataset_name} ({'regression' if task.regression else classes})"),
        ("Rows", f"{len(influence.train):,} for training, {len(influence.queries):,} queries"),
        ("Model", f"{origin}, seed {run.seed}"),
        ("Metrics", "; ".join(metrics) or "none"),
        ("Scores", f"{influence.name}, {damping}{settings.precision}"),
        ("Members", str(len(influence.analyses))),
        ("Time", "not recorded" if took is None else f"{took:.0f} s for factors and scores"),
        ("Made with", f"{versions}; {record['device']}"),
        ("Command", f"{command} {settings.flags} --report"),
    ]
    records = [one.scores.record("pairwise") or {} for one in influence.analyses]
    if any(one.get("undetermined") for one in records):
        noise = "scores differ by some percent with the batch size and the number of processes"
        facts.append(("Noise", f"{noise}, as labels were sampled; with --fisher exact they do not"))
    return facts


# --- how far the scores may be trusted here -------------------------------------------------------


def measured(influence: Influence, scores: np.ndarray) -> dict | None:
    """LDS of the scores (Q, N) and of a baseline, with intervals, and the noise ceiling.

    None without stored retrains on random subsets.
    """
    truth = random_subsets(influence.run, influence.queries.fingerprint())
    if truth is None:
        return None
    masks, margins = truth
    ranks = stats.make_truth(stats.mean_margins(margins))
    models = models_of(influence.run, None)
    plain = baselines.baseline_scores(BASELINE, influence.queries, influence.train, models)
    scored, baseline = (stats.agreement(one, masks, ranks) for one in (scores, plain))
    draws = stats.draw(len(masks), margins.shape[2], DRAWS)
    samples = [stats.bootstrap(agreed, ranks, draws) for agreed in (scored, baseline)]
    ceiling = stats.ceiling_of(margins, draws)
    return {
        "masks": len(masks),
        "repeats": margins.shape[1],
        "ceiling": ceiling and ceiling.value,
        "scores": scored.mean,
        "baseline": baseline.mean,
        "interval": stats.interval(samples[0]),
        "difference": stats.interval(samples[0] - samples[1]),
        **stats.share_of_ceiling(scored.mean, samples[0], ceiling),
    }


def checked_words(known: dict | None, stored: list[dict]) -> tuple[bool, str]:
    """(whether retraining speaks for the scores, in a few words what it has checked).

    known: of `measured`. stored: all verdicts.
    """
    parts = []
    words = [verdicts.word(one) for one in stored]
    confirmed = sum(word.removeprefix("a hint: ") == "confirmed" for word in words)
    if known is not None:
        share = f", {tables.share_of(known)} of the ceiling" if "share" in known else ""
        parts.append(f"LDS {known['scores']:.2f}{share}")
    if stored:
        parts.append(f"{confirmed} of {len(stored)} checked predictions confirmed")
    true = known is not None and known["interval"][0] > 0
    return true or confirmed > 0, "; ".join(parts)


def lds_words(found: dict | None, command: str) -> str:
    """Sentences on how far the scores may be trusted here.

    found: of `measured`. command: the one that measures.
    """
    if found is None:
        return (
            "How true these scores are over all queries has not been measured here; measure it "
            f"with: {command}"
        )
    low, high = found["difference"]
    compared = "is more than" if low > 0 else "is less than" if high < 0 else "cannot be told from"
    most = "what a perfect score could reach is not known well enough"
    if "share" in found:
        most = (
            f"{tables.share_of(found)} of what a perfect score could reach ({found['ceiling']:.2f})"
        )
    correlation = tables.with_interval(found["scores"], found["interval"], ".2f")
    return (
        f"On {found['masks']} random subsets these scores predict retrained margins with a rank "
        f"correlation (LDS) of {correlation}, 95 % interval; {most}. That {compared} the "
        f"{found['baseline']:.2f} of word overlap, which sees no model."
    )


def counterfactual_table(influence: Influence) -> dict | None:
    """Study of removals below the run's folder: header and rows.

    None if there is none of this run's weights, rows, start and recipe.
    """
    run = influence.run
    place = place_of("counterfactual", run.folder)
    found = read_json(place.file(".json"))
    if found is None or place.foreign(run.fingerprints(influence.queries)):
        return None
    if found["recipe"] != run.recipe:
        return None
    header = ["rows removed", *map(str, found["removals"][1:])]
    rows = [
        [name, *(f"{share:.0%}" for share in curve["flipped"][1:])]
        for name, curve in found["curves"].items()
    ]
    return {"header": header, "rows": rows, "targets": len(found["targets"])}
