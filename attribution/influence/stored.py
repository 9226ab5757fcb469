"""Stored scores: how they are written, which of them belong to a run, and their values."""

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from attribution.files import (
    differing_parts,
    intact,
    others,
    queries_of,
    read_json,
    sha256_of,
    write_json,
    write_tensors,
)
from attribution.influence.names import CORRECTED, is_own, window_name, without_window
from attribution.influence.result import KEY, row_checksums
from attribution.training.members import Members, fingerprint_of


def write_scores(path: Path, scores: torch.Tensor, fingerprint: dict, beside: dict) -> None:
    """Writes scores, float32 (Q, N) or (N,), then the record that makes them count.

    path: of the record, a JSON; the tensor lies beside it. beside: what else the record says.
    """
    path.unlink(missing_ok=True)
    place = path.with_suffix(".safetensors")
    write_tensors(place, {KEY: scores})
    write_json(
        path,
        {
            "fingerprint": fingerprint,
            "files": {place.name: sha256_of(place)},
            "shape": list(scores.shape),
            "rows": row_checksums(scores) if scores.dim() == 2 else None,
            **beside,
        },
    )


def stored_scores(
    folder: Path, run: dict, query_rows: str, first_query: int = 0, *, corrected: bool = True
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(name -> scores (Q, N), name -> why they do not count) of all scores that are stored in the
    run's folder.

    Scores count where they were made from the run's weights and rows, and from the queries with
    this fingerprint, of which the first is this validation row. Names say nothing of where queries
    begin. corrected: also those that retrains have corrected.
    """
    found = look_up(folder, run, query_rows, first_query, corrected=corrected)
    stale = {name: why for name, (_, why) in found.items() if why}
    return {name: values_of(path) for name, (path, why) in found.items() if not why}, stale


def look_up(
    folder: Path, run: dict, query_rows: str, first_query: int = 0, *, corrected: bool = True
) -> dict[str, tuple[Path, str | None]]:
    """Name -> (JSON of the scores, why they do not count), as `stored_scores` has it; no scores are
    read.

    Scores of one's own queries, and of validation rows that begin elsewhere, are left out.
    """
    found = {}
    for path in sorted((folder / "influence" / "scores").glob("*/pairwise_scores.json")):
        name, begin = without_window(path.parent.name)
        if (
            not is_own(name)
            and begin == first_query
            and (corrected or not name.endswith(CORRECTED))
        ):
            found[name] = path, why_stale(path, folder, run, query_rows)
    return found


def recorded_queries(folder: Path, name: str) -> int | None:
    """The --max_queries of the stored scores of this name; None where there are none, or nobody
    recorded it.
    """
    record = read_json(folder / "influence" / "scores" / name / "pairwise_scores.json") or {}
    asked = str(record.get("arguments", {}).get("max_queries"))
    return int(asked) if asked.isdigit() else None


def stored_self_influence(folder: Path, run: dict) -> dict[str, np.ndarray]:
    """Name -> self-influence (N,) that analyze.py stored of this run's weights and rows."""
    paths = sorted((folder / "influence" / "scores").glob("*/self_scores.json"))
    return {path.parent.name: values_of(path) for path in paths if not why_stale(path, folder, run)}


def why_stale(path: Path, folder: Path, run: dict, query_rows: str | None = None) -> str | None:
    """Why stored scores do not count for this run; None where they do.

    path: their JSON. query_rows: the fingerprint of the queries; None for scores without any.
    """
    record = read_json(path) or {}
    made = record.get("fingerprint", {})
    wanted = {"weights": run["weights"], "training rows": run["train_rows"]}
    wanted |= {"query rows": query_rows} if query_rows else {}
    if parts := differing_parts({part: made.get(part) for part in wanted}, wanted):
        return f"its scores were made from {others(parts)}{queries_of(record, parts)}"
    if "members" in made:
        members = fingerprint_of(Members.of(path.parent.name), folder, run)
        if made["members"] != members["members"]:
            return "its scores were made from other members"
        if made.get("mean") != members.get("mean"):
            return "its mean over members was taken in another way; run analyze.py --overwrite"
    return (
        None
        if intact(path.parent, record.get("files"))
        else "its file is damaged; run analyze.py again"
    )


def values_of(path: Path) -> np.ndarray:
    """The scores beside their JSON: pairwise (Q, N) or self (N,)."""
    return load_file(path.with_suffix(".safetensors"))[KEY]


def open_scores_of(place: Path, name: str, queries, first_query: int) -> np.ndarray | None:
    """The scores (Q, N) of this name in a member's folder; None where there are none that fit its
    weights.
    """
    if (run := read_json(place / "run.json")) is None:
        return None
    return scores_named(place, run, name + window_name(first_query), queries.fingerprint())


def scores_named(folder: Path, run: dict, name: str, query_rows: str) -> np.ndarray | None:
    """The stored scores (Q, N) of this name alone; None where there are none that fit the run and
    these queries.
    """
    path = folder / "influence" / "scores" / name / "pairwise_scores.json"
    return None if why_stale(path, folder, run, query_rows) else values_of(path)


def seeds_behind(run: dict, names) -> list[int]:
    """The seeds of the models behind scores of these names: of the run, and of as many members as a
    name says.
    """
    count = max((Members.of(name).count for name in names), default=1)
    return [] if run["seed"] is None else list(range(run["seed"], run["seed"] + count))
