"""A batch is its rows, padded to the longest of them, which changes nothing."""

import numpy as np
import pytest
import small
import torch
from datasets import Dataset

from attribution.data.dataset import collate
from attribution.data.tasks import GlueTask
from attribution.training.queries import read_label
from pipeline import construct_bert, get_glue_dataset, get_tokenizer, model_inputs


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


@pytest.mark.parametrize("label", [3.8, 2.0, 1 / 3, 1.231, -1e-5, 1e14])
def test_a_number_is_written_so_that_it_is_read_as_the_same_label(label):
    row = small.Plain(GlueTask(("text",), 1, ()), ["a text"], np.array([label], np.float32))
    name = row.exact_label(0)
    assert np.float32(read_label(name, row.task)) == row.labels[0]
    assert len(name.partition(".")[2]) >= 2 and "e" not in name


def test_the_demo_knows_which_labels_are_wrong_and_a_part_of_its_rows_too():
    data = get_glue_dataset("demo", "train")
    assert data.truth is not None and data.truth.sum() == 50
    rows = [3, *np.flatnonzero(data.truth)[:2].tolist()]
    for part in (data.subset(rows), get_glue_dataset("demo", "train", rows)):
        assert part.truth is not None and part.truth.tolist() == [False, True, True]


@pytest.mark.parametrize("task", ["demo", "sst2"])
@pytest.mark.parametrize("values", [["yes", ""], [True, False], [1.5, 0.0], [None, "flipped"]])
def test_no_column_of_other_rows_is_taken_for_that_truth(task, values, tmp_path):
    columns = small.table(labels=lambda _, kind: 1 - kind) | {"flipped": values * 12}
    for split in ("train", "validation"):
        place = tmp_path / task / f"{split}-0.parquet"
        place.parent.mkdir(exist_ok=True)
        Dataset.from_dict(columns).to_parquet(place)
    tokenizer = get_tokenizer(None, "demo")
    data = get_glue_dataset(task, "train", dataset_path=str(tmp_path), tokenizer=tokenizer)
    assert data.truth is None
