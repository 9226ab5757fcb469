"""The embedded data set is what it says it is."""

import hashlib
import json

from attribution.data.demo import read_rows
from lab.demo_rows import FLIP_SHARE, TOPICS, make_rows
from pipeline import DEMO_MODEL


def test_rows_are_the_same_every_time_and_distinct():
    rows = read_rows()
    assert rows == make_rows()
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest().startswith("9d31629e4726a6d6")
    sentences = rows["train"]["sentence"] + rows["validation"]["sentence"]
    assert len(sentences) == len(set(sentences)) == 1100


def test_recorded_flips_are_the_wrong_labels():
    train = read_rows()["train"]
    assert sum(train["flipped"]) == FLIP_SHARE * 1000
    assert not any(read_rows()["validation"]["flipped"])
    for sentence, label, topic, flipped in zip(*train.values(), strict=True):
        words = set(sentence.rstrip(".").replace(",", "").split())
        _, praise, blame = (set(part.split(",")) for part in TOPICS[topic].split("|"))
        truth = 1 - label if flipped else label
        assert words & (praise if truth else blame) and not words & (blame if truth else praise)


def test_both_classes_and_all_topics_occur():
    train = read_rows()["train"]
    assert 450 < sum(train["label"]) < 550
    assert set(train["topic"]) == set(TOPICS)


def test_the_model_folder_is_below_one_megabyte():
    assert sum(path.stat().st_size for path in DEMO_MODEL.glob("*") if path.is_file()) < 1_000_000
