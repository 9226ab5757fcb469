"""Scored validation rows, kept when they are scored: what a listing needs, read without torch, data
set or model.

Beside the scores are answers.json and answers.safetensors: what the model said of each query, and
how many queries have a row at their top. Texts and labels are in influence/rows. Symbols: Q
queries, N training rows, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load_file

from attribution.data.rows import KeptRows, Rows, is_kept, keep_rows
from attribution.files import Refused, intact, read_json, write_arrays, write_json
from attribution.influence.settings import Settings
from attribution.influence.stored import ScoreFolder, folder_of, folder_of_mean
from attribution.show.listing import Context, Query, View, show_queries
from attribution.training.arguments import MAX_QUERIES
from attribution.training.members import replayed_members
from attribution.training.run import Run

if TYPE_CHECKING:
    from attribution.data.dataset import GlueDataset

ROWS = "influence/rows"  # kept rows, in the folder of a run
TENSORS = "answers.safetensors"


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
    everywhere: np.ndarray | None  # (N,) see `listing.rank_high_everywhere`

    def context(self) -> Context:
        """Facts that all queries share."""
        record = self.scores.record("pairwise") or {}
        return Context(
            self.train,
            self.scores.path.name,
            max(len(self.members), 1),
            self.settings.factor_strategy == "replay",
            record.get("likeness"),
            record.get("unit", 1.0),
            self.everywhere,
        )

    def query(self, place: int) -> Query:
        """One validation row with its scores, by its place among the queries.

        Raises Refused if its scores are missing or damaged.
        """
        scores = self.scores.load_row(place)
        if scores is None:
            raise unscored(self.scores.path.name)
        queries = self.queries
        of_members = [one.load_row(place) for one in self.members]
        there = [one for one in of_members if one is not None]
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
        )


def as_predicted(query: Query, class_names: tuple[str, ...]) -> Query:
    """The query, of two classes, with the model's prediction as its target: the scores of a wrong
    prediction are minus those of the label.
    """
    assert query.logits is not None and query.margin is not None
    place = int(query.logits.argmax())
    sign = 1 if place == query.label_number else -1
    return replace(
        query,
        target="predicted",
        label=class_names[place],
        label_number=float(place),
        scores=sign * query.scores,
        margin=sign * query.margin,
        members=query.members and [sign * scores for scores in query.members],
    )


def unscored(name: str) -> Refused:
    """Refusal to show scores of this name, which there are not."""
    return Refused(f"{name} has not been scored yet; run the same command without --query_index")


def keep_answers(
    run: Run,
    scores: ScoreFolder,
    train: GlueDataset,
    queries: GlueDataset,
    arrays: dict[str, np.ndarray | None],
) -> None:
    """Keeps what a listing needs beside the scores. arrays: the last three of `ScoredRows`."""
    rows = {
        name: keep_rows(data, data.columns(), run.folder / ROWS)
        for name, data in (("train", train), ("queries", queries))
    }
    record = {"fingerprint": scores.parts["pairwise"], "rows": rows}
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
    return ScoredRows(
        settings,
        scores,
        [] if settings.single else members,
        train,
        queries,
        arrays["logits"],
        arrays["margins"],
        arrays.get("everywhere"),
    )


def show_stored(
    run: Run, settings: Settings, numbers: list[int], max_queries: int, target: str, view: View
) -> bool:
    """Whether validation rows, by their numbers, could be printed from what was kept.

    max_queries: as asked for. target: "label" or "predicted". Raises Refused for a number that is
    not among the queries.
    """
    scored = open_scored(run, settings)
    if scored is None or (max_queries != MAX_QUERIES and max_queries != len(scored.queries)):
        return False
    if target == "predicted" and run.num_labels != 2:  # scored as custom queries
        return False
    queries = [scored.query(scored.queries.place_of(one, "query_index")) for one in numbers]
    if target == "predicted":
        queries = [as_predicted(query, run.task.class_names) for query in queries]
    show_queries(scored.context(), queries, view)
    return True
