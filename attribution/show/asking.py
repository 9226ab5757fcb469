"""Questions to a run about validation rows and custom queries, and their answers.

Symbols: Q queries, N training rows.
"""

import contextlib
import shutil
from dataclasses import replace

import numpy as np
import torch

from attribution.data.dataset import GlueDataset
from attribution.files import Refused
from attribution.influence.analysis import Influence
from attribution.influence.settings import ScoreSpec, analyze_command
from attribution.influence.stored import replayed_self_scores
from attribution.processes import Processes, choose_device
from attribution.progress import steps
from attribution.replay.words import token_values, words_of
from attribution.show.answer import (
    Answer,
    Context,
    Query,
    Words,
    explain,
    rank_high_everywhere,
)
from attribution.show.listing import View, show
from attribution.show.scored import (
    ScoredRows,
    check_for,
    keep_answers,
    open_scored,
)
from attribution.training.arguments import command_of, custom_flags, queries_flag
from attribution.training.fit import predict
from attribution.training.queries import Questions, ask, read_label, read_queries
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
    everywhere = rank_high_everywhere(scores)
    said = None
    if not queries.task.regression:
        said = influence.said_of_rows().argmax(-1)
    arrays = {"logits": logits, "margins": margins, "everywhere": everywhere, "said": said}
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
        said,
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
            label=data.exact_label(i),
            scores=scores[i],
            target=target,
            logits=questions.logits[i],
            margin=float(margins[i]),
            label_number=float(data.labels[i]),
            members=members and [one[i] for one in members],
        )
        for i, target in enumerate(questions.targets)
    ]


# --- answers ------------------------------------------------------------------------------------


def lds_command(influence: Influence) -> str:
    """Command that measures how true the scores are, without an absolute path."""
    run = influence.run
    command = command_of("evaluate_lds.py", run.dataset_name, run.folder.parent, bare=True)
    limit = queries_flag(influence.arguments.get("max_queries"), influence.settings.first_query)
    return f"{command}{limit}"


def context_of(influence: Influence) -> Context:
    """Facts that all queries share; those that take scores of validation rows if they are kept."""
    with contextlib.suppress(Refused):  # stale scores of the validation rows are not needed
        scored = open_scored(influence.run, influence.settings)
        if scored is not None:
            return scored.context(influence.run)
    replayed = influence.settings.factor_strategy == "replay"
    name = influence.name
    check = check_for(influence.run, name, influence.settings.first_query)
    return Context(influence.train, name, len(influence.analyses), replayed=replayed, check=check)


def answers_to_rows(
    influence: Influence,
    numbers: list[int] | None,
    top_k: int,
    group: str | None = None,
    particular: bool = False,
) -> list[Answer]:
    """Answers to validation rows, or to a group of them, which are scored unless they are.

    Empty on all processes but the main one. numbers, group: see `ScoredRows.answers`. particular:
    rows are ranked by score / sqrt(self-influence).
    """
    scores = influence.compute("pairwise")
    if particular:
        influence.compute("self")
    if scores is None:
        return []
    scored = scored_rows(influence, scores)
    return scored.answers(influence.run, numbers, group, top_k, particular)


def answers_to_questions(influence: Influence, questions: Questions, top_k: int) -> list[Answer]:
    """Answers to custom queries, which are scored unless their scores are stored.

    Empty on all processes but the main one.
    """
    queries = custom_queries(influence, questions)
    context = context_of(influence)
    if len(queries) > 1:  # run_counterfactual.py knows queries that were asked alone
        context = replace(context, check=None)
    return [explain(context, query, top_k) for query in queries]


def replay_command(influence: Influence, questions: Questions) -> str | None:
    """Command that asks a replay the same; None where none that counts is stored, for a replay
    itself, and for several questions.
    """
    run, data = influence.run, questions.data
    if influence.settings.factor_strategy == "replay" or len(data) > 1:
        return None
    if replayed_self_scores(run) is None:  # they are stored with every replay
        return None
    label = data.exact_label(0) if questions.targets[0] == "label" else None
    asked = custom_flags(data.columns_of(0), label)
    return analyze_command(run, ScoreSpec(factor_strategy="replay"), more=asked)


def contrasts(
    influence: Influence,
    texts: list[list[str]],
    against: str,
    top_k: int,
    places: list[int] | None = None,
) -> list[Answer]:
    """Answers about what the model said against one other class: scores of z_s - z_c.

    Empty on all processes but the main one. texts: text columns of each query. against: class by
    name or number. places: of the queries, if they are validation rows. Raises Refused for a class
    that the model said itself, and for two classes.
    """
    task = influence.train.task
    if task.num_labels < 3:
        raise Refused("--contrast is for three classes or more; of two there is no other")
    asked = ask(influence.run, texts, [None] * len(texts))
    data = asked.data
    other = int(read_label(against, task))
    if other in data.labels:
        raise Refused(f"--contrast {against} is what the model said; name another class")
    scores = influence.contrasts(asked, other, places)
    if scores is None:
        return []
    rows = influence.queries
    context = replace(context_of(influence), check=None)
    queries = [
        Query(
            texts=data.columns_of(i),
            label=data.label_name(i),
            scores=scores[i],
            number=None if places is None else rows.first_number + places[i],
            file_row=None if places is None else rows.file_row(places[i]),
            target="predicted",
            logits=logits,
            margin=float(logits[data.labels[i]] - logits[other]),
            label_number=float(data.labels[i]),
            against=task.name_of(other),
        )
        for i, logits in enumerate(asked.logits)
    ]
    return [explain(context, query, top_k) for query in queries]


def with_words(influence: Influence, data: GlueDataset, answers: list[Answer]) -> list[Answer]:
    """The answers, with how much each word links the query and a row, see `replay.words`.

    data: row i is the query of answer i. By the run's own model, along the log-odds of what it said
    against the label, or else against the class that comes next.
    """
    tokenizer = influence.run.reading()["tokenizer"]
    model = influence.run.model(choose_device())
    logits = predict(model, data)
    found = []
    for place, answer in enumerate(steps(answers, "words")):
        rows = [row for side in answer.sides for row in side.rows]
        if not rows:
            found.append(answer)
            continue
        shares = torch.tensor([row.share for row in rows])
        chosen = influence.train.subset([row.row for row in rows])
        query = data.subset([place])
        direction = torch.ones(1)
        if not data.task.regression:
            said, runner_up = logits[place].topk(2).indices.tolist()
            label = int(data.labels[place])
            direction = torch.zeros(data.task.num_labels)
            direction[said] = 1
            direction[runner_up if label == said else label] = -1
        of_query, of_rows = token_values(model, query, chosen, direction, shares, tokenizer)
        words = [
            relative(words_of(row.texts, tokenizer, values))
            for row, values in zip(rows, of_rows, strict=True)
        ]
        linked = iter([replace(row, words=one) for row, one in zip(rows, words, strict=True)])
        sides = [replace(side, rows=[next(linked) for _ in side.rows]) for side in answer.sides]
        of_texts = relative(words_of(answer.texts, tokenizer, of_query))
        found.append(replace(answer, sides=sides, words=of_texts))
    return found


def relative(words: Words) -> Words:
    """Words with values relative to the largest."""
    most = max([value for column in words for _, value in column], default=0.0)
    return [[(text, value / most if most > 0 else 0.0) for text, value in col] for col in words]


def show_scores(influence: Influence, view: View) -> None:
    """Computes scores that are not stored, and prints the answer to the first query."""
    with view.progress():
        scores = influence.compute("pairwise")
        if influence.settings.factor_strategy == "replay":
            influence.compute("self")  # of the same kernels, for labels to look at
        if scores is None:  # not the main process
            return
        print(
            f"{influence.scores.path}: scores of {scores.shape[1]:,} training rows for "
            f"{scores.shape[0]:,} queries"
        )
        scored = scored_rows(influence, scores)
        first = scored.queries.first_number
    show(scored.answers(influence.run, [first], None, view.top_k), view)
