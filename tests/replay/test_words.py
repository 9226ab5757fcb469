"""Values of tokens are the kernel's derivatives by their scales; words are pieces of the text."""

from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import small
import torch
import transformers as tf
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import nn

from attribution.data.tasks import TASKS
from attribution.files import Refused
from attribution.replay import words
from attribution.replay.features import contrasts
from attribution.replay.words import token_values, words_of
from pipeline import get_glue_dataset, get_tokenizer, model_inputs

TOKENIZER = get_tokenizer(None, "demo")
EPSILON = 1e-4


def rows_and_model(task: str):
    """Four rows of at most 12 tokens, and a tiny BERT in float64."""
    tables = {"train": datasets.Dataset.from_dict(small.table(task))}
    how = {"tables": datasets.DatasetDict(tables), "tokenizer": TOKENIZER, "max_samples": 4}
    data = get_glue_dataset(task, "train", max_length=12, **how)
    config = small.configs(len(TOKENIZER))["bert"]
    config.num_labels = TASKS[task].num_labels
    torch.manual_seed(0)
    model = tf.AutoModelForSequenceClassification.from_config(config)
    return data, model.double().eval()


def scaled_gradient(model, data, row: int, direction, scales, base=0.0) -> dict[str, torch.Tensor]:
    """Layer -> gradient of u . z of one row with word embeddings scaled by scales (T,), from a
    base (D,) on.
    """
    inputs = model_inputs(data.batch([row]))
    embedded = model.get_input_embeddings()(inputs.pop("input_ids")) - base
    embedded = base + embedded * scales[:, None]
    z = model(inputs_embeds=embedded, **inputs).logits[0]
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    flat = torch.autograd.grad(z @ direction, [p for m in layers.values() for p in m.parameters()])
    pairs = zip(flat[::2], flat[1::2], strict=True)
    return {name: torch.cat([w, b[:, None]], 1) for name, (w, b) in zip(layers, pairs, strict=True)}


def kernel_of(one: dict, other: dict) -> float:
    return sum(float((g * other[name]).sum()) for name, g in one.items())


def differences(fixed: torch.Tensor, point: float, value) -> torch.Tensor:
    """Central differences (T,) of a function of scales, where they are `point`; 0 where fixed."""
    found = torch.zeros(len(fixed), dtype=torch.float64)
    for place in (~fixed).nonzero():
        for sign in (1, -1):
            scales = torch.where(fixed, 1.0, point).double()
            scales[place] += sign * EPSILON
            found[place] += sign * value(scales) / (2 * EPSILON)
    return found


def special_of(data, row: int) -> torch.Tensor:
    """(T,) bool: [CLS] and [SEP] of a row."""
    tokens = data.batch([row])["input_ids"][0]
    return (tokens == TOKENIZER.cls_token_id) | (tokens == TOKENIZER.sep_token_id)


@pytest.mark.parametrize(
    "task, masked, path",
    [
        ("sst2", False, (1.0,)),
        ("sst2", True, (1.0,)),
        ("mrpc", True, (0.25, 0.75)),
        ("mnli", False, (0.5,)),
        ("stsb", True, (1.0,)),
    ],
)
def test_values_are_finite_differences_of_the_kernel(task, masked, path):
    data, model = rows_and_model(task)
    direction = contrasts(TASKS[task].num_labels)[0].double()
    shares = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    query, rows = data.subset([0]), data.subset([1, 2, 3])
    tokenizer = TOKENIZER if masked else None
    of_query, of_rows = token_values(model, query, rows, direction, shares, tokenizer, path)
    base = model.get_input_embeddings().weight[TOKENIZER.mask_token_id].detach() if masked else 0

    def at(data, row, scales=None):
        scales = torch.ones(int(data.lengths[row])) if scales is None else scales
        return scaled_gradient(model, data, row, direction, scales, base)

    def assert_differences(values, data, row, kernel):
        fixed = special_of(data, row) & masked
        assert fixed.any() == masked and not fixed.all()
        expected = sum(differences(fixed, point, kernel) for point in path) / len(path)
        assert torch.allclose(values, expected, rtol=1e-5, atol=1e-6 * expected.abs().max())

    asked = at(query, 0)
    given_rows = [at(rows, row) for row in range(3)]
    for row in range(3):

        def kernel(scales, row=row):
            return kernel_of(at(rows, row, scales), asked)

        assert_differences(of_rows[row], rows, row, kernel)

    def shared(scales):
        own = at(query, 0, scales)
        kernels = [kernel_of(own, other) for other in given_rows]
        return float(np.dot(shares.numpy(), kernels))

    assert_differences(of_query, query, 0, shared)


def test_values_along_a_path_add_up_to_what_the_kernel_loses_without_words():
    data, model = rows_and_model("sst2")
    direction = contrasts(2)[0].double()
    path = tuple((step + 0.5) / 60 for step in range(60))
    query, row, masked = (data.subset([place]) for place in (0, 1, 1))
    _, (of_row,) = token_values(model, query, row, direction, torch.ones(1), TOKENIZER, path=path)
    tokens = row.inputs["input_ids"]
    tokens = tokens.masked_fill(~special_of(row, 0), TOKENIZER.mask_token_id)
    masked.inputs = row.inputs | {"input_ids": tokens}
    asked, whole, without = (
        scaled_gradient(model, one, 0, direction, torch.ones(int(one.lengths[0])))
        for one in (query, row, masked)
    )
    lost = kernel_of(whole, asked) - kernel_of(without, asked)
    assert float(of_row.sum()) == pytest.approx(lost, rel=1e-2)


def test_values_of_a_row_depend_on_neither_batches_nor_other_rows(monkeypatch):
    data, model = rows_and_model("sst2")
    before = {name: p.clone() for name, p in model.state_dict().items()}
    direction = contrasts(2)[0]

    def values(rows):
        part = data.subset(rows)
        shares = torch.ones(len(rows))
        return token_values(model, data.subset([0]), part, direction, shares, TOKENIZER)

    of_query, together = values([1, 2, 3])
    _, (alone,) = values([2])
    assert torch.allclose(alone, together[1], rtol=1e-9)
    monkeypatch.setattr(words, "BUDGET", 1)
    of_query_again, apart = values([1, 2, 3])
    pairs = zip([*apart, of_query_again], [*together, of_query], strict=True)
    assert all(torch.allclose(*pair, rtol=1e-9, atol=1e-9) for pair in pairs)
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert not any(p.grad is not None for p in model.parameters())


# --- words ----------------------------------------------------------------------------------------


def trained_tokenizer(kind: str):
    """Byte-level tokenizer as RoBERTa's, or one with marks for spaces as XLM-RoBERTa's."""
    inner = Tokenizer(models.BPE() if kind == "bytes" else models.Unigram())
    special = {"unk_token": "<unk>", "special_tokens": ["<unk>", "<pad>"], "show_progress": False}
    if kind == "bytes":
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=alphabet, special_tokens=["<pad>"]
        )
    else:
        inner.normalizer = normalizers.NFKC()
        inner.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=200, **special)
    inner.train_from_iterator(small.ROWS["train"]["sentence"][:200], trainer)
    return tf.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>")


TOKENIZERS = {"words": TOKENIZER} | {kind: trained_tokenizer(kind) for kind in ("bytes", "marks")}
TEXTS = st.text(
    st.sampled_from("a Zé.,½ﬃ①ß한中\u0301\u200d\ufe0f👩🏽🔬אשרू \n\t\x07")
    | st.characters(codec="utf-8"),
    max_size=30,
)


def counted(columns: list[str], tokenizer, max_length: int = 64):
    """Values 1, 2, 4, ... of the tokens, and what of them is of no special token."""
    encoded = tokenizer(*columns, truncation=True, max_length=max_length)
    values = 2.0 ** torch.arange(len(encoded["input_ids"]), dtype=torch.float64)
    kept = [place is not None for place in encoded.sequence_ids()]
    return values, float(values[torch.tensor(kept, dtype=torch.bool)].sum())


@given(st.lists(TEXTS, min_size=1, max_size=2), st.integers(8, 64), st.sampled_from([*TOKENIZERS]))
def test_pieces_are_the_text_and_their_values_those_of_all_tokens(columns, max_length, kind):
    tokenizer = TOKENIZERS[kind]
    values, total = counted(columns, tokenizer, max_length)
    pieces = words_of(columns, tokenizer, values)
    assert ["".join(text for text, _ in column) for column in pieces] == columns
    assert all(text for column in pieces for text, _ in column)
    assert sum(value for column in pieces for _, value in column) == total


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The bay was rocky.", ["The", "bay", "was", "rocky", "."]),
        ("schöne Häuser", ["schöne", "Häuser"]),
        ("scho\u0308ne Häuser", ["scho\u0308ne", "Häuser"]),  # a combining character
        ("good 👩🏽\u200d🔬 bad", ["good", "👩🏽\u200d🔬", "bad"]),
        ("שלום, עולם", ["שלום", ",", "עולם"]),
        ("中文", ["中", "文"]),
    ],
)
def test_words_are_pieces_with_the_sum_of_their_tokens(text, expected):
    values, total = counted([text], TOKENIZER)
    (pieces,) = words_of([text], TOKENIZER, values)
    assert [piece for piece, value in pieces if value] == expected
    assert all(not piece.strip() for piece, value in pieces if not value)
    assert sum(value for _, value in pieces) == total


@pytest.mark.parametrize("kind", ["bytes", "marks"])
def test_spaces_are_no_part_of_words(kind):
    text = "The bay was rocky"
    values, _ = counted([text], TOKENIZERS[kind])
    (pieces,) = words_of([text], TOKENIZERS[kind], values)
    assert [piece for piece, _ in pieces] == ["The", " ", "bay", " ", "was", " ", "rocky"]


def test_text_behind_the_last_token_has_no_value():
    columns = ["The bay was rocky and wide", "Our soup was cold and bland"]
    values, total = counted(columns, TOKENIZER, 9)
    first, second = words_of(columns, TOKENIZER, values)
    assert first[-1] == (" rocky and wide", 0.0) and second[-1] == (" cold and bland", 0.0)
    assert sum(value for _, value in first + second) == total


def test_a_tokenizer_without_places_is_refused():
    with pytest.raises(Refused, match="fast version"):
        words_of(["a"], SimpleNamespace(is_fast=False), torch.ones(3))
