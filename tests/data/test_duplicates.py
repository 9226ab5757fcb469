"""Equal and nearly equal texts are found, whatever their labels, and the nearest are by TF-IDF."""

import math
import re
from collections import Counter

import numpy as np

from attribution.data import duplicates
from attribution.data.duplicates import Duplicate, relatives
from attribution.data.words import are_alike, words_of


class Texts:
    """Text columns and labels, as `relatives` reads them."""

    def __init__(self, rows: list[tuple], labels) -> None:
        self.labels = np.array(labels)
        self.rows = rows

    def columns(self) -> list[list[str]]:
        return [list(column) for column in zip(*self.rows, strict=True)]


def texts(*rows: str, labels=None) -> Texts:
    return Texts([(row,) for row in rows], labels or [0] * len(rows))


def cosine_table(rows: list[str]) -> np.ndarray:
    """TF-IDF cosines (N, N) of texts, by the formula, float64."""
    counts = [Counter(re.findall(r"\w+", row)) for row in rows]
    df = Counter(word for one in counts for word in one)
    weights = {word: math.log((1 + len(rows)) / (1 + df[word])) + 1 for word in df}
    table = np.array([[one[word] * weights[word] for word in sorted(df)] for one in counts])
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    return table @ table.T


def test_texts_are_equal_up_to_case_and_blanks_and_those_of_another_label_come_first():
    rows = texts("A fine  soup.", "a fine soup.", "A FINE\tSOUP.", "The bus.", labels=[0, 0, 1, 1])
    found = [one.duplicates for one in relatives(rows, rows)]
    assert found[0] == [Duplicate(2, True, False), Duplicate(1, True, True)]
    assert found[2] == [Duplicate(0, True, False), Duplicate(1, True, False)]
    assert found[3] == []


def test_validation_rows_find_their_texts_among_the_training_rows():
    train = texts("The bus was late.", "A fine soup.", labels=[0, 1])
    (same, other) = relatives(texts("a FINE soup.", "Nothing like it", labels=[0, 0]), train)
    assert same.duplicates == [Duplicate(1, True, False)]
    assert other.duplicates == []


def test_rows_are_nearly_equal_only_if_all_their_text_columns_are():
    long = "The committee met on the second of May to discuss the budget of the harbour"
    rows = [(long, "The budget was discussed"), (f"{long}.", "The budget was discussed.")]
    rows += [
        (long, "Ships are repaired here"),
        ("Ferries sail at noon", "The budget was discussed"),
    ]
    data = Texts(rows + [(f"Row {i}", f"word{i} and others") for i in range(9)], [0] * 13)
    found = [[one.row for one in like.duplicates] for like in relatives(data, data)]
    assert found[:4] == [[1], [0], [], []]


def test_rows_of_the_tickets_that_differ_in_one_word_are_nearly_equal():
    """Among them are two whose labels are wrong; a word of three is too many."""
    rows = texts(
        "I cancelled but was still billed in March.",
        "I cancelled but was still billed in May.",
        "I was billed in May.",
        labels=[1, 0, 0],
    )
    found = [one.duplicates for one in relatives(rows, rows)]
    assert found == [[Duplicate(1, False, False)], [Duplicate(0, False, False)], []]
    first, second = (words_of(rows.rows[row]) for row in (0, 1))
    assert are_alike(first, second) and len(first[0] & second[0]) == 7


def test_the_nearest_texts_are_those_of_the_highest_tfidf_cosine(monkeypatch):
    draw = np.random.default_rng(0)
    words = [f"w{i}" for i in range(30)]
    popular = np.arange(1, 31) ** -1.0
    rows = [
        " ".join(draw.choice(words, draw.integers(3, 9), p=popular / popular.sum()))
        for _ in range(60)
    ]
    rows = list(dict.fromkeys(" ".join(row.split()) for row in rows))
    table = cosine_table(rows)
    np.fill_diagonal(table, -1)
    monkeypatch.setattr("attribution.data.duplicates.BLOCK", 300)  # several blocks
    monkeypatch.setattr("attribution.data.duplicates.LOOKED_AT", 60)
    for row, found in enumerate(duplicates.nearest([(x,) for x in rows], [(x,) for x in rows])):
        assert row not in found and len(found) == len(set(found))
        assert set(np.flatnonzero(table[row] >= duplicates.LEFT_OUT + 1e-5)) <= set(found)
        assert np.diff(table[row, found]).max(initial=-1) < 1e-5  # falling


def test_of_a_text_that_many_rows_share_a_few_are_named():
    many = texts(*["good"] * 3000, "bad", labels=[*[0] * 2999, 1, 1])
    found = relatives(many, many)
    assert len(found[5].duplicates) == duplicates.MOST_NAMED
    assert found[5].duplicates[0] == Duplicate(2999, True, False)  # the one that contradicts
    assert 5 not in [one.row for one in found[5].duplicates]


def test_of_too_many_texts_only_equal_ones_are_found(monkeypatch):
    monkeypatch.setattr("attribution.data.duplicates.MOST_TEXTS", 2)
    rows = texts("A fine soup", "a fine soup", "A fine soup .", "The bus")
    found = relatives(rows, rows)
    assert [one.duplicates for one in found[:2]] == [
        [Duplicate(1, True, True)],
        [Duplicate(0, True, True)],
    ]
    assert found[2].duplicates == [] and found[2].neighbours == []


def test_texts_without_words_are_only_equal():
    rows = texts("...", "?!", "...", labels=[0, 0, 1])
    assert [one.duplicates for one in relatives(rows, rows)] == [
        [Duplicate(2, True, False)],
        [],
        [Duplicate(0, True, False)],
    ]
