"""One query and its most influential rows, with everything that is known about them, as plain
values.

`explain` is what the terminal, --format json and the report show. Symbols: K members, Q queries, N
training rows.
"""

from dataclasses import dataclass

import numpy as np
import torch

from attribution.data.dataset import GlueDataset
from attribution.evidence.calibration import Slope
from attribution.evidence.lds import TOP
from pipeline import compute_margin

MIN_QUERIES = 20  # from which it can be said that a row ranks high whatever is asked
MARK = 0.1  # share of the queries from which a row is marked

FORMAT = """--format json prints one object a query:
  query (number or null), texts, label, target (label, predicted or output), prediction, probability, margin,
  scores (their name), members (how many), calibration (null, or value, low, high, masks, repeats, kept),
  helpful and harmful: lists of row, file_row (null, or its number in a file that validation rows were drawn from, from
  0 on), rank (1 is the largest absolute score), score, share (of the summed absolute
  scores), texts, label, flipped (demo only), margin (null, or [value, low, high] that the row adds), agreement (null,
  or members that have it among their top), everywhere (null, or share of queries that have it among their ten)."""


@dataclass(frozen=True)
class Context:
    """What is the same for all queries of one set of scores."""

    train: GlueDataset
    name: str  # of the scores
    num_members: int = 1
    slope: Slope | None = None
    everywhere: np.ndarray | None = (
        None  # (N,) share of the validation queries with the row among their TOP
    )


@dataclass(frozen=True)
class Query:
    """One query with its scores."""

    texts: list[str]
    label: str
    scores: np.ndarray  # (N,)
    number: int | None = None  # of a validation row
    target: str = "label"
    logits: np.ndarray | None = None  # (C,) of the run's model
    label_number: float | None = None  # the class, or a regression's label
    members: list[np.ndarray] | None = None  # (N,) of each member


def everywhere(scores: np.ndarray) -> np.ndarray | None:
    """(N,): for each row, the share of the queries (Q, N) that have it among their TOP absolute
    scores.

    None for fewer than MIN_QUERIES queries, or hardly more rows than TOP.
    """
    if len(scores) < MIN_QUERIES or scores.shape[1] <= 2 * TOP:
        return None
    top = np.argpartition(-np.abs(scores), TOP, axis=1)[:, :TOP]
    return np.bincount(top.ravel(), minlength=scores.shape[1]) / len(scores)


def explain(context: Context, query: Query, top_k: int) -> dict:
    """Everything that is shown of one query; see FORMAT."""
    order = np.argsort(-query.scores.astype(np.float64), kind="stable")
    ranks = np.empty(len(order), np.int64)
    ranks[np.argsort(-np.abs(query.scores), kind="stable")] = np.arange(1, len(order) + 1)
    sides = {"helpful": order[:top_k], "harmful": order[::-1][:top_k]}
    result = {
        "query": query.number,
        "texts": query.texts,
        "label": query.label,
        "target": query.target,
        **predicted(context, query),
        "scores": context.name,
        "members": context.num_members,
        "calibration": context.slope.record() if context.slope else None,
    }
    total = float(np.abs(query.scores).sum(dtype=np.float64)) or 1.0
    for side, rows in sides.items():
        tops = None
        if query.members is not None:
            sign = 1 if side == "helpful" else -1
            tops = [
                set(np.argsort(-sign * scores, kind="stable")[:top_k].tolist())
                for scores in query.members
            ]
        result[side] = [
            describe_row(context, int(row), float(query.scores[row]), total)
            | {
                "rank": int(ranks[row]),
                "agreement": None if tops is None else sum(int(row) in top for top in tops),
            }
            for row in rows
        ]
    return result


def describe_row(context: Context, row: int, score: float, total: float | None = None) -> dict:
    """One training row with its score. total: summed absolute scores of the query."""
    train = context.train
    flips = "flipped" in train.table.column_names
    return {
        "row": row,
        "file_row": train.file_row(row),
        "score": score,
        "share": abs(score) / total if total else None,
        "texts": [train.table[row][column] for column in train.task.columns],
        "label": train.label_name(row),
        "flipped": bool(train.table[row]["flipped"]) if flips else None,
        "margin": context.slope.margin(score) if context.slope else None,
        "everywhere": None if context.everywhere is None else float(context.everywhere[row]),
    }


def predicted(context: Context, query: Query) -> dict:
    """Prediction, its probability, and the margin of what is asked about; None where no model was
    asked.
    """
    if query.logits is None:
        return {"prediction": None, "probability": None, "margin": None}
    logits, task = torch.from_numpy(np.asarray(query.logits, np.float32))[None], context.train.task
    if task.regression:
        label = torch.tensor([np.nan if query.label_number is None else query.label_number])
        value = float(logits[0, 0])
        return {
            "prediction": f"{value:.2f}",
            "probability": None,
            "margin": float(compute_margin(logits, label)[0]),
        }
    place = int(logits[0].argmax())
    name = task.class_names[place] if task.class_names else str(place)
    margin = None
    if query.label_number is not None:
        margin = float(compute_margin(logits, torch.tensor([int(query.label_number)]))[0])
    return {
        "prediction": name,
        "probability": float(logits.softmax(-1)[0, place]),
        "margin": margin,
    }


def trust(context: Context, command: str) -> list[str]:
    """Sentences about what scores mean here. command: what would calibrate them."""
    slope = context.slope
    if slope is None:
        return [
            "A score has no unit: compare it with others of the same query. What it is worth in "
            f"units of the margin is measured by: {command}"
        ]
    measured = (
        f"{slope.masks} random subsets that keep {slope.kept:.0%} of the rows, {slope.repeats} "
        "retrains each, and is extrapolated to single rows"
    )
    if not slope.usable:
        what = "is negative" if slope.high < 0 else "cannot be told from 0"
        return [
            f"No margin is shown: the slope of margins on scores {what} (measured on {measured})."
        ]
    return [
        "The margin is what a row adds to the query's: its score times a slope that was measured "
        f"on {measured}; brackets are 95 % intervals of the slope alone. Of a single row the size "
        "is not to be relied on; run_counterfactual.py --targets measures it."
    ]
