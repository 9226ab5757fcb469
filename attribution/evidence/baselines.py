"""Baselines: scores that need no factors, which a method must beat to be worth its factors.

Every function returns scores (Q queries, N training rows), float32. Similarities of texts or
representations are signed: a similar row of the same class helps, one of a different class harms.
For regression the sign, and a weight, is (label of the row - mean label) x (label of the query -
the model's output for it): a row above the mean pulls outputs up, which helps a query that the
model puts too low.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity

from attribution.data.dataset import GlueDataset
from attribution.evidence.arguments import BASELINES, OVERLAP
from attribution.training.fit import over_rows, predict

# Of BM25: how fast a word's count saturates, and how much the length of a text counts.
K1 = 1.2
B = 0.75


@dataclass(frozen=True)
class Models:
    """Models behind some baselines; each is opened only if it is needed."""

    trained: Callable[[], torch.nn.Module]  # the run's, on its device
    start: Callable[[], torch.nn.Module]  # the model before fine-tuning
    known: dict[str, np.ndarray] = field(default_factory=dict)  # fingerprint of rows -> `outputs`

    def outputs(self, queries: GlueDataset) -> np.ndarray:
        """(Q,): the trained model's outputs for a regression's rows; predicted once."""
        name = queries.fingerprint()
        if name not in self.known:
            self.known[name] = predict(self.trained(), queries).squeeze(-1).numpy()
        return self.known[name]


def signs(queries: GlueDataset, train: GlueDataset, models: Models | None) -> np.ndarray:
    """(Q, N): label agreement, +1 for the same class and -1 for another, or the product of a
    regression (see above), for which the model's outputs are needed.
    """
    if not train.task.regression:
        same = queries.labels[:, None] == train.labels[None, :]
        return np.where(same, 1.0, -1.0).astype(np.float32)
    assert models is not None
    return np.outer(
        queries.labels - models.outputs(queries), train.labels - train.labels.mean()
    ).astype(np.float32)


# --- texts ----------------------------------------------------------------------------------------


def words(kind: type, train_texts: list[str]):
    """A scikit-learn vectorizer of this kind, fitted on the training texts; None where all of them
    are empty.

    Where no text has a word of two letters, single letters count as words.
    """
    if not any(text.strip(" |") for text in train_texts):
        return None
    try:
        return kind().fit(train_texts)
    except ValueError:  # an empty vocabulary
        return kind(token_pattern=r"\S+").fit(train_texts)


def tfidf_cosine(query_texts: list[str], train_texts: list[str]) -> np.ndarray:
    """Cosine of TF-IDF vectors of words (scikit-learn's defaults), weights learned from the
    training texts.
    """
    if (vectorizer := words(TfidfVectorizer, train_texts)) is None:
        return np.zeros((len(query_texts), len(train_texts)), np.float32)
    product = vectorizer.transform(query_texts) @ vectorizer.transform(train_texts).T
    return product.toarray().astype(np.float32)


def bm25(query_texts: list[str], train_texts: list[str]) -> np.ndarray:
    """BM25 of every training text for every query (Robertson and Zaragoza 2009,
    doi:10.1561/1500000019, equation 3.15).

    The sum over the query's words of w c (K1 + 1) / (c + K1 (1 - B + B l / mean l)), for a text of
    l words that has the word c times; w = ln(1 + (N - n + 0.5) / (n + 0.5)) for a word in n of N
    texts, which is never below zero.
    """
    if (vectorizer := words(CountVectorizer, train_texts)) is None:
        return np.zeros((len(query_texts), len(train_texts)), np.float32)
    counts = csr_matrix(vectorizer.transform(train_texts), dtype=np.float64)
    wanted = vectorizer.transform(query_texts)
    lengths = np.asarray(counts.sum(1)).ravel()
    found = counts.getnnz(0)
    weights = np.log(1 + (counts.shape[0] - found + 0.5) / (found + 0.5))
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    saturation = K1 * (1 - B + B * lengths / lengths.mean())
    counts.data = (
        weights[counts.indices] * counts.data * (K1 + 1) / (counts.data + saturation[rows])
    )
    return (wanted @ counts.T).toarray().astype(np.float32)


# --- representations ------------------------------------------------------------------------------


def represent(model: torch.nn.Module, *sets: GlueDataset, mean: bool = False) -> list[np.ndarray]:
    """The last layer's first token, or its mean over the tokens, (rows, D) float32, for every data
    set.
    """
    model = model.eval()

    def read(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        hidden = model.base_model(**inputs).last_hidden_state
        if not mean:
            return hidden[:, 0]
        mask = inputs["attention_mask"][..., None].to(hidden.dtype)
        return (hidden * mask).sum(1) / mask.sum(1)

    return [over_rows(read, data, next(model.parameters()).device).numpy() for data in sets]


# --- all of them ----------------------------------------------------------------------------------


def random_scores(num_queries: int, num_train: int, seed: int) -> np.ndarray:
    """(Q, N) float32: standard normal numbers of this seed."""
    return np.random.default_rng(seed).standard_normal((num_queries, num_train), dtype=np.float32)


def baseline_scores(
    name: str, queries, train, models: Models | None = None, seed: int = 0
) -> np.ndarray:
    """The named baseline for two data sets (`labels`, `texts()`, `task.regression`).

    models: for `representation` and `start`, and for everything of a regression but `random`.
    """
    if name not in BASELINES:
        raise ValueError(f"unknown baseline: {name}")
    if name == "random":
        return random_scores(len(queries), len(train), seed)
    agreement = signs(queries, train, models)
    if name == "label":
        return agreement
    if name in OVERLAP:
        similar = (bm25 if name == "bm25" else tfidf_cosine)(queries.texts(), train.texts())
        return similar ** (2 if name == "tfidf2" else 1) * agreement
    assert models is not None
    model = models.start() if name == "start" else models.trained()
    return cosine_similarity(*represent(model, queries, train, mean=name == "start")) * agreement
