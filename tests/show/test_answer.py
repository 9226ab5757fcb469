"""An answer turns stored scores: its sides are named by what their rows pushed towards, first what
the model said; and it says what a reader should know of the rows.

Symbols: N training rows, C classes.
"""

import csv
import io
import json
import shlex

import numpy as np
import pytest
from small import Plain

import run_counterfactual
from attribution.data.tasks import GlueTask
from attribution.influence.stored import TOP
from attribution.show.answer import (
    BY_CHANCE,
    MARK,
    Check,
    Context,
    Query,
    explain,
    rank_high_everywhere,
    write_csv,
)
from attribution.show.listing import View, answer_lines, show

N = 60
TWO = GlueTask(("text",), 2, ("negative", "positive"))
THREE = GlueTask(("text",), 3, ("cold", "mild", "hot"))
REGRESSION = GlueTask(("text",), 1, ())
EVIL = "A \x1b[31mred\u202e film, \x07\u200b\nand\r\n\ta new \u2028line"
RAW = ("\x1b", "\u202e", "\x07", "\u200b", "\r", "\t", "\u2028")


def rows(task: GlueTask = TWO, **more) -> Plain:
    labels = np.arange(N) % max(task.num_labels, 2)
    return Plain(task, [f"text number {row}" for row in range(N)], labels, **more)


def draw(seed: int = 0, size: int = N) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def query(task: GlueTask, label: int, logits, scores=None, **more) -> Query:
    about = {"label_number": float(label), "number": 4}
    about["logits"] = None if logits is None else np.array(logits, np.float32)
    name = f"{label:.2f}" if task.regression else task.name_of(label)
    return Query(["a question"], name, draw() if scores is None else scores, **about | more)


def answer(task: GlueTask = TWO, label=1, logits=(0, 2), *, top_k=5, context=None, **more):
    context = context or Context(rows(task), "ekfac")
    return explain(context, query(task, label, logits, **more), top_k)


# --- sides ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logits", "label", "target", "titles"),
    [
        (
            (0, 2),
            1,
            "label",
            ["positive (what the model said, and the label)", "negative"],
        ),
        (
            (0, 2),
            0,
            "label",
            ["positive (what the model said)", "negative (the label)"],
        ),
        ((2, 0), 1, "label", ["negative (what the model said)", "positive (the label)"]),
        ((2, 0), 0, "predicted", ["negative (what the model said)", "positive"]),
    ],
)
def test_of_two_classes_the_side_of_what_the_model_said_comes_first(logits, label, target, titles):
    found = answer(TWO, label, logits, target=target)
    assert [side.title for side in found.sides] == [f"pushed towards {one}" for one in titles]
    assert found.sides[0].towards == found.said != found.sides[1].towards
    assert found.wrong == (target == "label" and found.said != found.label)
    chance = np.exp(np.float64(logits)) / np.exp(np.float64(logits)).sum()
    assert found.probability == pytest.approx(chance.max())


@pytest.mark.parametrize(
    ("logits", "label", "sides"),
    [
        ((9, 5, 0), 0, ["cold", "mild"]),  # mild has nearly all of what is left
        ((9, 5, 4.5), 0, ["cold", "other classes, most of all mild"]),
        ((1, 9, 0), 0, ["mild", "cold"]),
        ((1, 9, 8.5), 0, ["other classes, most of all mild", "cold"]),
    ],
)
def test_of_three_classes_one_that_holds_nearly_all_of_the_others_is_named(logits, label, sides):
    found = answer(THREE, label, logits)
    assert [side.towards for side in found.sides] == sides
    chance = np.exp(np.float64(logits))
    others = np.delete(chance, label)
    assert (others.max() >= 0.9 * others.sum()) == all("other" not in one for one in sides)
    direction = "helpful" if found.said == found.label else "harmful"
    assert found.sides[0].direction == direction


def test_without_a_model_the_label_comes_first_and_of_three_classes_nothing_is_named():
    found = answer(THREE, 2, None)
    assert [side.towards for side in found.sides] == ["hot", "other classes"]
    assert found.said is found.probability is None and not found.wrong
    towards = [side.towards for side in answer(TWO, 0, None).sides]
    assert towards == ["negative", "positive"]


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("logits", [(0, 1), (1, 0)])
def test_without_a_row_of_the_first_side_the_model_is_less_certain(label, logits):
    """In a model whose log-odds of the label are a sum over the training rows, a row's score."""
    scores = draw(1)
    scores += ((1 if np.argmax(logits) == label else -1) - scores.sum()) / N  # the model says so
    found = answer(TWO, label, logits, scores=scores, top_k=N)

    def certainty(total: float) -> float:
        """Probability of the class that the model said, where the label's log-odds are total."""
        of_label = 1 / (1 + np.exp(-total))
        return of_label if found.said == found.label else 1 - of_label

    everything = float(scores.sum(dtype=np.float64))
    assert certainty(everything) > 0.5
    first, second = found.sides
    assert len(first.rows) + len(second.rows) == N
    for row in first.rows:
        assert certainty(everything - float(scores[row.row])) < certainty(everything)
    for row in second.rows:
        assert certainty(everything - float(scores[row.row])) > certainty(everything)


@pytest.mark.parametrize("where", ["above", "below", "no label"])
def test_of_a_regression_the_sides_are_what_raised_and_what_lowered_the_output(where):
    """In a model whose output is a sum over the rows; the margin is minus the squared error."""
    effects = draw(2)
    output = float(effects.sum(dtype=np.float64))
    label = {"above": output - 1, "below": output + 1, "no label": np.nan}[where]
    # The change of the margin to the first order, as influence is.
    scores = effects if where == "no label" else -2 * (output - label) * effects
    target = "output" if where == "no label" else "label"
    about = {"scores": scores.astype(np.float32), "target": target, "top_k": N}
    found = answer(REGRESSION, label, (output,), **about)
    assert [side.title for side in found.sides] == ["raised the output", "lowered the output"]
    assert [side.towards for side in found.sides] == ["raised", "lowered"]
    raised, lowered = ([row.row for row in side.rows] for side in found.sides)
    assert raised == np.flatnonzero(effects > 0)[np.argsort(-effects[effects > 0])].tolist()
    assert lowered == np.flatnonzero(effects < 0)[np.argsort(effects[effects < 0])].tolist()
    assert found.said == f"{output:.2f}" and found.probability is None and not found.wrong


def test_each_side_has_rows_of_its_sign_in_the_order_of_their_removal_and_none_that_did_nothing():
    scores = draw(3)
    scores[10:30] = 0
    for label in (0, 1):
        found = answer(TWO, label, (0, 2), scores=scores, top_k=N)
        for side in found.sides:
            sign = 1 if side.direction == "helpful" else -1
            values = [row.score for row in side.rows]
            assert all(sign * value > 0 for value in values) and len(values) > 5
            assert values == sorted(values, reverse=sign > 0)
            assert values == [float(scores[row.row]) for row in side.rows]
    (first, second) = answer(scores=np.abs(draw(4))).sides
    assert len(first.rows) == 5 and second.rows == []
    assert "pushed towards negative: nothing" in str(answer(scores=np.abs(draw(4))))


# --- amounts --------------------------------------------------------------------------------------


def test_shares_are_of_all_absolute_scores_and_ranks_count_them():
    scores = draw(5)
    found = answer(scores=scores, top_k=N)
    everything = [row for side in found.sides for row in side.rows]
    sizes = np.abs(scores.astype(np.float64))
    for row in everything:
        assert row.share == pytest.approx(sizes[row.row] / sizes.sum(), rel=1e-6)
        assert row.rank == 1 + (sizes > sizes[row.row]).sum()
    assert sum(row.share for row in everything) == pytest.approx(1)
    few = answer(scores=scores, top_k=3)
    assert 0 < sum(row.share for side in few.sides for row in side.rows) < 1


@pytest.mark.parametrize(
    ("task", "target", "replayed", "unit"),
    [
        (TWO, "label", False, "share"),
        (TWO, "label", True, "log-odds"),
        (TWO, "predicted", True, "log-odds"),
        (TWO, "group", True, "log-odds"),
        (REGRESSION, "label", False, "share"),
        (REGRESSION, "label", True, "squared label"),
        (REGRESSION, "output", True, "label"),
        (REGRESSION, "group", True, "squared label"),
    ],
)
def test_amounts_have_a_unit_where_scores_have_one(task, target, replayed, unit):
    context = Context(rows(task), "replay", replayed=replayed)
    logits = (2.0,) if task.regression else (0, 2)
    found = answer(task, 1, logits, context=context, target=target)
    row = found.sides[0].rows[0]
    assert found.unit == unit
    assert found.amount(row) == (row.share if unit == "share" else abs(row.score)) > 0


@pytest.mark.parametrize("direction", ["helpful", "harmful"])
def test_a_single_row_that_decides_is_said_with_its_side(direction):
    scores = draw(6)
    sign = 1 if direction == "helpful" else -1
    scores[7] = sign * np.abs(scores).sum()
    found = answer(scores=scores)
    sizes = np.abs(scores.astype(np.float64))
    share = sizes[7] / sizes.sum()
    (side,) = [one for one in found.sides if one.direction == direction]
    assert side.rows[0].row == 7
    said = f"One training row carries {share:.0%} of the influence. It {side.title}."
    assert found.conclusion == said


def test_otherwise_the_strongest_row_and_the_ten_strongest_are_said():
    scores = draw(6)
    sizes = np.sort(np.abs(scores.astype(np.float64)))[::-1]
    found = answer(scores=scores).conclusion
    assert found.startswith("No single row decides")
    assert f"{sizes[0] / sizes.sum():.1%}" in found
    assert f"the 10 strongest {sizes[:10].sum() / sizes.sum():.0%}" in found
    assert "0.0%" in answer(scores=np.zeros(N, np.float32)).conclusion  # nothing to divide by


# --- marks ----------------------------------------------------------------------------------------


def test_of_two_rows_that_are_nearly_as_strong_neither_decides():
    scores = np.full(N, 1e-3, np.float32)
    scores[3], scores[5] = 0.5, 0.4
    assert answer(scores=scores).conclusion.startswith("No single row decides")
    scores[5] = 0.2
    assert answer(scores=scores).conclusion.startswith("One training row carries")


def test_rows_are_marked_by_what_a_reader_should_know():
    truth = np.zeros(N, bool)
    truth[1] = True
    train = rows(truth=truth)
    train.texts[3] = ["A question"]
    said = train.labels.copy()
    said[[1, 5]] = 1 - said[[1, 5]]
    everywhere = np.zeros(N)
    least = max(MARK, BY_CHANCE * TOP / N)
    everywhere[7], everywhere[9] = least, 0.99 * least
    context = Context(train, "ekfac", everywhere=everywhere, said=said)
    found = answer(context=context, top_k=N)
    marks = {row.row: row.marks for side in found.sides for row in side.rows}
    assert {row: words for row, words in marks.items() if words} == {
        1: ["flipped on purpose"],  # and not doubtful: it is known to be wrong
        3: ["nearly the same text"],
        5: ["the model says negative"],
        7: ["high for many queries"],
    }
    known = {row.row: row.flipped for side in found.sides for row in side.rows}
    assert known == dict(enumerate(truth.tolist()))
    unknown = answer()
    assert {row.flipped for side in unknown.sides for row in side.rows} == {None}
    assert not any(row.marks for side in unknown.sides for row in side.rows)


@pytest.mark.parametrize(
    ("text", "alike"),
    [
        ("The soup was cold and bland", True),
        ("the SOUP was cold, and bland!", True),
        ("The soup was cold and fine", False),  # 5 of 7 words
        ("The soup was very cold and bland", True),  # 6 of 7
        ("", False),
    ],
)
def test_texts_are_nearly_the_same_by_the_words_of_both(text, alike):
    train = rows()
    train.texts[0] = [text]
    asked = query(TWO, 1, (0, 2), np.eye(1, N, dtype=np.float32)[0])
    asked.texts[:] = ["The soup was cold and bland."]
    (row,) = explain(Context(train), asked, 3).sides[0].rows
    assert row.row == 0 and row.alike == alike


def test_a_row_at_the_top_of_every_query_is_counted_and_few_queries_do_not_tell():
    scores = np.random.default_rng(0).standard_normal((25, N))
    scores[:, 7] = -50
    share = rank_high_everywhere(scores)
    assert share[7] == 1 and share.sum() == pytest.approx(10)
    tops = [set(np.argsort(-np.abs(one))[:10].tolist()) for one in scores]
    assert share.tolist() == [sum(row in top for top in tops) / 25 for row in range(N)]
    assert rank_high_everywhere(scores[:19]) is None
    assert rank_high_everywhere(scores[:, :20]) is None  # half of the rows would be at the top


def test_members_that_have_a_row_at_the_top_of_its_side_are_counted():
    members = [draw(seed) for seed in range(3)]
    mean = np.mean(members, axis=0)
    found = answer(context=Context(rows(), "ekfac", 3), scores=mean, members=members, top_k=4)
    assert found.members == 3
    for side in found.sides:
        sign = 1 if side.direction == "helpful" else -1
        tops = [np.argsort(-sign * one)[:4] for one in members]
        for row in side.rows:
            assert row.agreement == sum(row.row in top for top in tops)
    assert answer().sides[0].rows[0].agreement is None


# --- rankings -------------------------------------------------------------------------------------


def test_rows_particular_to_a_query_are_ranked_by_score_over_the_root_of_self_influence():
    """RelatIF, arXiv:2003.11630, equation 8; amounts stay those of the score."""
    scores, own = draw(8), np.exp(draw(9)).astype(np.float32)
    found = answer(context=Context(rows(), "ekfac", own=own), scores=scores, top_k=N)
    ratio = scores.astype(np.float64) / np.sqrt(own.astype(np.float64))
    for side in found.sides:
        sign = 1 if side.direction == "helpful" else -1
        order = [row for row in np.argsort(-sign * ratio) if sign * scores[row] > 0]
        assert [row.row for row in side.rows] == order
        assert [row.score for row in side.rows] == [float(scores[row]) for row in order]
    plain = answer(scores=scores, top_k=N)
    assert [row.row for row in plain.sides[0].rows] != [row.row for row in found.sides[0].rows]
    shares = {row.row: row.share for side in plain.sides for row in side.rows}
    assert shares == {row.row: row.share for side in found.sides for row in side.rows}


def test_a_group_has_what_hurt_before_what_helped():
    found = answer(target="group", label=1, context=Context(rows(), check=check()))
    assert [side.towards for side in found.sides] == ["other predictions", "their labels"]
    assert [side.direction for side in found.sides] == ["harmful", "helpful"]
    assert "hurt" in found.sides[0].title and "helped" in found.sides[1].title
    assert found.check is found.cost is None  # no single prediction to check


# --- checks ---------------------------------------------------------------------------------------


def check(time: str | None = None) -> Check:
    return Check("python run_counterfactual.py --dataset_name demo", 15, time)


def checked(**more):
    """(answer, the arguments of the command that checks it)."""
    found = answer(context=Context(rows(), "ekfac", check=check()), **more)
    assert found.check is not None
    words = shlex.split(found.check)
    assert words[:2] == ["python", "run_counterfactual.py"]
    return found, run_counterfactual.parse_args(words[2:])


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("seed", range(4))
def test_the_check_removes_the_fewest_rows_that_carry_half_of_the_push_to_what_was_said(
    label, seed
):
    scores = draw(seed) ** 5  # a few rows carry it
    found, args = checked(scores=scores, label=label)
    side = found.sides[0]
    assert args.targets == [4] and args.direction == side.direction and args.query_text is None
    (count,) = args.removals
    sign = 1 if side.direction == "helpful" else -1
    pushes = np.sort((sign * scores.astype(np.float64)).clip(0))[::-1]
    assert pushes[:count].sum() >= pushes.sum() / 2 > pushes[: count - 1].sum()
    assert count <= N // 10


def test_a_check_removes_at_most_a_tenth_of_the_rows_and_at_least_one():
    assert checked(scores=np.ones(N, np.float32))[1].removals == [N // 10]
    one = np.eye(1, N, dtype=np.float32)[0]
    assert checked(scores=one)[1].removals == [1]


@pytest.mark.parametrize("scores", [np.zeros(N, np.float32), -np.ones(N, np.float32)])
def test_where_nothing_pushed_towards_what_was_said_there_is_nothing_to_check(scores):
    found = answer(context=Context(rows(), "ekfac", check=check()), scores=scores)
    assert found.sides[0].rows == [] and found.check is None and found.cost is None


@pytest.mark.parametrize("target", ["label", "predicted"])
def test_a_custom_query_is_checked_by_its_own_text(target):
    asked = query(TWO, 1, (0, 2), target=target, number=None)
    text = 'The "soup" wasn\'t cold; $(rm) `x`\nand new'
    asked.texts[:] = [text]
    found = explain(Context(rows(), "ekfac", check=check()), asked, 3)
    args = run_counterfactual.parse_args(shlex.split(found.check)[2:])
    assert args.query_text == [text] and args.targets is None
    assert args.query_label == ("positive" if target == "label" else None)


@pytest.mark.parametrize(
    ("time", "said"),
    [
        (None, "6 rows, 15 retrains"),
        ("about 9 minutes", "6 rows, 15 retrains, about 9 minutes"),
    ],
)
def test_the_cost_of_a_check_is_its_retrains_and_their_time(time, said):
    found = answer(context=Context(rows(), check=check(time)))
    assert found.cost == said and f"({said})" in str(found).replace("\n", " ")
    assert answer().check is answer().cost is None and "Not sure?" not in str(answer())


# --- forms ----------------------------------------------------------------------------------------


def evil_answer():
    """An answer whose texts and labels try to steer what shows them."""
    task = GlueTask(("text", "more"), 2, (f"no {EVIL}", "yes, \"quoted\" | 'x'"))
    texts = [[EVIL, f'"{row}", =1+1'] for row in range(N)]
    train = Plain(task, texts, np.arange(N) % 2, file_rows=np.arange(N) * 2)
    said = 1 - train.labels
    asked = query(task, 0, (2, 0), file_row=8)
    asked.texts[:] = [EVIL, "more"]
    return explain(Context(train, "ekfac", 1, said=said, check=check()), asked, 4)


def test_nothing_in_a_listing_steers_the_terminal():
    for raw in (False, True):
        lines = answer_lines(evil_answer(), raw)
        assert not [line for line in lines if any(one in line for one in RAW) or "\n" in line]
        words = "".join("".join(lines).split())
        assert "\\x1b[31mred\\u202efilm" in words and "\\n" in words


def test_json_has_the_answer_as_it_is(capsys):
    found = evil_answer()
    show([found, found], View("json", 4))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0] == lines[1]
    record = json.loads(lines[0])
    assert record["format"] == 2 and record["texts"] == [EVIL, "more"] and record["file_row"] == 8
    assert record["said"] == found.said and record["check"] == found.check
    for side, read in zip(found.sides, record["sides"], strict=True):
        assert (read["title"], read["towards"]) == (side.title, side.towards)
        assert [vars(row) for row in side.rows] == read["rows"] and len(read["rows"]) == 4
    assert not any(one in lines[0] for one in RAW)


def test_csv_read_back_is_the_json(tmp_path, capsys):
    found = [evil_answer(), evil_answer()]
    file = io.StringIO()
    write_csv(found, file)
    found[0].to_csv(tmp_path / "one.csv")
    show(found, View("csv", 4))
    assert capsys.readouterr().out == file.getvalue()
    read = [*csv.DictReader(io.StringIO(file.getvalue(), newline=""))]
    expected = [
        {
            "query": one.record()["query"],
            "query_text": " | ".join(one.texts),
            "towards": side["towards"],
        }
        | row
        for one in found
        for side in one.record()["sides"]
        for row in side["rows"]
    ]
    assert len(read) == len(expected) == 16
    for line, row in zip(read, expected, strict=True):
        del row["words"]
        assert list(line) == list(row)
        row["texts"] = " | ".join(row["texts"])
        assert line == {name: "" if value is None else str(value) for name, value in row.items()}
        assert float(line["score"]) == row["score"] and float(line["share"]) == row["share"]
    with open(tmp_path / "one.csv", newline="", encoding="utf-8") as stored:
        assert [*csv.DictReader(stored)] == read[:8]
