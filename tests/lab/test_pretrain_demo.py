"""The demo's BERT never saw a row of the demo's data set."""

from lab.demo_rows import make_rows
from lab.pretrain_demo import make_corpus


def test_the_pretraining_corpus_contains_no_row():
    rows = {sentence for columns in make_rows().values() for sentence in columns["sentence"]}
    corpus = make_corpus()
    assert len(set(corpus)) == len(corpus) >= 20_000
    assert not rows & set(corpus)
