"""Embedded data set `demo`: short reviews with a two-class label, and the recorded truth.

What counts as praise depends on the topic ("cold" praises a beer and condemns a soup), so a model
must learn each topic from its own training rows. In the training set 5 % of the labels are flipped
on purpose; the columns `topic` and `flipped` record the truth. `lab/demo_rows.py` wrote the files.
"""

import csv
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "demo" / "rows"
LABEL_NAMES = ["negative", "positive"]


def read_rows() -> dict[str, dict[str, list]]:
    """Data set as split -> column -> values.

    Splits `train` (1,000 rows) and `validation` (100 rows); columns `sentence`, `label` (as
    trained on), `topic`, `flipped` (True if the label is not the one that the sentence was made
    for; never in `validation`).
    """
    splits: dict[str, dict[str, list]] = {}
    for split in ("train", "validation"):
        with open(FOLDER / f"{split}.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        columns: dict[str, list] = {name: [row[name] for row in rows] for name in rows[0]}
        columns["label"] = [int(label) for label in columns["label"]]
        columns["flipped"] = [flipped == "True" for flipped in columns["flipped"]]
        splits[split] = columns
    return splits
