"""A verdict on the screen: its word, a hint where few seeds are behind it, one sentence."""

import pytest

from attribution.show import verdicts

SCORE = "ekfac"


def level(word="confirmed", seeds=None, outcome="stays right", removed=10, **more) -> dict:
    return {
        "removed": removed,
        "change": -1.0,
        "interval": [-1.5, -0.5],
        "predicted": [-0.8, [-1.0, -0.6]],
        "right": 0.4,
        "outcome": outcome,
        "word": word,
        "seeds": seeds,
    } | more


def verdict(*levels: dict, seeds: int = 5, **more) -> dict:
    random = [level(change=-0.1, interval=[-0.3, 0.1], removed=one["removed"]) for one in levels]
    return {
        "query": 3,
        "texts": ["a \x1b[31mred\u202e film"],
        "label": "positive",
        "target": "label",
        "score": SCORE,
        "direction": "helpful",
        "regression": False,
        "seeds": [*range(seeds)],
        "right": [1.0] * seeds,
        "arms": {SCORE: [*levels], "random, same classes": random},
    } | more


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (verdict(level()), "confirmed"),
        (verdict(level("not confirmed")), "not confirmed"),
        (verdict(level("cannot tell", 9)), "cannot tell"),
        (verdict(level(), seeds=2), "a hint: confirmed"),
        (
            verdict(level("cannot tell", 9), seeds=4),
            "a hint: cannot tell",
        ),
    ],
)
def test_the_word_of_few_seeds_is_a_hint(found, said):
    assert verdicts.word(found) == said


def test_the_word_is_that_of_the_first_removal_that_turned_the_prediction_else_of_the_last():
    first, last = level("not confirmed"), level("confirmed", removed=30)
    assert verdicts.word(verdict(first, last)) == "confirmed"
    turned = level("cannot tell", 7, outcome="flipped")
    assert verdicts.word(verdict(turned, last)) == "cannot tell"


def test_the_sentence_has_both_arms_and_the_retrains_behind_them():
    words = verdicts.sentence(verdict(level()))
    assert "Without the 10 rows that, by the scores, pushed most towards positive" in words
    assert "-1.00 [-1.50, -0.50]" in words and "-0.10 [-0.30, +0.10]" in words
    assert "2 of 5 retrains say positive" in words and "with all rows 5 of 5" in words
    against = verdicts.sentence(verdict(level(removed=1), direction="harmful"))
    assert "Without the row that, by the scores, pushed most away from positive" in against


@pytest.mark.parametrize(
    ("direction", "interval", "says"),
    [
        ("helpful", [0.5, 1.5], "without these rows the margin rises by 1.00."),
        ("harmful", [-1.5, -0.5], "without these rows the margin falls by 1.00."),
        ("helpful", [-1.5, -0.5], None),
        ("harmful", [-0.1, 1.5], None),
        ("helpful", None, None),
    ],
)
def test_a_change_of_the_opposite_sign_is_called_the_other_way_round(direction, interval, says):
    found = verdict(level("not confirmed", interval=interval), direction=direction)
    turned = ", the other way round" if says else ""
    assert verdicts.word(found) == f"not confirmed{turned}"
    assert ("the other way round" in verdicts.sentence(found)) == bool(says)
    assert (says or "retrains say positive") in verdicts.sentence(found)


def test_the_sentence_of_a_regression_has_no_share_and_retrains_that_diverged_are_no_zero():
    regression = verdict(level(outcome=None), regression=True, label="2.50")
    assert "that, by the scores, pushed most towards the label" in verdicts.sentence(regression)
    assert "retrains" not in verdicts.sentence(regression)
    output = verdicts.sentence(regression | {"target": "output", "label": "output"})
    assert (
        "that, by the scores, raised the output most" in output and "the output changes" in output
    )
    diverged = level(right=None, outcome="not known: the retrains diverged")
    assert "none that came to an end" in verdicts.sentence(verdict(diverged))


@pytest.mark.parametrize(
    ("level", "by", "says"),
    [
        (
            level(),
            {"scores": "replay_members8", "checkpoints": 8},
            "8 checkpoints (replay_members8",
        ),
        (level(predicted=[0.7, None]), None, "one checkpoint, which has no interval"),
        (level(), None, "Predicted by a replay."),
    ],
)
def test_a_note_says_what_predicted_and_what_measured(level, by, says):
    found = verdict(level, predicted_by=by)
    assert says in verdicts.note(found) and "Measured by 5 retrains." in verdicts.note(found)
    assert "".join(verdicts.note(found).split()) in "".join(verdicts.text(found).split())


@pytest.mark.parametrize(
    ("said", "right", "other"),
    [
        ("positive", [0, 0, 1, 0, 0], True),
        ("positive", [1, 1, 1, 0, 0], False),
        ("negative", [1, 1, 1, 0, 0], True),
        ("negative", [0, 0, 1, 0, 0], False),
        (None, [0, 0, 0, 0, 0], False),
    ],
)
def test_what_most_retrains_on_all_rows_do_not_say_may_be_the_seeds(said, right, other):
    told = verdicts.sentence(verdict(level(), right=right, said=said))
    assert ("most retrains say otherwise than the run" in told) == other


def test_more_seeds_are_asked_for_afresh_and_the_arms_are_compared_seed_by_seed():
    told = verdicts.sentence(verdict(level("cannot tell", 9), seeds=3))  # 0 to 2
    assert "Fresh seeds may tell: --retrain_seed 3 --num_retrain_seeds 9." in told
    assert "seed by seed" not in told  # a stored verdict of an earlier version
    apart = level(difference=-0.9, difference_interval=[-1.4, -0.4])
    told = verdicts.sentence(verdict(apart))
    assert "seed by seed a difference of -0.90 [-1.40, -0.40]." in told and "Fresh" not in told


def test_what_nothing_predicted_has_no_column_for_it():
    found = verdict(level(predicted=None))
    found["arms"] = {name: [level(predicted=None)] for name in found["arms"]}
    header, rows = verdicts.table_of(found)
    assert header == ["removed by", "rows", "measured [95 %]", "right in", "outcome"]
    assert {len(row) for row in rows} == {len(header)}
    assert verdicts.note(found) == "Measured by 5 retrains."
    header, rows = verdicts.table_of(verdict(level()))
    assert "predicted [95 %]" in header and {len(row) for row in rows} == {len(header)}


def test_the_screen_shows_the_verdict_and_nothing_that_steers_it(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = verdicts.text(verdict(level("cannot tell", 9)))
    assert "\x1b" not in text and "\u202e" not in text and "\\x1b[31mred\\u202e" in text
    assert "\n  cannot tell\n" in text
    assert "random, same classes" in text and "-0.80 [-1.00, -0.60]" in text
