"""Questions to a run: validation rows and queries of one's own, their scores, and what is shown of
them.

Symbols: Q queries, N training rows.
"""

import argparse
import contextlib
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from attribution.data.dataset import GlueDataset
from attribution.evidence.calibration import random_subsets, slope
from attribution.evidence.wrong_labels import row_losses, truth_of
from attribution.files import Refused, read_json
from attribution.influence.analysis import Influence
from attribution.influence.ensemble import open_influence, scores_of_members
from attribution.influence.names import window_name
from attribution.influence.settings import Settings
from attribution.processes import ALONE, Processes
from attribution.show import reading
from attribution.show.explain import Context, Query, everywhere, explain, trust
from attribution.show.reading import check_index
from attribution.training.members import Opened
from attribution.training.queries import Questions, ask, open_trained, predict_run, read_queries
from attribution.training.recipe import queries_flag


def add_asking_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the group that says which queries are asked about, and how the answer is shown."""
    add = parser.add_argument_group("what is asked").add_argument
    add(
        "--query_index",
        type=int,
        nargs="+",
        help="show the most influential rows of these validation rows from stored scores; computes "
        "nothing",
    )
    add(
        "--query_text",
        nargs="+",
        metavar="TEXT",
        help="ask about a text of your own (one a text column of the task)",
    )
    add("--query_label", help="its class, by name or number (the class that the model predicts)")
    add(
        "--query_path",
        help="ask about the rows of a CSV, JSONL or Parquet file; - is standard input",
    )
    add(
        "--query_target",
        choices=("label", "predicted"),
        default="label",
        help="of --query_index: ask about the label, or about what the model predicts (label)",
    )
    add(
        "--report",
        nargs="?",
        type=Path,
        const=Path(),
        metavar="FILE",
        help="write a page about the scores, --query_index's or telling ones (report.html beside "
        "the scores)",
    )
    add(
        "--forget_queries",
        action="store_true",
        help="delete all queries of your own and their scores, then stop",
    )
    add(
        "--format",
        choices=reading.FORMATS,
        help="how queries are shown (table on a terminal, plain where piped)",
    )


def check_asking(values: dict) -> None:
    """Raises Refused for questions that exclude each other."""
    ways = [
        name for name in ("query_index", "query_text", "query_path") if values[name] is not None
    ]
    if len(ways) > 1:
        raise Refused(f"--{ways[0]} and --{ways[1]} exclude each other; ask one at a time")
    if values["report"] is not None and len(ways) > 0 and ways[0] != "query_index":
        raise Refused(f"--{ways[0]} is answered without --report; the next report shows it")
    if values["query_label"] is not None and values["query_text"] is None:
        raise Refused("--query_label belongs to --query_text; a file of queries has a label column")


def read_questions(folder: Path, run: dict, values: dict) -> Questions | None:
    """The queries of one's own that the arguments ask about; None where they ask about none."""
    if values["query_text"] is not None:
        return ask(folder, run, [values["query_text"]], [values["query_label"]])
    return (
        ask(folder, run, *read_queries(values["query_path"], run))
        if values["query_path"] is not None
        else None
    )


def forget_queries(folder: Path) -> None:
    """Deletes queries of one's own with their scores and verdicts, in the run's folder and its
    members'.
    """
    found = [path for path in folder.glob("**/influence/*/*_queries-*") if path.is_dir()]
    found += list(folder.glob("**/influence/kronfluence/*_queries-*"))  # unfinished work, and locks
    found += list((folder / "retraining" / "verdicts").glob("*_queries-*"))
    for path in set(found):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    stale = list(folder.glob("influence/scores/*/report.html")) if found else []
    for path in stale:  # they may show the queries
        path.unlink()
    print(
        f"{len(set(found))} queries or groups of queries are forgotten"
        + " with the reports" * bool(stale)
    )


@dataclass(frozen=True)
class View:
    """How answers are shown."""

    form: str  # one of reading.FORMATS
    top_k: int

    def progress(self):
        """A context in which what is said on the way stays out of JSON."""
        return (
            contextlib.redirect_stdout(sys.stderr)
            if self.form == "json"
            else contextlib.nullcontext()
        )


class Session:
    """A run (or several members) opened for questions under one set of settings.

    hold(influence, kinds): a context in which scores of these kinds are computed. first_query:
    number of the first of the queries among the validation rows.
    """

    def __init__(
        self,
        members: Opened,
        train: GlueDataset,
        queries: GlueDataset,
        settings: Settings,
        arguments: dict,
        hold: Callable,
        processes: Processes = ALONE,
        first_query: int = 0,
    ) -> None:
        self.members, self.train, self.queries = members, train, queries
        self.settings, self.arguments, self.hold, self.processes = (
            settings,
            arguments,
            hold,
            processes,
        )
        self.folder, self.run = members.folder, members.run
        window = window_name(first_query)
        self.influence = open_influence(
            members, train, queries, settings, arguments, window, processes
        )

    def of(self, questions: Questions, alone: bool = False) -> Influence:
        """The analysis of queries of one's own. alone: by this process, whoever else was launched."""
        settings = replace(self.settings, overwrite=False)  # factors and other scores stay
        data, suffix = questions.data, questions.suffix
        processes = ALONE if alone else self.processes
        return open_influence(
            self.members, self.train, data, settings, self.arguments, suffix, processes
        )

    def calibrate(self, bare: bool = False) -> str:
        """The command whose retrains calibrate scores. bare: without an absolute path."""
        asked = self.arguments
        place, limit = (
            self.folder.parent,
            queries_flag(asked.get("max_queries"), asked.get("first_query")),
        )
        where = shlex.quote(place.name if bare and place.is_absolute() else str(place))
        return f"python evaluate_lds.py --dataset_name {self.run['dataset_name']} --checkpoint_dir {where}{limit}"

    def context(self, scores: np.ndarray | None, rich: bool) -> Context:
        """What is the same for all queries. scores: of the validation rows (Q, N), if there are
        any.
        """
        base = Context(self.train, self.influence.result.name, len(self.members))
        if not rich or scores is None:
            return base
        truth = random_subsets(self.folder, self.run, self.queries.fingerprint())
        known = None if truth is None else slope(scores, *truth)
        return replace(base, slope=known, everywhere=everywhere(scores))

    def validation_scores(self) -> np.ndarray | None:
        """Stored scores of the validation rows; None where there are none that fit."""
        try:
            scores = self.influence.stored("pairwise")
        except Refused:
            return None
        return None if scores is None else scores.numpy()

    def row_losses(self) -> np.ndarray | None:
        """(N,): loss of each training row, mean over the members; None where nobody recorded which
        labels are wrong.
        """
        if truth_of(self.train) is None:
            return None
        places = [place for place, _ in self.members.checkpoints]
        return np.mean([row_losses(open_trained(place), self.train) for place in places], axis=0)

    # --- queries ----------------------------------------------------------------------------------

    def queries_of(self, questions: Questions, alone: bool = False) -> list[Query]:
        """Queries of one's own with their scores, which are computed where they are not stored; on
        the main process.

        alone: only this process asks, and the others do not wait for it.
        """
        influence = self.of(questions, alone)
        with self.hold(influence, ["pairwise"]):
            computed = influence.compute("pairwise")
        if computed is None:
            return []
        scores = computed.numpy()
        questions.keep(influence.result)
        each, data = scores_of_members(influence), questions.data
        return [
            Query(
                questions.texts(i),
                data.label_name(i),
                scores[i],
                None,
                questions.targets[i],
                questions.logits[i],
                None if questions.targets[i] == "output" else float(data.labels[i]),
                None if each is None else [one[i] for one in each],
            )
            for i in range(len(data))
        ]

    def rows(self, indices: list[int], scores, rich: bool) -> list[Query]:
        """Validation rows with stored scores: (Q, N), or row number -> (N,). rich: also what the
        model predicts.
        """
        for index in indices:
            check_index(self.queries, index)
        each = scores_of_members(self.influence)
        logits = self.predict(indices) if rich else None
        return [
            Query(
                [self.queries.table[i][column] for column in self.queries.task.columns],
                self.queries.label_name(i),
                scores[i],
                i,
                "label",
                None if logits is None else logits[place],
                float(self.queries.labels[i]),
                None if each is None else [one[i] for one in each],
            )
            for place, i in enumerate(indices)
        ]

    def predict(self, indices: list[int]) -> np.ndarray:
        """Logits (len(indices), C) of the run's model for validation rows."""
        return predict_run(self.folder, self.queries.subset(indices)).numpy()

    def predicted_rows(self, indices: list[int], scores: np.ndarray) -> list[Query]:
        """Validation rows, asked about what the model predicts.

        With two classes a wrong prediction's scores are minus the stored ones; with more, and for a
        regression's output, the row is scored as a query of one's own.
        """
        queries = self.rows(indices, scores, rich=True)
        if self.train.task.num_labels == 2:
            return [turned(query, self.train.task.class_names) for query in queries]
        questions = ask(
            self.folder, self.run, [query.texts for query in queries], [None] * len(queries)
        )
        asked = self.queries_of(questions, alone=True)
        return [replace(query, number=index) for query, index in zip(asked, indices, strict=True)]

    # --- showing ----------------------------------------------------------------------------------

    def show(self, queries: list[Query], scores: np.ndarray | None, view: View) -> None:
        """Prints queries, and what their scores mean. scores: of the validation rows, if there are
        any.
        """
        context = self.context(scores, view.form != "plain")
        for query in queries:
            reading.show(explain(context, query, view.top_k), view.form)
        if view.form == "table":
            print("\n" + "\n".join(reading.wrapped(trust(context, self.calibrate()))))

    def show_rows(self, indices: list[int], target: str, view: View) -> None:
        """Prints validation rows from stored scores. Raises Refused where there are none."""
        if view.form == "plain" and target == "label" and self.members.members.single:
            self.show(self.rows(indices, self.single_rows(indices), rich=False), None, view)
            return
        with view.progress():
            scores = self.influence.stored("pairwise")
            if scores is None:
                raise self.unscored()
            values = scores.numpy()
            if target == "predicted":
                queries = self.predicted_rows(indices, values)
            else:
                queries = self.rows(indices, values, view.form != "plain")
        self.show(queries, values, view)

    def unscored(self) -> Refused:
        """What is said where nothing is stored."""
        name = self.influence.result.name
        return Refused(
            f"{name} has not been scored yet; run the same command without --query_index"
        )

    def single_rows(self, indices: list[int]) -> dict[int, np.ndarray]:
        """Row number -> stored scores (N,) of these queries, read without the others. Raises
        Refused without scores.
        """
        found = {}
        for index in indices:
            check_index(self.queries, index)
            if (row := self.influence.stored_row(index)) is None:
                raise self.unscored()
            found[index] = row.numpy()
        return found

    def show_questions(self, questions: Questions, view: View) -> None:
        """Scores and prints queries of one's own."""
        with view.progress():
            queries = self.queries_of(questions)
            scores = self.validation_scores() if view.form != "plain" else None
        self.show(queries, scores, view)


def turned(query: Query, class_names: tuple[str, ...]) -> Query:
    """The same row of a task of two classes, asked about the class that the model predicts."""
    assert query.logits is not None and query.label_number is not None  # rows of a task of classes
    place = int(query.logits.argmax())
    if place == int(query.label_number):
        return replace(query, target="predicted")
    members = None if query.members is None else [-scores for scores in query.members]
    return replace(
        query,
        target="predicted",
        label=class_names[place],
        label_number=float(place),
        scores=-query.scores,
        members=members,
    )


def stored_questions(folder: Path, name: str) -> list[tuple[Path, dict]]:
    """(folder of scores, what queries.json says) of the queries of one's own that were asked under
    these scores.
    """
    paths = sorted(folder.glob(f"influence/scores/{name}_queries-*/queries.json"))
    return [(path.parent, record) for path in paths if (record := read_json(path))]
