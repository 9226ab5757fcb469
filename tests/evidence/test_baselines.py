"""A baseline is its formula, and does not exist where its ingredients do not."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from attribution.evidence import baselines
from pipeline import construct_bert, get_glue_dataset, model_inputs


@pytest.fixture(scope="module")
def data():
    return get_glue_dataset("demo", "valid", max_samples=7), get_glue_dataset(
        "demo", "train", max_samples=30
    )


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
    counts = np.array(
        [[text.split().count(word) for word in words] for text in [*train, query]], float
    )
    weights = np.log(4 / (1 + (counts[:3] > 0).sum(0))) + 1
    vectors = counts * weights
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert baselines.tfidf_cosine([query], train)[0] == pytest.approx(
        vectors[:3] @ vectors[3], abs=1e-6
    )


def test_bm25_equals_the_formula_written_out():
    train, query = (
        ["red red house", "blue house", "green tree and grass"],
        "red house house unknown",
    )
    expected, mean = [], 9 / 3
    for text in train:
        total, tokens = 0.0, text.split()
        for word in query.split():
            n, c = sum(word in other.split() for other in train), tokens.count(word)
            weight = np.log(1 + (3 - n + 0.5) / (n + 0.5))
            total += weight * c * 2.2 / (c + 1.2 * (0.25 + 0.75 * len(tokens) / mean))
        expected.append(total)
    assert baselines.bm25([query], train)[0] == pytest.approx(expected, abs=1e-6)
    assert not baselines.bm25([query], ["", " "]).any()


def models_that(trained=None, start=None) -> baselines.Models:
    unused = lambda: pytest.fail("not needed")  # noqa: E731
    return baselines.Models(trained or unused, start or unused)


def test_representations_are_compared_by_cosine_and_asked_for_only_when_needed(data):
    queries, train = data
    model = construct_bert("demo").eval()

    def one(rows, i):
        return model.base_model(**model_inputs(rows.batch([i]))).last_hidden_state[0].detach()

    for name, models, read in (
        ("representation", models_that(trained=lambda: model), lambda hidden: hidden[0]),
        ("start", models_that(start=lambda: model), lambda hidden: hidden.mean(0)),
    ):
        scores = baselines.baseline_scores(name, *data, models)
        expected = torch.cosine_similarity(read(one(queries, 1)), read(one(train, 2)), dim=0).item()
        sign = 1 if queries.labels[1] == train.labels[2] else -1
        assert scores[1, 2] == pytest.approx(sign * expected, rel=1e-4)
    baselines.baseline_scores("tfidf", *data, models_that())


def test_random_scores_are_a_function_of_the_seed():
    first = baselines.random_scores(3, 50, 1)
    assert np.array_equal(first, baselines.random_scores(3, 50, 1))
    assert not np.array_equal(first, baselines.random_scores(3, 50, 2))


def test_a_regressions_sign_says_whether_a_row_pulls_towards_the_label(data, monkeypatch):
    """A row above the mean helps a query that the model puts too low, and harms one that it puts
    too high.
    """
    queries, train = (copy.copy(part) for part in data)
    for part in (queries, train):
        part.task = replace(part.task, num_labels=1)
    train.labels = np.arange(30.0)
    queries.labels = np.array([5.0, 0, 5, 0, 5, 0, 5])
    monkeypatch.setattr(baselines, "predict", lambda model, rows: torch.full((len(rows), 1), 2.0))
    models = models_that(trained=lambda: None)
    label = baselines.baseline_scores("label", queries, train, models)
    assert np.allclose(label, np.outer(queries.labels - 2, train.labels - 14.5))
    tfidf = baselines.baseline_scores("tfidf", queries, train, models)
    assert (np.sign(tfidf)[tfidf != 0] == np.sign(label)[tfidf != 0]).all() and (tfidf != 0).any()
