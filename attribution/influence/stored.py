"""Scores that analyze.py stored: which of them belong to a run, and their values."""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from attribution.files import differing_parts, intact, read_json
from attribution.influence.names import is_own, window_name, without_window
from attribution.training.members import Members, fingerprint_of


def stored_scores(
    folder: Path, run: dict, query_rows: str, first_query: int = 0
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(name -> scores (Q, N), name -> why they do not count) of everything that analyze.py stored in the run's folder.

    Scores count where they were made from the run's weights and rows, and from the queries with this fingerprint, of
    which the first is this validation row. Names say nothing of where queries begin.
    """
    wanted = {"weights": run["weights"], "training rows": run["train_rows"], "query rows": query_rows}
    scores, stale = {}, {}
    for path in sorted((folder / "influence" / "scores").glob("*/pairwise_scores.json")):
        record, (name, begin) = read_json(path) or {}, without_window(path.parent.name)
        if is_own(name) or begin != first_query:
            continue  # queries of one's own, or other validation rows
        made_from = {part: record.get("fingerprint", {}).get(part) for part in wanted}
        if parts := differing_parts(made_from, wanted):
            stale[name] = f"its scores were made from other {' and other '.join(parts)}"
        elif differ := other_members(folder, run, name, record["fingerprint"]):
            stale[name] = differ
        elif not intact(path.parent, record.get("files")):
            stale[name] = "its file is damaged; run analyze.py again"
        else:
            scores[name] = load_file(path.with_suffix(".safetensors"))["all_modules"]
    return scores, stale


def other_members(folder: Path, run: dict, name: str, made: dict) -> str | None:
    """Why a mean over members, of this name and fingerprint, does not count any more; None where it counts."""
    if "members" not in made:
        return None
    wanted = fingerprint_of(Members.of(name), folder, run)
    if made["members"] != wanted["members"]:
        return "its scores were made from other members"
    same = made.get("mean") == wanted.get("mean")
    return None if same else "its mean over members was taken in another way; run analyze.py --overwrite"


def open_scores_of(place: Path, name: str, queries, first_query: int) -> np.ndarray | None:
    """The scores (Q, N) of this name in a member's folder; None where there are none that fit its weights."""
    if (run := read_json(place / "run.json")) is None:
        return None
    return scores_named(place, run, name + window_name(first_query), queries.fingerprint())


def scores_named(folder: Path, run: dict, name: str, query_rows: str) -> np.ndarray | None:
    """The stored scores (Q, N) of this name alone; None where there are none that fit the run and these queries."""
    path = folder / "influence" / "scores" / name / "pairwise_scores.json"
    record = read_json(path)
    wanted = {"weights": run["weights"], "training rows": run["train_rows"], "query rows": query_rows}
    if record is None or any(record["fingerprint"].get(part) != value for part, value in wanted.items()):
        return None
    if not intact(path.parent, record.get("files")):
        return None
    return load_file(path.with_suffix(".safetensors"))["all_modules"]


def seeds_behind(run: dict, names) -> list[int]:
    """The seeds of the models behind scores of these names: of the run, and of as many members as a name says."""
    count = max((Members.of(name).count for name in names), default=1)
    return [] if run["seed"] is None else list(range(run["seed"], run["seed"] + count))
