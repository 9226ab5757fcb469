"""The rows that are shown are those with the highest and lowest scores, each with its text and
label.
"""

import numpy as np
import pytest

from attribution.commands.evaluate_lds import show_query_lds
from attribution.commands.run_counterfactual import show_removed
from attribution.files import Refused
from attribution.influence.stored import most_helpful
from attribution.show.asking import show_self_influence
from attribution.show.listing import Context, Query, explain, show
from pipeline import get_glue_dataset


@pytest.fixture(scope="module")
def data():
    return get_glue_dataset("demo", "valid", max_samples=2), get_glue_dataset(
        "demo", "train", max_samples=60
    )


def shown_rows(text: str) -> list[int]:
    return [int(line.split("row ")[1].split()[0]) for line in text.splitlines() if "row " in line]


def test_the_most_helpful_rows_come_first_and_ties_by_row_number(data, capsys):
    queries, train = data
    scores = np.zeros(60, np.float32)
    scores[[7, 3, 50, 51]] = 2.0, 1.0, -1.0, -3.0
    query = Query([queries.text(1)], queries.label_name(1), scores, 1)
    show(explain(Context(train), query, 3), "plain")
    out = capsys.readouterr().out
    assert shown_rows(out) == [7, 3, 0, 51, 50, 0]
    assert out.index("most helpful") < out.index("most harmful")
    assert queries.text(1) in out and train.text(7) in out
    assert f"[{train.label_name(7)}" in out and "+2" in out
    assert queries.place_of(1, "query_index") == 1
    for index in (2, -1):
        with pytest.raises(Refused, match=f"--query_index must be from 0 to 1, not {index}"):
            queries.place_of(index, "query_index")


@pytest.mark.parametrize("side", ["helpful", "harmful"])
def test_among_equal_scores_the_rows_that_are_shown_are_those_that_are_removed(data, side):
    queries, train = data
    scores = np.random.default_rng(0).integers(-2, 3, 60).astype(np.float32)
    members = [scores, np.roll(scores, 7)]
    query = Query([queries.text(1)], queries.label_name(1), scores, 1, members=members)
    shown = [row["row"] for row in explain(Context(train), query, 20)[side]]
    assert shown == most_helpful(scores, side)[:20].tolist()


def test_planted_flips_among_the_top_are_counted_beside_what_chance_gives(data, capsys):
    flipped = np.array(data[1].table["flipped"])
    show_self_influence(Context(data[1]), flipped * 1.0, 2)
    out = capsys.readouterr().out
    assert shown_rows(out) == np.flatnonzero(flipped)[:2].tolist() and out.count("flipped]") == 2
    assert (
        f"{flipped.sum()} of the top 50 rows" in out
        and f"chance gives {50 * flipped.mean():.1f}" in out
    )


def test_removed_rows_are_shown_in_their_order_for_every_arm(data, capsys):
    show_removed(
        *data,
        {"ekfac": lambda q: [np.array([5, 2, 9])], "random": lambda q: [np.array([1, 0, 3])]},
        0,
        2,
    )
    assert shown_rows(capsys.readouterr().out) == [5, 2, 1, 0]


def test_the_lds_of_a_query_is_that_of_ekfac_where_there_is_ekfac(data, capsys):
    masks = np.random.default_rng(0).integers(0, 2, (8, 60)).astype(np.uint8)
    scores = {
        name: np.random.default_rng(seed).standard_normal((2, 60))
        for seed, name in enumerate(("a", "ekfac"))
    }
    show_query_lds(*data, scores, 1, masks, (masks @ scores["ekfac"].T)[:, None])
    out = capsys.readouterr().out
    assert "LDS of ekfac for this query: 1.000" in out and shown_rows(out) == [
        scores["ekfac"][1].argmax()
    ]
    with pytest.raises(Refused, match="no stored scores"):
        show_query_lds(*data, {}, 1, masks, np.ones((8, 1, 2)))


def test_masks_without_margins_are_left_out_of_a_querys_lds(data, capsys):
    generator = np.random.default_rng(0)
    scores, masks = generator.normal(size=(2, 60)), generator.integers(0, 2, (12, 60))
    margins = (masks @ scores.T)[:, None].astype(np.float32)
    margins[3] = np.nan
    show_query_lds(*data, {"ekfac": scores}, 1, masks, margins)
    assert (
        "LDS of ekfac for this query: 1.000 (11 masks; mean over queries 1.000)"
        in capsys.readouterr().out
    )
    margins[2:] = np.nan
    with pytest.raises(Refused, match="only 2 masks have finite margins"):
        show_query_lds(*data, {"ekfac": scores}, 1, masks, margins)
