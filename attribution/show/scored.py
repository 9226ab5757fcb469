"""Scored validation rows, kept when they are scored: what a listing needs, read without torch, data
set or model.

Beside the scores are answers.json and answers.safetensors: what the model said of each query, and
how many queries have a row at their top. Texts and labels are in influence/rows. Symbols: Q
queries, N training rows, C classes.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load_file

from attribution.cli import about_minutes
from attribution.data.rows import KeptRows, Rows, is_kept, keep_rows
from attribution.evidence.arguments import MIN_SEEDS
from attribution.evidence.kept_verdicts import stored_verdicts
from attribution.files import Refused, intact, printable, read_json, write_arrays, write_json
from attribution.influence.settings import Settings, analyze_command
from attribution.influence.stored import (
    ScoreFolder,
    folder_of,
    folder_of_mean,
    recorded_queries,
)
from attribution.show import verdicts
from attribution.show.answer import Answer, Check, Context, Query, Verdict, compare, explain
from attribution.show.listing import View, show
from attribution.training.arguments import MAX_QUERIES, command_of, queries_flag
from attribution.training.members import replayed_members
from attribution.training.run import ROWS, Run

if TYPE_CHECKING:
    from attribution.data.dataset import GlueDataset

TENSORS = "answers.safetensors"
ASKED = 3  # queries of a group that a suggested command asks about


@dataclass(frozen=True)
class ScoredRows:
    """Validation rows with their stored scores."""

    settings: Settings
    scores: ScoreFolder
    members: list[ScoreFolder]  # of each checkpoint behind a mean; none of a single checkpoint
    train: Rows
    queries: Rows
    logits: np.ndarray  # (Q, C) of the run's model
    margins: np.ndarray  # (Q,)
    everywhere: np.ndarray | None  # (N,) see `answer.rank_high_everywhere`
    said: np.ndarray | None  # (N,) class that the run's model gives each training row
    other: ScoreFolder | None = None  # of the same rows by another strategy

    def context(self, run: Run, particular: bool = False) -> Context:
        """Facts that all queries share. particular: with the stored self-influence, by whose root
        scores are divided to rank rows that are particular to a query (RelatIF, arXiv:2003.11630).
        """
        record = self.scores.record("pairwise") or {}
        return Context(
            self.train,
            self.scores.path.name,
            max(len(self.members), 1),
            self.settings.factor_strategy == "replay",
            record.get("likeness"),
            self.everywhere,
            self.said,
            self.scores.load("self") if particular else None,
            check_for(run, self.scores.path.name, self.settings.first_query),
        )

    def query(self, place: int) -> Query:
        """One validation row with its scores, by its place among the queries.

        Raises Refused if its scores are missing or damaged.
        """
        scores = self.scores.load_row(place)
        if scores is None:
            raise damaged(self.scores, len(self.queries))
        queries = self.queries
        of_members = [one.load_row(place) for one in self.members]
        there = [one for one in of_members if one is not None]
        also = None
        if self.other and (by_other := self.other.load_row(place)) is not None:
            also = compare(scores, self.other.path.name, by_other)
        return Query(
            queries.columns_of(place),
            queries.label_name(place),
            scores,
            queries.first_number + place,
            queries.file_row(place),
            logits=self.logits[place],
            margin=float(self.margins[place]),
            label_number=float(queries.labels[place]),
            members=there if there and len(there) == len(of_members) else None,
            also=also,
        )

    def answers(
        self,
        run: Run,
        numbers: list[int] | None,
        group: str | None,
        top_k: int,
        particular: bool = False,
    ) -> list[Answer]:
        """Answers to validation rows, by their numbers, or one to the mean over a group of them.

        group: see `places_of`. particular: see `context`. Raises Refused for a number that is
        not among the queries.
        """
        context = self.context(run, particular)
        if group is None:
            places = [self.queries.place_of(one, "query_index") for one in numbers or []]
            scored = with_other(run, self)
            return [explain(context, scored.query(place), top_k) for place in places]
        places = self.places_of(group)
        some = " ".join(str(self.queries.first_number + place) for place in places[:ASKED])
        alone = analyze_command(run, self.settings, more=f"--query_index {some}")
        return [replace(explain(context, self.mean(group, places), top_k), check=alone)]

    def places_of(self, name: str) -> list[int]:
        """Places of a group of queries: "all", those that the model gets "wrong" or "right", those
        of a class, or those of a file with a number in each line.

        Raises Refused for a group that there is not, or that is empty.
        """
        task = self.queries.task
        labels = self.queries.labels
        groups = {"all": np.ones(len(labels), bool)}
        if not task.regression:
            right = self.logits.argmax(-1) == labels
            of_classes = {task.name_of(i): labels == i for i in range(task.num_labels)}
            groups = of_classes | groups | {"wrong": ~right, "right": right}
        if name in groups:
            places = np.flatnonzero(groups[name]).tolist()
        else:
            try:
                numbers = [int(word) for word in Path(name).read_text(encoding="utf-8").split()]
            except OSError as error:
                known = ", ".join([*groups, "a file"])
                raise Refused(f"--query_group {name} is not one of {known}") from error
            except ValueError as error:  # also of bytes that are no text
                raise Refused(
                    f"--query_group: {name} must have the number of a query in each line"
                ) from error
            places = [self.queries.place_of(number, "query_group") for number in numbers]
        if not places:
            raise Refused(f"--query_group {name}: there is no such query")
        return places

    def mean(self, name: str, places: list[int]) -> Query:
        """The mean over the queries at these places, a group of this name.

        Raises Refused if their scores are missing or damaged.
        """
        scores = self.scores.load("pairwise")
        if scores is None:
            raise damaged(self.scores, len(self.queries))
        return Query(
            [f"{len(places):,} of {len(self.queries):,} validation rows ({name})"],
            "their labels",
            scores[places].mean(0),
            target="group",
            margin=float(self.margins[places].mean()),
        )


def counterfactual_command(run: Run, max_queries: int | None, bare: bool = False) -> str:
    """Beginning of a command of run_counterfactual.py. bare: without an absolute path."""
    command = command_of("run_counterfactual.py", run.dataset_name, run.folder.parent, bare)
    return command + queries_flag(max_queries)


def check_for(run: Run, name: str, first_query: int, bare: bool = False) -> Check | None:
    """What checks predictions of the run by the scores of this name; None where it is not
    known how the model was trained, or for queries that do not begin with the first validation row.

    bare: without an absolute path.
    """
    if run.recipe is None or first_query:
        return None
    command = counterfactual_command(run, recorded_queries(run, name), bare)
    if name != "ekfac":
        command += f" --strategies {name}"
    found: dict[tuple[str, ...], list[Verdict]] = {}
    for one in stored_verdicts(run):
        if one["score"] == name:
            verdict = Verdict(verdicts.word(one), verdicts.sentence(one))
            found.setdefault((*one["texts"], one["label"]), []).append(verdict)
    # Seeds with nothing removed, without the rows, and without random ones.
    retrains = 3 * MIN_SEEDS
    time = None
    if measured := run.retraining_seconds:
        time = about_minutes(retrains * measured)
    elif run.training_seconds:
        time = f"{about_minutes(retrains * run.training_seconds)} with one process"
    return Check(command, retrains, time, found)


def damaged(scores: ScoreFolder, max_queries: int) -> Refused:
    """Refusal to show scores that are damaged, with the command that makes them."""
    run = Run.read(scores.folder.parents[1])
    assert run is not None
    command = analyze_command(run, scores.spec, max_queries)
    return Refused(f"{scores.path.name} is damaged; run first: {command}")


def keep_answers(
    run: Run,
    scores: ScoreFolder,
    train: GlueDataset,
    queries: GlueDataset,
    arrays: dict[str, np.ndarray | None],
) -> None:
    """Keeps what a listing needs beside the scores. arrays: the last four of `ScoredRows`."""
    rows = {
        name: keep_rows(data, data.columns(), run.folder / ROWS)
        for name, data in (("train", train), ("queries", queries))
    }
    record = {"fingerprint": scores.parts["pairwise"], "rows": rows, "data": run.data_files()}
    known = {name: values for name, values in arrays.items() if values is not None}
    digest = write_arrays(scores.path / TENSORS, known)
    write_json(scores.path / "answers.json", record | {"files": {TENSORS: digest}})


def open_scored(run: Run, settings: Settings) -> ScoredRows | None:
    """Scored validation rows of the run under these settings; None if they are not kept, or
    damaged.

    Raises Refused if the scores were made from something else.
    """
    checkpoints = [Run.read(place) for place in settings.places(run)]
    there = [one for one in checkpoints if one is not None]
    if len(there) < len(checkpoints):
        return None
    if settings.factor_strategy == "replay":
        there = replayed_members(there)
    place = run.folder / "influence/scores" / settings.name
    record = read_json(place / "answers.json")
    if record is None or not intact(place, record["files"]):
        return None
    folder = run.folder / ROWS
    if not all(is_kept(folder / name) for name in record["rows"].values()):
        return None
    train, queries = (
        KeptRows(folder / record["rows"][of], run.task) for of in ("train", "queries")
    )
    query_rows = record["fingerprint"]["query rows"]
    members = [folder_of(one, settings, len(train), query_rows) for one in there]
    scores = members[0]
    if not settings.single:
        scores = folder_of_mean(run, settings, scores)
    if record["fingerprint"] != scores.parts["pairwise"] or scores.record("pairwise") is None:
        return None
    arrays = load_file(place / TENSORS)
    if "said" not in arrays and not run.task.regression:  # of an earlier version
        return None
    return ScoredRows(
        settings,
        scores,
        [] if settings.single else members,
        train,
        queries,
        arrays["logits"],
        arrays["margins"],
        arrays.get("everywhere"),
        arrays.get("said"),
    )


def with_other(run: Run, scored: ScoredRows) -> ScoredRows:
    """The same with the scores of another strategy beside them, those of the most checkpoints,
    where any count.
    """
    found: list[ScoredRows] = []
    strategy = scored.settings.factor_strategy
    query_rows = scored.scores.parts["pairwise"]["query rows"]
    for place in sorted((run.folder / "influence/scores").glob("*/answers.json")):
        spec = (read_json(place.with_name("pairwise_scores.json")) or {}).get("spec")
        if spec is None or spec["factor_strategy"] == strategy:
            continue
        try:
            other = open_scored(run, Settings(**spec))
        except Refused:
            continue
        if other and other.scores.parts["pairwise"]["query rows"] == query_rows:
            found.append(other)
    if not found:
        return scored
    return replace(scored, other=max(found, key=lambda one: len(one.members)).scores)


def tell_changes(run: Run, scored: ScoredRows) -> bool:
    """Whether some of the run's data are not as they were when they were scored, which is said on
    standard error.
    """
    then = (read_json(scored.scores.path / "answers.json") or {}).get("data", {})
    now = run.data_files()
    changed = [name for name, digest in then.items() if now.get(name) != digest]
    for name in changed:
        moved = run.data_path if name == "dataset_path" else None
        path = printable(moved or str(run.folders[name]))
        print(
            f"{path} {'has changed' if now.get(name) else 'is gone'} since it was scored: the "
            "answer is of the rows as they were (train.py and analyze.py --overwrite take them as "
            "they are)",
            file=sys.stderr,
        )
    return bool(changed)


def show_stored(
    run: Run,
    settings: Settings,
    numbers: list[int] | None,
    group: str | None,
    max_queries: int,
    view: View,
    particular: bool = False,
) -> bool:
    """Whether validation rows, by their numbers, or a group of them could be printed from what was
    kept.

    max_queries: as asked for. particular: see `ScoredRows.context`. Raises Refused for a number
    that is not among the queries.
    """
    scored = open_scored(run, settings)
    if scored is None or (max_queries != MAX_QUERIES and max_queries != len(scored.queries)):
        return False
    if particular and scored.scores.load("self") is None:
        return False
    answers = scored.answers(run, numbers, group, view.top_k, particular)
    if tell_changes(run, scored) and group is None:  # retraining would be refused
        answers = [replace(one, check=None, cost=None) for one in answers]
    show(answers, view)
    return True
