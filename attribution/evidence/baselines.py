"""Scores that need no factors: what a method must beat to be worth them.

Every function returns scores (Q queries, N training rows), float32. Similarities of texts or representations are
signed by label agreement: a similar row of the same class helps, one of another class harms. For regression there
is no agreement and no sign.
"""

from pathlib import Path

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from transformers import AutoModelForSequenceClassification

from attribution.rows import GlueDataset
from attribution.training.fit import over_rows

NAMES = ("random", "label", "tfidf", "tfidf2", "representation")


def agreement(query_labels: np.ndarray, train_labels: np.ndarray) -> np.ndarray:
    """+1 where a query (Q,) and a training row (N,) have the same class, -1 elsewhere."""
    return np.where(query_labels[:, None] == train_labels[None, :], 1.0, -1.0).astype(np.float32)


def tfidf_cosine(query_texts: list[str], train_texts: list[str]) -> np.ndarray:
    """Cosine of TF-IDF vectors of words (scikit-learn's defaults), weights learned from the training texts.

    Where no text has a word of two letters, single letters count as words; where all are empty, nothing is alike.
    """
    if not any(text.strip(" |") for text in train_texts):
        return np.zeros((len(query_texts), len(train_texts)), np.float32)
    try:
        vectorizer = TfidfVectorizer().fit(train_texts)
    except ValueError:  # an empty vocabulary
        vectorizer = TfidfVectorizer(token_pattern=r"\S+").fit(train_texts)
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
    if name == "label" and train.task.regression:
        return None
    regression = train.task.regression
    sign = np.ones((1, 1), np.float32) if regression else agreement(queries.labels, train.labels)
    if name == "label":
        return sign
    if name == "representation":
        return cosine(*representations()) * sign
    if name in ("tfidf", "tfidf2"):
        return tfidf_cosine(queries.texts(), train.texts()) ** (2 if name == "tfidf2" else 1) * sign
    raise ValueError(f"unknown baseline: {name}")


def all_baselines(folder: Path, device: torch.device, queries, train) -> dict[str, np.ndarray]:
    """Name -> scores (Q, N) of every baseline that exists for these data sets; folder: the run's."""
    pairs = {
        name: baseline_scores(name, queries, train, lambda: represent(folder, device, queries, train)) for name in NAMES
    }
    return {name: scores for name, scores in pairs.items() if scores is not None}


def represent(folder: Path, device: torch.device, *sets: GlueDataset) -> list[np.ndarray]:
    """The first token of the last layer of the model in the folder, (rows, D) float32, for every data set."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).to(device).eval()

    def read(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return model.base_model(**inputs).last_hidden_state[:, 0]

    return [over_rows(read, data, device).numpy() for data in sets]
