"""A baseline is its formula, and does not exist where its ingredients do not."""

import numpy as np
import pytest

from attribution.evidence import baselines
from pipeline import get_glue_dataset, get_tokenizer


@pytest.fixture(scope="module")
def data():
    return get_glue_dataset("demo", "valid", max_samples=7), get_glue_dataset("demo", "train", max_samples=30)


def test_label_agreement_is_the_sign_of_every_similarity(data):
    queries, train = data
    label = baselines.baseline_scores("label", *data)
    assert label.shape == (7, 30) and set(np.unique(label)) == {-1.0, 1.0}
    assert label[2, 5] == (1.0 if queries.labels[2] == train.labels[5] else -1.0)
    tfidf, squared = (baselines.baseline_scores(name, *data) for name in ("tfidf", "tfidf2"))
    assert (np.sign(tfidf)[tfidf != 0] == label[tfidf != 0]).all() and (np.abs(tfidf) > 0.1).any()
    assert squared == pytest.approx(tfidf**2 * label, abs=1e-7)


def test_tfidf_equals_the_formula_written_out():
    train, query = ["red red house", "blue house", "green tree"], "red tree house house"
    words = ["blue", "green", "house", "red", "tree"]
    counts = np.array([[text.split().count(word) for word in words] for text in [*train, query]], float)
    weights = np.log(4 / (1 + (counts[:3] > 0).sum(0))) + 1
    vectors = counts * weights
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert baselines.tfidf_cosine([query], train)[0] == pytest.approx(vectors[:3] @ vectors[3], abs=1e-6)


def test_representations_are_compared_by_cosine_and_asked_for_only_when_needed(data):
    generator = np.random.default_rng(0)
    pair = generator.standard_normal((7, 4)), generator.standard_normal((30, 4))
    scores = baselines.baseline_scores("representation", *data, lambda: pair)
    expected = pair[0][1] @ pair[1][2] / np.linalg.norm(pair[0][1]) / np.linalg.norm(pair[1][2])
    assert abs(scores[1, 2]) == pytest.approx(abs(expected), rel=1e-5)
    baselines.baseline_scores("tfidf", *data, lambda: pytest.fail("not needed"))


def test_random_scores_are_a_function_of_the_seed():
    first = baselines.random_scores(3, 50, 1)
    assert np.array_equal(first, baselines.random_scores(3, 50, 1))
    assert not np.array_equal(first, baselines.random_scores(3, 50, 2))


def test_regression_has_no_label_agreement(glue_dir):
    shared = {"dataset_path": str(glue_dir), "tokenizer": get_tokenizer(None, "demo"), "max_samples": 5}
    data = [get_glue_dataset("stsb", split, **shared) for split in ("valid", "train")]
    assert baselines.baseline_scores("label", *data) is None
    assert (baselines.baseline_scores("tfidf", *data) >= 0).all()
