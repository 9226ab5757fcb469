"""Verdicts that are kept below a run's folder, read without torch, data set or model.

Symbols: R retrain seeds.
"""

from pathlib import Path

import numpy as np

from attribution.data.tasks import MARGIN
from attribution.files import read_json, write_json
from attribution.training.run import Run

FORMAT = 2  # of a verdict: with its word


def share_right(correct: np.ndarray) -> float | None:
    """Share of retrains that are right, diverged ones (NaN) left out; None if all diverged."""
    there = correct[np.isfinite(correct)]
    return float(there.mean()) if there.size else None


def save_verdict(run: Run, verdict: dict, suffix: str = "") -> Path:
    """Place of the verdict, which is stored with its fingerprint.

    suffix: end of the name of a custom query's scores, else empty.
    """
    query = suffix or f"_query{verdict['query']}"
    name = f"{verdict['score']}_{verdict['direction']}{query}.json"
    path = run.folder / "retraining" / "verdicts" / name
    fingerprint = fingerprint_of_verdict(run, verdict["recipe"])
    write_json(path, verdict | {"fingerprint": fingerprint}, compact=True)
    return path


def stored_verdicts(run: Run) -> list[dict]:
    """All verdicts on this run's weights, rows and recipe."""
    wanted = fingerprint_of_verdict(run, run.recipe)
    paths = sorted((run.folder / "retraining" / "verdicts").glob("*.json"))
    records = (read_json(path) or {} for path in paths)
    return [record for record in records if record.get("fingerprint") == wanted]


def fingerprint_of_verdict(run: Run, recipe: dict | None) -> dict:
    """Named parts of everything that a verdict was made from. recipe: of its retrains."""
    return {
        "weights": run.weights,
        "training rows": run.train_rows,
        "run's start": run.start_parts(),
        "recipe": recipe,
        "margin": MARGIN,
        "format": FORMAT,
    }
