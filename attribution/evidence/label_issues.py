"""Labels to look at: training rows with what a model says of them, the most suspicious first.

Columns have the names of cleanlab's. Symbols: N training rows, C classes, O outputs of a row: the
log-odds for two classes, else the logits of C classes, or a regression's output.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from attribution.data.dataset import GlueDataset
from attribution.data.duplicates import Duplicate, Relatives
from attribution.files import read_json
from attribution.influence.analysis import Influence
from attribution.influence.stored import most_helpful, read_outputs, replayed_self_scores
from attribution.replay.descent import outputs_of
from attribution.training.queries import predict_run


@dataclass(frozen=True)
class LabelIssue:
    """A training row, and what a model says of its label."""

    row: int
    file_row: int | None
    texts: list[str]
    given_label: str | float
    predicted_label: str | float
    label_score: float  # probability of the given label; of a regression minus the squared error
    is_label_issue: bool | None  # whether another label is predicted; None: a regression
    neighbours: list[int]
    duplicates: list[Duplicate]
    validation_duplicates: list[Duplicate]  # their rows are numbers of validation rows


@dataclass(frozen=True)
class Ranking:
    """Training rows in the order in which their labels are to be looked at."""

    name: str  # replay, loss or self_influence
    outputs: np.ndarray  # (N, O)
    order: np.ndarray  # (N,) rows, the most suspicious first
    scores: str | None = None  # name of the scores behind it; the loss has none
    seen: bool = True  # whether the checkpoints behind it were trained on all of these labels


def rank(influence: Influence, name: str) -> Ranking | None:
    """The ranking of this name; "best": by a replay that is asked for or stored, else by the loss;
    "stored": by a replay that is stored, else by the loss.

    None on all processes but the main one. A replay says of a row what the model would have said
    without it. The loss is that of models that have seen the row, by the mean of their outputs.
    """
    train = influence.train
    main = influence.processes.main
    scores = None
    replayed = influence.settings.factor_strategy == "replay" and name != "stored"
    if replayed or name == "self_influence":
        scores = influence.compute("self")
    if not main:
        return None
    folder = influence.scores.place("self")
    seen = influence.settings.member_share == 1
    if name in ("best", "stored") and not replayed:
        found = replayed_self_scores(influence.run)
        replayed = found is not None
        folder = influence.scores.folder / found[0] if found else folder
    if replayed:
        outputs = read_outputs(folder)
        seen = (read_json(folder / "self_scores.json") or {})["spec"]["member_share"] == 1
        order = most_helpful(-scores_of(outputs, train))
        return Ranking("replay", outputs, order, folder.name, seen)
    logits = [predict_run(one.run, train) for one in influence.analyses]
    outputs = (torch.stack(logits).mean(0) @ outputs_of(train.task.num_labels)).numpy()
    if scores is not None:
        return Ranking("self_influence", outputs, most_helpful(scores), folder.name, seen)
    return Ranking("loss", outputs, most_helpful(-scores_of(outputs, train)), seen=seen)


def log_probabilities(outputs: np.ndarray) -> np.ndarray:
    """Log-probabilities (N, C) of the classes, float64. outputs: (N, O), O = 1 for two classes."""
    logits = outputs.astype(np.float64)
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], 1)
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def scores_of(outputs: np.ndarray, train: GlueDataset) -> np.ndarray:
    """(N,), low where a label is suspicious: log-probability of the given label, or minus the
    squared error of a regression. outputs: (N, O).
    """
    if train.task.regression:
        return -((outputs[:, 0].astype(np.float64) - train.labels) ** 2)
    return log_probabilities(outputs)[np.arange(len(train)), train.labels]


def turned(queries: GlueDataset, found: list[Relatives]) -> dict[int, list[Duplicate]]:
    """Training row -> its duplicates among the validation rows, by their numbers.

    found: (Q,) relatives of these among the training rows.
    """
    of_rows: dict[int, list[Duplicate]] = {}
    for place, relative in enumerate(found):
        for one in relative.duplicates:
            number = queries.first_number + place
            of_rows.setdefault(one.row, []).append(replace(one, row=number))
    return of_rows


def label_issues(
    train: GlueDataset,
    ranking: Ranking,
    relatives: list[Relatives],
    of_validation: dict[int, list[Duplicate]] | None = None,
) -> list[LabelIssue]:
    """(N,): all training rows in the order of the ranking. relatives: (N,) of
    `duplicates.relatives`. of_validation: of `turned`; None: not looked for.
    """
    of_validation = of_validation or {}
    task = train.task
    scores = scores_of(ranking.outputs, train)
    if task.regression:
        given = train.labels.tolist()
        predicted = ranking.outputs[:, 0].tolist()
    else:
        places = log_probabilities(ranking.outputs).argmax(1)
        scores = np.exp(scores)
        given = [train.label_name(row) for row in range(len(train))]
        predicted = [task.name_of(place) for place in places]
    texts = list(zip(*train.columns(), strict=True))
    return [
        LabelIssue(
            row=row,
            file_row=train.file_row(row),
            texts=list(texts[row]),
            given_label=given[row],
            predicted_label=predicted[row],
            label_score=float(scores[row]),
            is_label_issue=None if task.regression else given[row] != predicted[row],
            neighbours=relatives[row].neighbours,
            duplicates=relatives[row].duplicates,
            validation_duplicates=of_validation.get(row, []),
        )
        for row in ranking.order.tolist()
    ]
