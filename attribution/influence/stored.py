"""Scores that analyze.py stored: which of them belong to a run, and their values."""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from attribution.files import differing_parts, intact, read_json


def stored_scores(folder: Path, run: dict, query_rows: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(name -> scores (Q, N), name -> why they do not count) of everything that analyze.py stored in the run's folder.

    Scores count where they were made from the run's weights and rows, and from the queries with this fingerprint.
    """
    wanted = {"weights": run["weights"], "training rows": run["train_rows"], "query rows": query_rows}
    scores, stale = {}, {}
    for path in sorted((folder / "influence" / "scores").glob("*/pairwise_scores.json")):
        record, name = read_json(path) or {}, path.parent.name
        made_from = {part: record.get("fingerprint", {}).get(part) for part in wanted}
        if parts := differing_parts(made_from, wanted):
            stale[name] = f"its scores were made from other {' and other '.join(parts)}"
        elif not intact(path.parent, record.get("files")):
            stale[name] = "its file is damaged; run analyze.py again"
        else:
            scores[name] = load_file(path.with_suffix(".safetensors"))["all_modules"]
    return scores, stale
