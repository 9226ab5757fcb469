"""Scores that need no factors: what a method must beat to be worth them.

Every function returns scores (Q queries, N training rows), float32. Similarities of texts or representations are
signed by label agreement: a similar row of the same class helps, one of another class harms. For regression there
is no agreement and no sign.
"""

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

NAMES = ("random", "label", "tfidf", "tfidf2", "representation")


def agreement(query_labels: np.ndarray, train_labels: np.ndarray) -> np.ndarray:
    """+1 where a query (Q,) and a training row (N,) have the same class, -1 elsewhere."""
    return np.where(query_labels[:, None] == train_labels[None, :], 1.0, -1.0).astype(np.float32)


def tfidf_cosine(query_texts: list[str], train_texts: list[str]) -> np.ndarray:
    """Cosine of TF-IDF vectors of words (scikit-learn's defaults), weights learned from the training texts."""
    vectorizer = TfidfVectorizer().fit(train_texts)
    product = vectorizer.transform(query_texts) @ vectorizer.transform(train_texts).T
    return product.toarray().astype(np.float32)


def cosine(queries: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Cosine of representations (Q, D) and (N, D)."""
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (queries, train)]
    return (unit[0] @ unit[1].T).astype(np.float32)


def random_scores(num_queries: int, num_train: int, seed: int) -> np.ndarray:
    """Standard normal numbers."""
    return np.random.default_rng(seed).standard_normal((num_queries, num_train), dtype=np.float32)


def baseline_scores(name: str, queries, train, representations=None, seed: int = 0) -> np.ndarray | None:
    """The named baseline for two data sets (`labels`, `texts()`, `task.regression`); None where it does not exist.

    representations: () -> ((Q, D), (N, D)), asked for only where it is needed.
    """
    if name == "random":
        return random_scores(len(queries), len(train), seed)
    sign = np.float32(1.0) if train.task.regression else agreement(queries.labels, train.labels)
    if name == "label":
        return None if train.task.regression else sign
    if name == "representation":
        return cosine(*representations()) * sign
    if name in ("tfidf", "tfidf2"):
        return tfidf_cosine(queries.texts(), train.texts()) ** (2 if name == "tfidf2" else 1) * sign
    raise ValueError(f"unknown baseline: {name}")
