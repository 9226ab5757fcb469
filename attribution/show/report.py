"""The report: one self-contained page about a run, with queries, their rows, results of retraining,
and rows to look at first.

Only stored results are read; nothing is scored or retrained here. The page needs no network and
runs no script. Texts are data, escaped by Jinja2 and by `printable`.

Symbols: Q queries, N training rows.
"""

import re
from collections import Counter
from pathlib import Path

import jinja2
import numpy as np
import torch

from attribution.evidence import baselines, stats
from attribution.evidence.lds import random_subsets
from attribution.evidence.study import models_of
from attribution.evidence.verdict import stored_verdicts
from attribution.files import Refused, check_file, printable, read_json, write_bytes
from attribution.influence.analysis import Influence
from attribution.influence.settings import analyze_command
from attribution.influence.stored import most_helpful, replayed_self_scores, scores_named
from attribution.show import tables, verdicts
from attribution.show.asking import (
    custom_queries,
    lds_command,
    scored_rows,
)
from attribution.show.listing import (
    MARK,
    Context,
    Query,
    describe_row,
    explain,
    meaning_of_scores,
)
from attribution.show.results import place_of
from attribution.training.queries import ask
from pipeline import compute_correct, compute_margin

TEMPLATES = Path(__file__).parent / "templates"
WRONG = 5  # queries that the model gets wrong
RIGHT = 5  # queries that it gets right
SUSPECTS = 12  # rows to look at first
SAMPLE = 20_000  # training rows in which common words are counted
COMMON = 0.2  # share of these rows from which a word is common
DRAWS = 300  # bootstrap draws behind an interval
LONGEST = 1500  # characters of a text that are shown
BASELINE = "tfidf2"  # the strongest score that sees no model, on the data where it was measured
WORD = re.compile(r"\w+")


def write_report(
    influence: Influence, path: Path | None, indices: list[int] | None, top_k: int
) -> Path:
    """Writes the page and returns its place. indices: places among the queries; None: see `choose`.

    Raises Refused where nothing was scored yet.
    """
    scores = influence.scores.load("pairwise")
    if scores is None:
        raise Refused(
            f"{influence.name} has not been scored yet, so there is nothing to report; run first: "
            f"{analyze_command(influence.run, influence.settings)}"
        )
    path = path or influence.scores.path / "report.html"
    check_file(path, "--report")
    write_bytes(path, render(build(influence, scores, indices, top_k)).encode())
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
        "percent": lambda x: f"{100 * x:.1f} %",
    }
    return environment.get_template("report.html").render(page)


def build(influence: Influence, scores: np.ndarray, indices: list[int] | None, top_k: int) -> dict:
    """Everything that the page shows, as plain values. scores: (Q, N)."""
    run = influence.run
    scored = scored_rows(influence, scores)
    context = scored.context()
    if indices is None:
        chosen = choose(influence, scored.logits)
    else:
        chosen = {"The queries that were asked for": indices}
    queries = {
        title: [scored.query(place) for place in places]
        for title, places in chosen.items()
        if places
    }
    if indices is None and (custom := stored_custom_queries(influence)):
        queries["Queries of your own"] = custom
    stored = stored_verdicts(run)
    common = common_words(influence.train.texts()[:SAMPLE])
    groups = [
        (title, [card(context, query, top_k, stored, common) for query in found])
        for title, found in queries.items()
    ]
    for number, one in enumerate((one for _, cards in groups for one in cards), 1):
        one["anchor"] = f"q{number}"
    known = measured(influence, scores)
    command = lds_command(influence, bare=True)
    return {
        "name": run.dataset_name,
        "groups": groups,
        "run": about(influence),
        "context": context,
        "words": [lds_words(known, command), meaning_of_scores(context)],
        "lds": lds_table(known),
        "flips": counterfactual_table(influence),
        **suspects(influence, context),
        "mark": MARK,
    }


# --- queries --------------------------------------------------------------------------------------


def choose(influence: Influence, logits: np.ndarray) -> dict[str, list[int]]:
    """Title -> validation rows: the most confidently wrong ones, and right ones drawn by the seed.

    Of a regression those with the largest errors, and others drawn. logits: (Q, C).
    """
    labels = torch.from_numpy(influence.queries.labels)
    outputs = torch.from_numpy(logits)
    order = np.argsort(compute_margin(outputs, labels).numpy(), kind="stable")
    if influence.queries.task.regression:
        titles = ("The largest errors", "Others, drawn at random")
        wrong = order[:WRONG]
        others = order[WRONG:]
    else:
        titles = ("Most confidently wrong", "Right, drawn at random")
        right = compute_correct(outputs, labels).numpy()
        wrong = order[~right[order]][:WRONG]
        others = np.flatnonzero(right)
    draw = np.random.default_rng(influence.settings.seed)
    drawn = draw.choice(others, min(RIGHT, len(others)), replace=False)
    return {titles[0]: wrong.tolist(), titles[1]: sorted(drawn.tolist())}


def stored_custom_queries(influence: Influence) -> list[Query]:
    """All custom queries that were scored under these settings."""
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
            found += custom_queries(influence, questions, alone=True)
    return found


def common_words(texts: list[str]) -> set[str]:
    """Words in more than the share COMMON of the texts, in lower case: sharing one means little."""
    counts = Counter(
        word for text in texts for word in {word.casefold() for word in WORD.findall(text)}
    )
    return {word for word, count in counts.items() if count > COMMON * len(texts)}


def card(context: Context, query: Query, top_k: int, stored: list[dict], common: set[str]) -> dict:
    """One query on the page: `explain`, with lengths of bars, words in common and verdicts.

    stored: all verdicts. common: words that are not marked.
    """
    made = explain(context, query, top_k)
    rows = [*made["helpful"], *made["harmful"]]
    longest = max((abs(row["score"]) for row in rows), default=0.0) or 1.0
    words = {word.casefold() for text in query.texts for word in WORD.findall(text)} - common
    for row in rows:
        row["bar"] = round(100 * abs(row["score"]) / longest, 1)
        row["parts"] = marked(" | ".join(row["texts"]), words)
    shown = [
        {"rows": verdicts.lines_of(one), "sentence": verdicts.sentence(one), **one}
        for one in stored
        if (one["texts"], one["label"]) == (query.texts, query.label)
    ]
    wrong = query.number is not None and made["prediction"] != made["label"]
    return made | {"verdicts": shown, "wrong": wrong and made["probability"] is not None}


def marked(text: str, words: set[str]) -> list[tuple[str, bool]]:
    """The text cut into (piece, whether it is one of these words of the query)."""
    text = clipped(text)
    pieces = []
    end = 0
    for match in WORD.finditer(text):
        if match.group().casefold() in words:
            pieces += [(text[end : match.start()], False), (match.group(), True)]
            end = match.end()
    return [(printable(piece), mark) for piece, mark in [*pieces, (text[end:], False)] if piece]


def clipped(text: str) -> str:
    """The text, cut where it is so long that the page would be too."""
    return text if len(text) <= LONGEST else text[:LONGEST] + " ..."


def shown(texts: list[str] | str) -> str:
    """Texts as one line that steers no terminal or browser; Jinja2 escapes markup afterwards."""
    return printable(clipped(texts if isinstance(texts, str) else " | ".join(texts)))


def signed(value: float, digits: int = 3) -> str:
    """A number with its sign, a true minus in front of negative ones."""
    return f"{value:+.{digits}g}".replace("-", "\N{MINUS SIGN}")


# --- the rest -------------------------------------------------------------------------------------


def suspects(influence: Influence, context: Context) -> dict:
    """Rows to look at first: the lowest margins of rows left out of a replay, or else the highest
    self-influence, and those high for many queries.
    """
    top = []
    replayed = replayed_self_scores(influence.run)
    try:
        scores = replayed[1] if replayed else influence.scores.load("self")
        if scores is not None:
            order = most_helpful(scores)[:SUSPECTS].tolist()
            top = [describe_row(context, row, float(scores[row])) for row in order]
    except Refused as refusal:
        print(f"self-influence is left out: {refusal}")
    high = []
    if (shares := context.everywhere) is not None:
        order = np.argsort(-shares, kind="stable")[:SUSPECTS].tolist()
        high = [describe_row(context, row) for row in order if shares[row] >= MARK]
    return {
        "self_rows": top,
        "left_out": replayed is not None,
        "high_rows": high,
        "self_command": f"{command_of(influence)} --self_influence",
    }


def command_of(influence: Influence) -> str:
    """Command that stores these scores; no absolute path."""
    return (
        f"python analyze.py --dataset_name {influence.run.dataset_name} {influence.settings.flags}"
    )


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
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    took = record["seconds"].get("all")
    return [
        ("Data", f"{run.dataset_name} ({'regression' if task.regression else classes})"),
        ("Rows", f"{len(influence.train):,} for training, {len(influence.queries):,} queries"),
        ("Model", f"{origin}, seed {run.seed}"),
        ("Metrics", "; ".join(metrics) or "none"),
        ("Scores", f"{influence.name}, damping {settings.damping_factor}, {settings.precision}"),
        ("Members", str(len(influence.analyses))),
        ("Time", "not recorded" if took is None else f"{took:.0f} s for factors and scores"),
        ("Made with", f"{versions}; {record['device']}"),
        ("Command", f"{command_of(influence)} --report"),
    ]


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


def lds_words(found: dict | None, command: str) -> str:
    """Sentences on how far the scores may be trusted here.

    found: of `measured`. command: the one that measures.
    """
    if found is None:
        return (
            "Nobody has retrained yet, so nobody knows how true these scores are here; find out "
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


def lds_table(found: dict | None) -> list[tuple[str, str]]:
    """(name, LDS as shown); empty without retrains. found: of `measured`."""
    if found is None:
        return []
    ceiling = found["ceiling"]
    known = f"{ceiling:.2f}" if "share" in found else "not known well enough"
    return [
        ("these scores", f"{found['scores']:.2f}"),
        ("squared TF-IDF cosine, signed by class", f"{found['baseline']:.2f}"),
        ("noise ceiling", "needs repeats" if ceiling is None else known),
    ]


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
