"""The rows that are shown are those with the highest and lowest scores, each with its text and
label.
"""

import re

import numpy as np
import pytest

from attribution.files import Refused
from attribution.influence.stored import most_helpful
from attribution.show.answer import Context, Query, explain
from attribution.show.listing import View, show
from pipeline import get_glue_dataset


@pytest.fixture(scope="module")
def data():
    return get_glue_dataset("demo", "valid", max_samples=2), get_glue_dataset(
        "demo", "train", max_samples=60
    )


def shown_rows(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\brow +(\d+)", text)]


def test_the_most_helpful_rows_come_first_and_ties_by_row_number(data, capsys):
    queries, train = data
    scores = np.zeros(60, np.float32)
    scores[[7, 3, 50, 51]] = 2.0, 1.0, -1.0, -3.0
    label = queries.label_name(1)
    query = Query([queries.text(1)], label, scores, 1, label_number=queries.labels[1])
    show([explain(Context(train), query, 3)], View("table", 3))
    out = capsys.readouterr().out
    assert shown_rows(out) == [7, 3, 51, 50]
    other = next(name for name in train.task.class_names if name != label)
    assert out.index(f"pushed towards {label} (the label)") < out.index(f"towards {other}\n")
    words = " ".join(out.split())
    assert queries.text(1) in words and train.text(7) in words
    assert f"28.6%  {train.label_name(7)}" in out  # 2 of 7
    assert queries.place_of(1, "query_index") == 1
    for index in (2, -1):
        with pytest.raises(Refused, match=f"--query_index must be from 0 to 1, not {index}"):
            queries.place_of(index, "query_index")


@pytest.mark.parametrize("side", ["helpful", "harmful"])
def test_among_equal_scores_the_rows_that_are_shown_are_those_that_are_removed(data, side):
    queries, train = data
    scores = np.random.default_rng(0).integers(-2, 3, 60).astype(np.float32)
    about = {"label_number": queries.labels[1], "members": [scores, np.roll(scores, 7)]}
    query = Query([queries.text(1)], queries.label_name(1), scores, 1, **about)
    (found,) = [one for one in explain(Context(train), query, 20).sides if one.direction == side]
    assert [row.row for row in found.rows] == most_helpful(scores, side)[:20].tolist()
