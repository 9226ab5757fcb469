"""Questions to a run about validation rows and custom queries, and their answers.

Symbols: Q queries, N training rows.
"""

import contextlib
import shlex
import shutil
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from attribution.cli import Parser, refuse_idle
from attribution.evidence.wrong_labels import row_losses, truth_of
from attribution.files import Refused, printable
from attribution.influence.analysis import Influence
from attribution.influence.stored import replayed_self_scores
from attribution.processes import Processes, choose_device
from attribution.show import listing
from attribution.show.listing import Context, Query
from attribution.training.queries import Questions, ask, predict_run, read_queries
from attribution.training.run import Run, queries_flag

BESIDE_SCORES = True  # value of --report without a file
# Arguments of computing, without an effect where stored scores are read.
OF_COMPUTING = {"overwrite", "profile"}


def add_asking_arguments(parser: Parser) -> None:
    """Adds the group of arguments about questions and the form of their answers."""
    add = parser.group("queries and answers").add_argument
    add(
        "--query_index",
        type=int,
        nargs="+",
        help="show the most influential rows of these validation rows, from stored scores",
    )
    add("--query_text", nargs="+", metavar="TEXT", help="a custom query: one text a text column")
    add("--query_label", help="its class, by name or number (the predicted class)")
    add("--query_path", help="custom queries in a CSV, JSONL or Parquet file; - is standard input")
    add(
        "--query_target",
        choices=("label", "predicted"),
        default="label",
        help="target of --query_index: the label or the predicted class (label)",
    )
    add(
        "--report",
        nargs="?",
        type=Path,
        const=BESIDE_SCORES,
        metavar="FILE",
        help="write a page about --query_index or telling queries (report.html beside the scores)",
    )
    add(
        "--forget_queries",
        action="store_true",
        help="delete all custom queries and their scores, then stop",
    )
    add(
        "--format",
        choices=listing.FORMATS,
        help="form of the answer (table on a terminal, else plain)",
    )
    add("--top_k", type=int, default=5, help="rows shown in each direction (5)")
    add(
        "--self_influence",
        action="store_true",
        help="score every training row against itself; show the top rows",
    )


def check_asking(values: dict, given: set[str]) -> None:
    """Raises Refused for questions that exclude each other, and for arguments that a question
    would ignore.

    given: names of the arguments on the command line.
    """
    if values["forget_queries"]:
        refuse_idle(given - {"forget_queries", "dataset_name", "checkpoint_dir"}, "forget_queries")
    ways = [
        name for name in ("query_index", "query_text", "query_path") if values[name] is not None
    ]
    if len(ways) > 1:
        raise Refused(f"--{ways[0]} and --{ways[1]} exclude each other; ask one at a time")
    if values["report"] is not None and ways and ways[0] != "query_index":
        raise Refused(f"--{ways[0]} is answered without --report; the next report shows it")
    if values["query_label"] is not None and values["query_text"] is None:
        raise Refused("--query_label belongs to --query_text; a file of queries has a label column")
    if values["report"] is not None:
        if values["self_influence"]:
            raise Refused("--self_influence is computed without --report; the next report shows it")
        refuse_idle(given & {"format", "query_target", *OF_COMPUTING}, "report")
    for way in ways:
        refuse_idle(given & {"self_influence"}, way)
    if values["query_index"] is not None:
        refuse_idle(given & OF_COMPUTING, "query_index")
    elif "query_target" in given:
        raise Refused("--query_target belongs to --query_index")


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


@dataclass(frozen=True)
class View:
    """Form of the answers."""

    form: str  # one of listing.FORMATS
    top_k: int

    @property
    def rich(self) -> bool:
        """Whether predictions, margins and marks are shown."""
        return self.form != "plain"

    def progress(self):
        """Context that prints progress to standard error where JSON goes to standard output."""
        if self.form == "json":
            return contextlib.redirect_stdout(sys.stderr)
        return contextlib.nullcontext()


# --- queries with their scores ------------------------------------------------------------------


def validation_queries(
    influence: Influence,
    indices: list[int],
    scores: Mapping[int, np.ndarray] | np.ndarray,
    rich: bool,
) -> list[Query]:
    """Validation rows with their scores.

    indices: their places among the queries. scores: (Q, N), or place -> (N,). rich: with the
    model's predictions.
    """
    queries = influence.queries
    members = influence.of_members()
    logits = predict_run(influence.run, queries.subset(indices)).numpy() if rich else None
    return [
        Query(
            texts=[queries.table[i][column] for column in queries.task.columns],
            label=queries.label_name(i),
            scores=scores[i],
            number=queries.first_number + i,
            file_row=queries.file_row(i),
            logits=None if logits is None else logits[place],
            label_number=float(queries.labels[i]),
            members=members and [one[i] for one in members],
        )
        for place, i in enumerate(indices)
    ]


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
    return [
        Query(
            texts=questions.texts(i),
            label=data.label_name(i),
            scores=scores[i].numpy(),
            target=target,
            logits=questions.logits[i],
            label_number=float(data.labels[i]),
            members=members and [one[i] for one in members],
        )
        for i, target in enumerate(questions.targets)
    ]


def predicted_queries(influence: Influence, indices: list[int], scores: np.ndarray) -> list[Query]:
    """Validation rows with the model's prediction as the target. scores: (Q, N).

    With two classes the scores of a wrong prediction are minus the stored ones. With more, and for
    a regression's output, the row is scored as a custom query.
    """
    queries = validation_queries(influence, indices, scores, rich=True)
    task = influence.train.task
    if task.num_labels != 2:
        questions = ask(influence.run, [query.texts for query in queries], [None] * len(queries))
        found = custom_queries(influence, questions, alone=True)
        return [
            replace(query, number=asked.number, file_row=asked.file_row)
            for query, asked in zip(found, queries, strict=True)
        ]
    targeted = []
    for query in queries:
        assert query.logits is not None
        place = int(query.logits.argmax())
        sign = 1 if place == query.label_number else -1
        targeted.append(
            replace(
                query,
                target="predicted",
                label=task.class_names[place],
                label_number=float(place),
                scores=sign * query.scores,
                members=query.members and [sign * scores for scores in query.members],
            )
        )
    return targeted


# --- answers ------------------------------------------------------------------------------------


def lds_command(influence: Influence, bare: bool = False) -> str:
    """Command that measures how true the scores are. bare: without an absolute path."""
    place = influence.run.folder.parent
    where = shlex.quote(place.name if bare and place.is_absolute() else str(place))
    limit = queries_flag(influence.arguments.get("max_queries"), influence.settings.first_query)
    name = influence.run.dataset_name
    return f"python evaluate_lds.py --dataset_name {name} --checkpoint_dir {where}{limit}"


def context_of(influence: Influence, scores: np.ndarray | None, rich: bool) -> Context:
    """Facts that all queries share. scores: of the validation rows (Q, N), if stored."""
    replayed = influence.settings.factor_strategy == "replay"
    context = Context(influence.train, influence.name, len(influence.analyses), replayed=replayed)
    if not rich or scores is None:
        return context
    record = influence.scores.record("pairwise") or {}
    everywhere = listing.rank_high_everywhere(scores)
    found = {"likeness": record.get("likeness"), "unit": record.get("unit", 1.0)}
    return replace(context, everywhere=everywhere, **found)


def show(influence: Influence, queries: list[Query], scores: np.ndarray | None, view: View) -> None:
    """Prints queries and the meaning of their scores. scores: of the validation rows (Q, N)."""
    context = context_of(influence, scores, view.rich)
    for query in queries:
        listing.show(listing.explain(context, query, view.top_k), view.form)
    if view.form == "table":
        meaning = listing.meaning_of_scores(context)
        print("\n" + textwrap.fill(meaning, max(listing.terminal_width(), 40)))


def show_validation_rows(influence: Influence, indices: list[int], target: str, view: View) -> None:
    """Prints validation rows, by their places, from stored scores. target: "label" or "predicted".

    Raises Refused if there are no scores.
    """
    unscored = Refused(
        f"{influence.name} has not been scored yet; run the same command without --query_index"
    )
    scores = None
    with view.progress():
        if not view.rich and target == "label" and influence.settings.single:
            rows = {}
            for index in indices:  # read one by one, without the rest of a large file
                row = influence.scores.load_row(index)
                if row is None:
                    raise unscored
                rows[index] = row.numpy()
            queries = validation_queries(influence, indices, rows, rich=False)
        else:
            stored = influence.scores.load("pairwise")
            if stored is None:
                raise unscored
            scores = stored.numpy()
            if target == "predicted":
                queries = predicted_queries(influence, indices, scores)
            else:
                queries = validation_queries(influence, indices, scores, view.rich)
    show(influence, queries, scores, view)


def show_questions(influence: Influence, questions: Questions, view: View) -> None:
    """Scores and prints custom queries."""
    scores = None
    with view.progress():
        queries = custom_queries(influence, questions)
        if view.rich:
            with contextlib.suppress(Refused):  # stale scores of the validation rows are not needed
                scores = influence.scores.load("pairwise")
    show(influence, queries, None if scores is None else scores.numpy(), view)


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
    if self_scores is None:
        values = scores.numpy()
        show(influence, validation_queries(influence, [0], values, view.rich), values, view)
        return
    losses = None
    if view.form != "json" and truth_of(influence.train) is not None:
        models = [one.run.model(choose_device()) for one in influence.analyses]
        losses = np.mean([row_losses(model, influence.train) for model in models], axis=0)
    context = context_of(influence, None, rich=False)
    if (
        not context.replayed
        and view.form != "json"
        and (replayed := replayed_self_scores(influence.run))
    ):
        name, margins = replayed
        first = replace(context, name=name, replayed=True)
        listing.show_self_influence(first, torch.from_numpy(margins), view.top_k, view.form)
    listing.show_self_influence(context, self_scores, view.top_k, view.form, losses)
