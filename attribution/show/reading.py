"""Prints what scores say: the training rows that shaped a prediction, with their text.

`queries` and `train` are data sets that offer `text(row)`, `label_name(row)`, a length, and the `table` of
their columns.
"""

import numpy as np
import torch

from attribution.evidence import stats
from attribution.evidence.counterfactual import Arm
from attribution.evidence.lds import REFERENCE
from attribution.files import Refused, printable


def check_index(queries, index: int) -> None:
    """Raises Refused for a query number that there is not."""
    if not 0 <= index < len(queries):
        raise Refused(f"--query_index must be from 0 to {len(queries) - 1}, not {index}")


def show_query(queries, train, scores: torch.Tensor, index: int, top_k: int) -> None:
    """Prints a query and its most helpful and most harmful training rows."""
    check_index(queries, index)
    print(f"\n{headline(queries, index)}")
    order = torch.argsort(scores[index], descending=True, stable=True).tolist()
    for title, rows in (("most helpful", order[:top_k]), ("most harmful", order[::-1][:top_k])):
        print(f"  {title}:")
        for row in rows:
            print(describe(train, row, scores[index, row].item()))


def headline(queries, index: int) -> str:
    """A query as it is shown: number, label, text."""
    return f"query {index} [{printable(queries.label_name(index))}]: {printable(queries.text(index))}"


def describe(train, row: int, score: float | None = None) -> str:
    """One training row as it is shown: score (if any), number, label, text, and on the demo whether it was flipped."""
    flipped = "flipped" in train.table.column_names and train.table[row]["flipped"]
    shown = "" if score is None else f"{score:+12.4g}  "
    label = printable(train.label_name(row))
    return f"    {shown}row {row:>6} [{label}{', flipped' if flipped else ''}] {printable(train.text(row))}"


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


def show_query_lds(
    queries, train, scores: dict[str, np.ndarray], index: int, masks: np.ndarray, margins: np.ndarray
) -> None:
    """Prints a query, its top influential row, and how well stored scores predict its margins.

    scores: name -> (Q, N); ekfac's are taken, else the first. masks (M, N), margins (M, R, Q).
    """
    check_index(queries, index)
    name = REFERENCE if REFERENCE in scores else next(iter(scores), None)
    if name is None:
        raise Refused("no stored scores; make them with analyze.py")
    agreed = stats.agreement(scores[name], masks, stats.make_truth(stats.mean_margins(margins)))
    top = int(np.argmax(scores[name][index]))
    print(f"{headline(queries, index)}\n  most influential by {name}:")
    print(describe(train, top, float(scores[name][index, top])))
    print(
        f"  LDS of {name} for this query: {agreed.per_query[index]:.3f} "
        f"({len(masks)} masks; mean over queries {agreed.mean:.3f})"
    )


def show_removed(queries, train, arms: dict[str, Arm], index: int, count: int) -> None:
    """Prints the first `count` rows that each arm would remove for one query."""
    check_index(queries, index)
    print(headline(queries, index))
    for name, arm in arms.items():
        print(f"  {name} removes, in this order:")
        for row in arm(index)[0][:count]:
            print(describe(train, int(row)))
