"""Questions to a run about validation rows and custom queries, and their answers.

Symbols: Q queries, N training rows.
"""

import contextlib
import json
import shlex
import shutil
from dataclasses import replace

import numpy as np
import torch

from attribution.data.dataset import GlueDataset
from attribution.files import Refused, printable
from attribution.influence.analysis import Influence
from attribution.influence.stored import most_helpful, replayed_self_scores
from attribution.processes import Processes, choose_device
from attribution.show import listing
from attribution.show.listing import (
    Context,
    Query,
    View,
    block_lines,
    describe_row,
    plain_row,
    show_queries,
    terminal_width,
)
from attribution.show.scored import ScoredRows, as_predicted, keep_answers, open_scored, unscored
from attribution.training.arguments import queries_flag
from attribution.training.queries import Questions, ask, read_queries
from attribution.training.run import Run
from pipeline import compute_margin


def read_questions(run: Run, values: dict, processes: Processes) -> Questions | None:
    """Custom queries among the arguments (name -> value); None if there are none.

    processes: of this launch, of which only the main one has standard input.
    """
    if values["query_text"] is not None:
        return ask(run, [values["query_text"]], [values["query_label"]])
    if values["query_path"] is not None:
        return ask(run, *processes.from_main(lambda: read_queries(values["query_path"], run)))
    return None


def forget_queries(run: Run) -> None:
    """Deletes custom queries with their scores and verdicts, of the run and of its members."""
    folder = run.folder
    found = {
        *folder.glob("**/influence/*/*_queries-*"),  # also unfinished work, and locks
        *folder.glob("retraining/verdicts/*_queries-*"),
    }
    for path in found:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    reports = list(folder.glob("influence/scores/*/report.html")) if found else []
    for path in reports:  # they may show the queries
        path.unlink()
    with_reports = " with the reports" if reports else ""
    print(f"{len(found)} queries or groups of queries are forgotten{with_reports}")


# --- queries with their scores ------------------------------------------------------------------


def margins_of(logits: np.ndarray, queries: GlueDataset) -> np.ndarray:
    """Margins (Q,) of logits (Q, C)."""
    return compute_margin(torch.from_numpy(logits), torch.from_numpy(queries.labels)).numpy()


def scored_rows(influence: Influence, scores: np.ndarray) -> ScoredRows:
    """Validation rows with their scores (Q, N), kept beside them for later questions."""
    run = influence.run
    found = open_scored(run, influence.settings)
    if found is not None:
        return found
    queries = influence.queries
    logits = influence.said()
    margins = margins_of(logits, queries)
    everywhere = listing.rank_high_everywhere(scores)
    arrays = {"logits": logits, "margins": margins, "everywhere": everywhere}
    with contextlib.suppress(OSError):  # of a folder that may only be read
        keep_answers(run, influence.scores, influence.train, queries, arrays)
    settings = influence.settings
    members = [] if settings.single else [one.scores for one in influence.analyses]
    return ScoredRows(
        settings,
        influence.scores,
        members,
        influence.train,
        queries,
        logits,
        margins,
        everywhere,
    )


def custom_queries(influence: Influence, questions: Questions, alone: bool = False) -> list[Query]:
    """Custom queries with their scores, which are computed unless stored.

    Empty on all processes but the main one. alone: only this process computes, not all of
    its launch.
    """
    custom = influence.of_questions(questions, alone)
    scores = custom.compute("pairwise")
    if scores is None:
        return []
    questions.save(custom.scores.path)
    members = custom.of_members()
    data = questions.data
    margins = margins_of(questions.logits, data)
    return [
        Query(
            texts=data.columns_of(i),
            label=data.label_name(i),
            scores=scores[i],
            target=target,
            logits=questions.logits[i],
            margin=float(margins[i]),
            label_number=float(data.labels[i]),
            members=members and [one[i] for one in members],
        )
        for i, target in enumerate(questions.targets)
    ]


def predicted_queries(influence: Influence, queries: list[Query]) -> list[Query]:
    """Validation rows with the model's prediction as the target.

    With more than two classes, and for a regression's output, they are scored as custom queries.
    """
    task = influence.train.task
    if task.num_labels == 2:
        return [as_predicted(query, task.class_names) for query in queries]
    questions = ask(influence.run, [query.texts for query in queries], [None] * len(queries))
    found = custom_queries(influence, questions, alone=True)
    return [
        replace(query, number=asked.number, file_row=asked.file_row)
        for query, asked in zip(found, queries, strict=True)
    ]


# --- answers ------------------------------------------------------------------------------------


def lds_command(influence: Influence, bare: bool = False) -> str:
    """Command that measures how true the scores are. bare: without an absolute path."""
    place = influence.run.folder.parent
    where = shlex.quote(place.name if bare and place.is_absolute() else str(place))
    limit = queries_flag(influence.arguments.get("max_queries"), influence.settings.first_query)
    name = influence.run.dataset_name
    return f"python evaluate_lds.py --dataset_name {name} --checkpoint_dir {where}{limit}"


def plain_context(influence: Influence) -> Context:
    """Facts that all queries share, without those that take scores of validation rows."""
    replayed = influence.settings.factor_strategy == "replay"
    return Context(influence.train, influence.name, len(influence.analyses), replayed=replayed)


def show_validation_rows(influence: Influence, places: list[int], target: str, view: View) -> None:
    """Prints validation rows, by their places, from stored scores. target: "label" or "predicted".

    Raises Refused if there are no scores.
    """
    with view.progress():
        scores = influence.scores.load("pairwise")
        if scores is None:
            raise unscored(influence.name)
        scored = scored_rows(influence, scores)
        queries = [scored.query(place) for place in places]
        if target == "predicted":
            queries = predicted_queries(influence, queries)
    show_queries(scored.context(), queries, view)


def show_questions(influence: Influence, questions: Questions, view: View) -> None:
    """Scores and prints custom queries."""
    with view.progress():
        queries = custom_queries(influence, questions)
        context = plain_context(influence)
        with contextlib.suppress(Refused):  # stale scores of the validation rows are not needed
            scored = open_scored(influence.run, influence.settings)
            context = scored.context() if scored else context
    show_queries(context, queries, view)


def show_scores(influence: Influence, self_influence: bool, view: View) -> None:
    """Computes scores that are not stored; prints the first query, or the top self-influence."""
    with view.progress():
        scores = influence.compute("pairwise")
        self_scores = influence.compute("self") if self_influence else None
        if scores is None:  # not the main process
            return
        print(
            f"{influence.scores.path}: scores of {scores.shape[1]:,} training rows for "
            f"{scores.shape[0]:,} queries"
        )
        for sentence in influence.run.doubts:
            print(printable(sentence))
        scored = scored_rows(influence, scores)
    if self_scores is None:
        show_queries(scored.context(), [scored.query(0)], view)
        return
    losses = None
    if view.form != "json" and influence.train.wrong is not None:
        from attribution.evidence.wrong_labels import row_losses  # sklearn takes a second

        models = [one.run.model(choose_device()) for one in influence.analyses]
        losses = np.mean([row_losses(model, influence.train) for model in models], axis=0)
    context = plain_context(influence)
    if (
        not context.replayed
        and view.form != "json"
        and (replayed := replayed_self_scores(influence.run))
    ):
        name, margins = replayed
        first = replace(context, name=name, replayed=True)
        show_self_influence(first, margins, view.top_k, view.form)
    show_self_influence(context, self_scores, view.top_k, view.form, losses)


SELF_KEYS = ("row", "file_row", "rank", "score", "share", "texts", "label", "flipped")


def show_self_influence(
    context: Context,
    scores: np.ndarray,
    top_k: int,
    form: str = "plain",
    losses: np.ndarray | None = None,
) -> None:
    """Prints the rows with the highest self-influence, and how many recorded wrong labels it finds
    (not in JSON, see FORMAT). That of a replay is minus the margin of the row where it was left
    out.

    scores: self-influence (N,). form: one of FORMATS. losses: of the rows (N,), the ranking that is
    compared with it.
    """
    order = most_helpful(scores)
    total = float(np.abs(scores).sum(dtype=np.float64)) or 1.0
    rows = []
    for rank, row in enumerate(order[:top_k].tolist(), 1):
        score = float(scores[row])
        more = {"rank": rank, "share": abs(score) / total, "agreement": None}
        rows.append(describe_row(context, row, score) | more)
    if form == "json":
        for row in rows:
            about = {"scores": context.name, "members": context.num_members}
            print(json.dumps({key: row[key] for key in SELF_KEYS} | about))
        return
    ranking = "self-influence"
    title = "highest self-influence"
    if context.replayed:
        ranking = "margin left out"
        title = "lowest margins of rows left out of a replayed training (score: minus that margin)"
    if form == "table":
        lines = block_lines({title: rows}, context.num_members, terminal_width())
    else:
        lines = [f"{title}:", *map(plain_row, rows)]
    print("", *lines, sep="\n")
    wrong = context.train.wrong
    if wrong is None:
        return
    top = min(50, len(wrong))
    print(
        f"  {wrong[order[:top]].sum()} of the top {top} rows by {ranking} are planted "
        f"flips; chance gives {top * wrong.mean():.1f}"
    )
    if losses is None:
        return
    from attribution.evidence import wrong_labels  # sklearn takes a second to import
    from attribution.show import tables

    print(
        f"\nwho finds the {wrong.sum():,} wrong labels of {len(wrong):,} rows (95 % intervals over "
        "rows):"
    )
    rankings = {ranking: scores, "loss of the row": losses}
    found = {name: wrong_labels.found(ranking, wrong) for name, ranking in rankings.items()}
    print(tables.wrong_labels_text(found))
