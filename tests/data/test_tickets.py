"""Tickets of the first example: three balanced classes, no text twice, none of validation seen."""

import csv
from collections import Counter

import pytest

from pipeline import DEMO_MODEL

CLASSES = ("account", "billing", "technical")


def read(name: str) -> list[dict[str, str]]:
    """Rows of a file in demo/: column -> value."""
    with open(DEMO_MODEL / name, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def words(row: dict[str, str]) -> str:
    """Text of a row without case, spaces and punctuation."""
    return "".join(letter for letter in row["text"].lower() if letter.isalnum())


@pytest.mark.parametrize(("name", "per_class"), [("tickets.csv", 40), ("tickets_valid.csv", 10)])
def test_tickets_are_balanced_and_have_two_columns(name, per_class):
    rows = read(name)
    assert all(list(row) == ["text", "label"] for row in rows)
    assert Counter(row["label"] for row in rows) == dict.fromkeys(CLASSES, per_class)
    assert all(row["text"] == row["text"].strip() != "" for row in rows)


def test_no_ticket_is_there_twice_and_none_of_validation_is_trained_on():
    texts = [words(row) for name in ("tickets.csv", "tickets_valid.csv") for row in read(name)]
    assert len(texts) == len(set(texts)) == 150


def test_each_wrong_label_has_a_twin_in_validation_with_the_right_one():
    pairs = {
        "The app crashes when I open the camera.": "The app crashes when I open the gallery.",
        "I cancelled but was still billed in March.": "I cancelled but was still billed in May.",
        "I forgot my password and need a new one.": "I forgot my password and need a new link.",
    }
    trained, asked = (
        {row["text"]: row["label"] for row in read(name)}
        for name in ("tickets.csv", "tickets_valid.csv")
    )
    labels = [(trained[wrong], asked[right]) for wrong, right in pairs.items()]
    assert labels == [("account", "technical"), ("technical", "billing"), ("billing", "account")]
