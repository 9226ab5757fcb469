"""Tokens are made once, and are the same wherever they come from."""

import datasets
import numpy as np
import pytest
import torch

from attribution.data import dataset
from attribution.data.dataset import pad
from pipeline import get_glue_dataset, get_tokenizer, load_tables

# of the demo's first 120 rows, as always
TRAIN = "f4166aaa07bdeca0e8e9be0facda7167b032e1f1c85181023062728d6deb61a2"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and tokens of 120 rows go into it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(dataset, "CACHED_ROWS", 100)
    return tmp_path / "attribution_tokens"


class Counting:
    """A tokenizer that counts how often it is called: once to settle its state, and once for the
    rows.
    """

    def __init__(self) -> None:
        self.inner, self.calls = get_tokenizer(None, "demo"), 0

    def __call__(self, *texts, **how):
        self.calls += 1
        return self.inner(*texts, **how)

    def __getattr__(self, name: str):
        return getattr(self.inner, name)


def rows(tokenizer, max_length: int = 128, **how):
    return get_glue_dataset(
        "demo", "train", max_samples=120, tokenizer=tokenizer, max_length=max_length, **how
    )


def test_rows_have_the_fingerprint_that_they_always_had_cached_or_not(cache, monkeypatch):
    assert rows(None).fingerprint() == TRAIN and len(list(cache.glob("*.arrow"))) == 1
    monkeypatch.setattr(dataset, "CACHED_ROWS", 1000)
    assert rows(None).fingerprint() == TRAIN and len(list(cache.glob("*.arrow"))) == 1


def test_tokens_on_the_disk_are_not_made_again_unless_length_or_rows_are_others(cache):
    tokenizer = Counting()
    tables = load_tables("demo")
    first, calls = rows(tokenizer, tables=tables), tokenizer.calls
    second = rows(tokenizer, tables=tables)
    assert tokenizer.calls == calls + 1 and second.fingerprint() == first.fingerprint()
    assert (
        int(rows(tokenizer, 10, tables=tables).lengths.max()) == 10 and tokenizer.calls == calls + 3
    )
    fewer = get_glue_dataset("demo", "train", list(range(110)), tokenizer=tokenizer, tables=tables)
    assert len(fewer) == 110 and tokenizer.calls == calls + 5


@pytest.mark.parametrize("how", ["flipped", "cut", "emptied"])
def test_damaged_tokens_on_the_disk_are_named_and_made_again(cache, capsys, how):
    rows(None)
    (path,) = cache.glob("*.arrow")
    whole = path.read_bytes()
    place = whole.rindex(rows(None).inputs["input_ids"][0, :4].numpy().astype("<i4").tobytes()[:8])
    flipped = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    path.write_bytes({"flipped": flipped, "cut": whole[: len(whole) // 2], "emptied": b""}[how])
    assert rows(None).fingerprint() == TRAIN
    assert "are damaged and are made again" in capsys.readouterr().err
    assert rows(None).fingerprint() == TRAIN and "damaged" not in capsys.readouterr().err


def test_rows_are_padded_behind_their_end():
    padded = pad(*dataset.flatten([[1, 2, 3], [4], [5, 6]]))
    assert padded.dtype == torch.int32 and padded.tolist() == [[1, 2, 3], [4, 0, 0], [5, 6, 0]]
    flat, lengths = dataset.flatten([[7], [8, 9]])
    assert flat.tolist() == [7, 8, 9] and lengths.tolist() == [1, 2] and lengths.dtype == np.int64


def test_texts_that_shall_leave_nothing_behind_are_not_cached(cache):
    assert rows(None, cache=False).fingerprint() == TRAIN and not list(cache.glob("*"))
