"""Tasks and splits, the model, margin and sampled labels."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attribution.data.tasks import TASKS, task_named
from attribution.engine.task import InfluenceTask
from attribution.files import Refused
from pipeline import (
    compute_loss,
    compute_margin,
    construct_bert,
    get_glue_dataset,
    load_tables,
    model_inputs,
)


def test_the_table_has_glues_nine_tasks_and_the_demo():
    assert set(TASKS) == {
        "cola",
        "sst2",
        "mrpc",
        "qqp",
        "stsb",
        "mnli",
        "qnli",
        "rte",
        "wnli",
        "demo",
    }
    assert TASKS["mnli"].validation == ("validation_matched", "validation_mismatched")
    assert [name for name, task in TASKS.items() if task.regression] == ["stsb"]
    assert TASKS["rte"].max_train_samples == 2432


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=5), st.integers(0, 4))
def test_margin_is_the_log_odds_of_the_label(logits, label):
    label %= len(logits)
    row = torch.tensor([logits], dtype=torch.float64)
    log_p = row.log_softmax(-1)[0]
    rest = torch.cat([log_p[:label], log_p[label + 1 :]]).logsumexp(0)
    assert compute_margin(row, torch.tensor([label])).item() == pytest.approx(
        (log_p[label] - rest).item(), abs=1e-9
    )


def test_margin_of_regression_is_minus_the_squared_error():
    logits, labels = torch.tensor([[1.0], [2.0]]), torch.tensor([3.0, 2.0])
    assert compute_margin(logits, labels).tolist() == [-4.0, 0.0]
    assert compute_loss(logits, labels).item() == 4.0


def test_measurement_is_minus_the_summed_margin_so_that_helpful_is_positive():
    data = get_glue_dataset("demo", "valid", max_samples=6)
    model, batch = construct_bert("demo").eval(), data.batch(range(6))
    logits = model(**model_inputs(batch)).logits
    measured = InfluenceTask().compute_measurement(batch, model)
    assert measured.item() == pytest.approx(
        -compute_margin(logits, batch["labels"]).sum().item(), rel=1e-5
    )


def test_a_data_set_has_the_chosen_rows_in_order():
    whole = get_glue_dataset("demo", "train")
    chosen = get_glue_dataset("demo", "train", indices=[5, 2, 9, 4, 1])
    assert chosen.texts() == [whole.texts()[row] for row in (5, 2, 9, 4, 1)]


def test_max_length_cuts_rows():
    assert get_glue_dataset("demo", "train", max_length=8).lengths.max() == 8


def test_a_head_is_a_function_of_its_seed_alone():
    torch.manual_seed(1)
    first = construct_bert("demo", seed=5).classifier.weight
    before = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first, construct_bert("demo", seed=5).classifier.weight)
    assert not torch.equal(first, construct_bert("demo", seed=6).classifier.weight)
    torch.manual_seed(1)
    construct_bert("demo", seed=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_sampled_labels_follow_the_models_distribution():
    task, rows = InfluenceTask(seed=1), torch.arange(20_000)
    logits = torch.tensor([0.2, 0.5, 0.3]).log().expand(len(rows), 3)
    shares = torch.bincount(task.sample_labels(rows, logits), minlength=3) / len(rows)
    assert torch.allclose(shares, torch.tensor([0.2, 0.5, 0.3]), atol=0.015)
    noise = task.sample_labels(rows, torch.full((len(rows), 1), 2.0)) - 2
    assert abs(noise.mean()) < 0.02 and abs(noise.var() - 0.5) < 0.02


def test_bad_names_are_refused():
    with pytest.raises(Refused, match=r"unknown task 'SST-2' \(did you mean 'sst2'\?\)"):
        task_named("SST-2")
    with pytest.raises(Refused, match="unknown task 'foo'; known"):
        task_named("foo")
    with pytest.raises(Refused, match="unknown split"):
        get_glue_dataset("demo", "test")


def test_an_empty_split_is_refused():
    tables = load_tables("demo")
    tables["train"] = tables["train"].select([])
    with pytest.raises(Refused, match="the split 'train' of demo has no rows"):
        get_glue_dataset("demo", "train", tables=tables)


def test_real_glue_opens_from_a_folder(glue_dir):
    for name, rows in {"cola": 8551, "rte": 2490, "sst2": 67349, "stsb": 5749}.items():
        table = load_tables(name, str(glue_dir))["train"]
        assert len(table) == rows and set(TASKS[name].columns) < set(table.column_names)
