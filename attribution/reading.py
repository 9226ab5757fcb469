"""Prints what scores say: the training rows that shaped a prediction, with their text.

`queries` and `train` are data sets that offer `text(row)`, `label_name(row)`, a length, and the `table` of
their columns.
"""

import numpy as np
import torch

from attribution.store import Refused


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


def describe(train, row: int, score: float) -> str:
    """One training row as it is shown: score, number, label, text, and on the demo whether it was flipped."""
    flipped = "flipped" in train.table.column_names and train.table[row]["flipped"]
    return f"    {score:+12.4g}  row {row:>6} [{train.label_name(row)}{', flipped' if flipped else ''}] {train.text(row)}"


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
