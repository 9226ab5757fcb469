"""What is shown of a query: plain lines for pipes, columns that fit the terminal, numbers that say
what they are.
"""

import numpy as np
import pytest

from attribution.show.listing import (
    Context,
    Query,
    explain,
    meaning_of_scores,
    plain_lines,
    rank_high_everywhere,
    table_lines,
)
from pipeline import get_glue_dataset


@pytest.fixture(scope="module")
def train():
    return get_glue_dataset("demo", "train", max_samples=30)


def query(scores=None, **more) -> Query:
    scores = np.linspace(-3, 5, 30) if scores is None else scores
    return Query(
        ["A \x1b[31mred\u202e film | \nnew"], "negative", np.asarray(scores, np.float32), 4, **more
    )


def test_rows_have_rank_and_share(train):
    made = explain(Context(train, "ekfac"), query(), 2)
    first, last = made["helpful"][0], made["harmful"][0]
    assert (first["row"], last["row"], first["rank"]) == (29, 0, 1)
    total = np.abs(np.linspace(-3, 5, 30)).sum()
    assert first["share"] == pytest.approx(5 / total, rel=1e-5)
    assert last["share"] == pytest.approx(3 / total, rel=1e-5)


def test_a_row_that_every_query_ranks_high_is_marked(train):
    generator = np.random.default_rng(0)
    scores = generator.standard_normal((25, 30))
    scores[:, 7] = -50
    share = rank_high_everywhere(scores)
    assert share is not None and share[7] == 1 and share.sum() == pytest.approx(10)
    assert rank_high_everywhere(scores[:19]) is None  # too few queries to say so
    lines = table_lines(
        explain(Context(train, "ekfac", everywhere=share), query(scores[0]), 2), 100
    )
    assert any("(in the top ten of 100% of all queries)" in line for line in lines)


def test_columns_are_aligned_and_wrapped_to_the_width_and_texts_cannot_steer_the_terminal(train):
    made = explain(Context(train, "ekfac", 3), query(members=[np.arange(30)] * 3), 4)
    for width in (50, 60, 80, 120):
        lines = table_lines(made, width)
        assert max(map(len, lines)) <= width
        assert (
            "\x1b" not in "".join(lines)
            and "\u202e" not in "".join(lines)
            and "\\x1b" in "".join(lines)
        )
    starts = {line.index("label") for line in table_lines(made, 120) if "score" in line}
    assert len(starts) == 1 and any("3 of 3" in line for line in table_lines(made, 120))
    assert (
        max(map(len, table_lines(made, 30))) <= 45
    )  # a terminal too narrow for columns: the text stands below


def test_the_plain_form_is_one_line_a_row_whatever_is_known(train):
    bare, rich = (
        plain_lines(explain(context, query(), 3))
        for context in (
            Context(train, "ekfac"),
            Context(train, "ekfac", everywhere=np.ones(30)),
        )
    )
    assert bare == rich and len(bare) == 2 + 2 * 4
    assert bare[3].startswith("              +5  row     29 [")


def test_what_a_score_means_is_said(train):
    assert "has no unit" in meaning_of_scores(Context(train))
    assert "is in log-odds" in meaning_of_scores(Context(train, replayed=True))
