"""Reads stored scores and prints what they say: the training rows that shaped a prediction, with their text.

`queries` and `train` are data sets that offer `text(row)`, `label_name(row)`, a length, and the `table` of
their columns.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file

from attribution.store import Refused, differing_parts, intact, read_json


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


def show_query(queries, train, scores: torch.Tensor, index: int, top_k: int) -> None:
    """Prints a query and its most helpful and most harmful training rows."""
    if not 0 <= index < len(queries):
        raise Refused(f"--query_index must be from 0 to {len(queries) - 1}, not {index}")
    print(f"\nquery {index} [{queries.label_name(index)}]: {queries.text(index)}")
    order = torch.argsort(scores[index], descending=True, stable=True).tolist()
    for title, rows in (("most helpful", order[:top_k]), ("most harmful", order[::-1][:top_k])):
        print(f"  {title}:")
        for row in rows:
            print(describe(train, row, scores[index, row].item()))


def describe(train, row: int, score: float | None = None) -> str:
    """One training row as it is shown: score (if any), number, label, text, and on the demo whether it was flipped."""
    flipped = "flipped" in train.table.column_names and train.table[row]["flipped"]
    shown = "" if score is None else f"{score:+12.4g}  "
    return f"    {shown}row {row:>6} [{train.label_name(row)}{', flipped' if flipped else ''}] {train.text(row)}"


def show_self_influence(train, scores: torch.Tensor, top_k: int) -> None:
    """Prints the rows with the highest self-influence, and how many planted flips are in the top 50."""
    order = torch.argsort(scores, descending=True, stable=True)
    print("\nhighest self-influence:")
    for row in order[:top_k].tolist():
        print(describe(train, row, scores[row].item()))
    if "flipped" in train.table.column_names:
        flipped = np.array(train.table["flipped"])
        top = min(50, len(flipped))
        expected = top * flipped.mean()
        found = flipped[order[:top].numpy()].sum()
        print(f"  {found} of the top {top} rows by self-influence are planted flips; chance gives {expected:.1f}")
