"""A batch is its rows, padded to the longest of them, which changes nothing."""

import torch

from attribution.data.dataset import collate
from pipeline import construct_bert, get_glue_dataset, model_inputs


def test_batches_are_padded_to_their_own_longest_row_and_keep_row_numbers():
    data = get_glue_dataset("demo", "train", max_samples=20)
    rows = [7, 3, 11]
    batch = collate([data[i] for i in rows])
    assert batch["row"].tolist() == rows
    assert (
        batch["input_ids"].shape[1]
        == data.lengths[rows].max()
        == batch["attention_mask"].sum(1).max()
    )
    assert batch["attention_mask"].sum(1).tolist() == data.lengths[rows].tolist()
    wide = collate([data[i] for i in rows], pad_to=40)
    assert wide["input_ids"].shape == (3, 40)
    model = construct_bert("demo").eval()
    assert torch.allclose(
        model(**model_inputs(batch)).logits, model(**model_inputs(wide)).logits, atol=1e-5
    )


def test_a_row_is_its_text_and_the_name_of_its_class_and_the_fingerprint_sees_order_and_labels():
    data, reverse = (
        get_glue_dataset("demo", "train", indices) for indices in ([0, 1, 2], [2, 1, 0])
    )
    assert data.texts() == [data.text(row) for row in range(3)] == list(data.table["sentence"])
    assert {data.label_name(row) for row in range(3)} <= {"negative", "positive"}
    before = data.fingerprint()
    assert (
        before
        == get_glue_dataset("demo", "eval_train", [0, 1, 2]).fingerprint()
        != reverse.fingerprint()
    )
    data.labels[1] = 1 - data.labels[1]
    assert data.fingerprint() != before
