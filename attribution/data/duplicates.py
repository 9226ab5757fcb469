"""Duplicates: rows of equal or nearly equal texts, and the training rows whose texts are nearest.

Texts are equal up to case and blanks; `words.are_alike` says which are nearly equal. The nearest
are those of the highest cosine of TF-IDF vectors of words.
Symbols: R rows, N training rows, U distinct training texts, P distinct texts of the rows, W words.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from attribution.data.dataset import GlueDataset
from attribution.data.words import WORD, are_alike, words_of

NEIGHBOURS = 5  # texts
LOOKED_AT = 16  # texts of which the cosine is computed, for each text
MOST_NAMED = 20  # duplicates of a row
MOST_TEXTS = 100_000  # distinct training texts; of more, only equal ones are found
LEFT_OUT = 0.4  # of a vector's length, its commonest words, by which no text is looked for
BLOCK = 2**24  # cosines at a time, at most


@dataclass(frozen=True)
class Duplicate:
    """A training row of the same or nearly the same text."""

    row: int
    equal: bool
    same_label: bool


@dataclass(frozen=True)
class Relatives:
    """Training rows whose texts are like that of a row, itself left out."""

    duplicates: list[Duplicate]  # equal ones first, and of these those of another label
    neighbours: list[int]  # nearest first, one of each text, none of an equal text


def relatives(rows: GlueDataset, train: GlueDataset) -> list[Relatives]:
    """(R,): the relatives of each row among the training rows; both may be the same data set.

    Of more than MOST_TEXTS distinct texts only equal ones are found. Nearly equal ones are looked
    for among the LOOKED_AT nearest.
    """
    keys = keys_of(rows)
    groups: dict[tuple, list[int]] = {}
    for row, key in enumerate(keys_of(train)):
        groups.setdefault(key, []).append(row)
    texts = list(groups)
    asked = list(dict.fromkeys(keys))
    like: dict[tuple, list[int]] = {}
    if len(texts) <= MOST_TEXTS:
        like = dict(zip(asked, nearest(asked, texts), strict=True))
    words = [words_of(text) for text in texts]
    named = {key: first_of_labels(group, train.labels) for key, group in groups.items()}
    found = []
    for row, (key, label) in enumerate(zip(keys, rows.labels, strict=True)):
        near = like.get(key, [])
        own = words_of(key)
        alike = [texts[place] for place in near if are_alike(own, words[place])]
        sources = [(key, True), *((text, False) for text in alike)]
        duplicates = [
            Duplicate(other, equal, same_label=bool(train.labels[other] == label))
            for source, equal in sources
            for other in named.get(source, [])
            if rows is not train or other != row
        ]
        duplicates.sort(key=lambda one: (not one.equal, one.same_label))
        neighbours = [groups[texts[place]][0] for place in near[:NEIGHBOURS]]
        found.append(Relatives(duplicates[:MOST_NAMED], neighbours))
    return found


def keys_of(data: GlueDataset) -> list[tuple[str, ...]]:
    """(N,): text columns of each row, without differences of case and blanks."""
    columns = ([" ".join(text.casefold().split()) for text in one] for one in data.columns())
    return list(zip(*columns, strict=True))


def first_of_labels(group: list[int], labels: np.ndarray) -> list[int]:
    """The rows of a group that are named: of each label the first ones."""
    counts: dict[float, int] = {}
    named = []
    for row in group:
        label = float(labels[row])
        counts[label] = counts.get(label, 0) + 1
        if counts[label] <= MOST_NAMED + 1:
            named.append(row)
    return named


# --- cosines --------------------------------------------------------------------------------------


def nearest(asked: list[tuple[str, ...]], texts: list[tuple[str, ...]]) -> list[list[int]]:
    """(P,): for each text that is asked about, places of the LOOKED_AT nearest others, by falling
    mean cosine of their columns.

    A text whose cosine is below LEFT_OUT may be missed.
    """
    columns = range(len(texts[0]))
    pairs = [vectors([one[i] for one in asked], [one[i] for one in texts]) for i in columns]
    scale = len(pairs) ** -0.5  # of the columns side by side, whose product is the mean cosine
    left = sparse.hstack([one for one, _ in pairs], "csr") * np.float32(scale)
    right = sparse.hstack([other for _, other in pairs], "csr") * np.float32(scale)
    looked_for = without_common(left, np.bincount(right.indices, minlength=right.shape[1]))
    turned = right.T.tocsr()
    places = {text: place for place, text in enumerate(texts)}
    found = []
    step = max(BLOCK // len(texts), 1)
    for begin in range(0, len(asked), step):
        part = asked[begin : begin + step]
        product = looked_for[begin : begin + step] @ turned
        highest = [best_of(product, row, places.get(text)) for row, text in enumerate(part)]
        rows = np.repeat(np.arange(len(part)), [len(one) for one in highest]) + begin
        others = np.concatenate(highest)
        each = np.mean([cosines(one[rows], other[others]) for one, other in pairs], axis=0)
        order = np.lexsort((others, -each, rows))
        several: list[list[int]] = [[] for _ in part]
        for place in order.tolist():
            several[rows[place] - begin].append(int(others[place]))
        found += several
    return found


def vectors(asked: list[str], texts: list[str]) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """TF-IDF vectors of length 1 of a column of the texts asked about and of the others (U, W),
    weights learned from these.
    """
    vectorizer = TfidfVectorizer(token_pattern=WORD.pattern, lowercase=False, dtype=np.float32)
    if not any(map(WORD.search, texts)):
        return sparse.csr_matrix((len(asked), 1)), sparse.csr_matrix((len(texts), 1))
    right = vectorizer.fit_transform(texts)
    return vectorizer.transform(asked), right


def without_common(vectors: sparse.csr_matrix, counts: np.ndarray) -> sparse.csr_matrix:
    """Vectors (P, W) without their commonest words, as many as have a length below LEFT_OUT.

    A text with a cosine of LEFT_OUT or more shares a word that is left (prefix filtering: Bayardo,
    Ma and Srikant, WWW 2007). It saves nearly all of the work. counts: (W,) texts with a word.
    """
    rows = np.repeat(np.arange(vectors.shape[0]), np.diff(vectors.indptr))
    order = np.lexsort((-counts[vectors.indices], rows))
    squares = np.concatenate([[0.0], np.cumsum(vectors.data[order].astype(np.float64) ** 2)])
    within = squares[1:] - squares[vectors.indptr[rows]]
    kept = order[within >= LEFT_OUT**2]
    places = rows[kept], vectors.indices[kept]
    return sparse.csr_matrix((vectors.data[kept], places), shape=vectors.shape)


def best_of(product: sparse.csr_matrix, row: int, itself: int | None) -> np.ndarray:
    """Places of the LOOKED_AT highest values in a row of a product, without that of the text
    itself.
    """
    part = slice(product.indptr[row], product.indptr[row + 1])
    values = product.data[part]
    places = product.indices[part]
    others = places != itself
    values, places = values[others], places[others]
    if len(values) <= LOOKED_AT:
        return places
    return places[np.argpartition(-values, LOOKED_AT)[:LOOKED_AT]]


def cosines(one: sparse.csr_matrix, other: sparse.csr_matrix) -> np.ndarray:
    """Products (K,) of the rows of two matrices (K, W)."""
    return np.asarray(one.multiply(other).sum(1)).ravel()
