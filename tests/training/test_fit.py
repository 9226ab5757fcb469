"""Training is a function of its arguments, and prediction of the rows alone."""

import numpy as np
import pytest
import torch

from attribution.training.fit import epoch_order, fit, predict
from attribution.training.recipe import SCHEDULES
from pipeline import compute_loss, construct_bert, get_glue_dataset, model_inputs

RECIPE = {"learning_rate": 1e-3, "weight_decay": 0.01, "num_train_epochs": 1, "train_batch_size": 8}


@pytest.fixture(scope="module")
def data():
    return get_glue_dataset("demo", "train", max_samples=40)


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_same_seed_same_weights_bit_for_bit_whatever_the_process_did_before(data):
    torch.manual_seed(1)
    first = weights(fit(construct_bert("demo", seed=3), data, np.arange(40), seed=3, **RECIPE))
    torch.manual_seed(2)
    assert torch.equal(
        first, weights(fit(construct_bert("demo", seed=3), data, np.arange(40), seed=3, **RECIPE))
    )
    other = weights(fit(construct_bert("demo", seed=4), data, np.arange(40), seed=4, **RECIPE))
    assert not torch.equal(first, other)


def test_removing_rows_leaves_the_order_of_the_others():
    rows = np.arange(50)
    full = epoch_order(rows, 1, 2)
    kept = np.delete(rows, [4, 17, 30])
    assert np.array_equal(epoch_order(kept, 1, 2), full[np.isin(full, kept)])
    assert not np.array_equal(full, epoch_order(rows, 1, 3))


def test_the_epochs_loss_is_the_mean_over_examples_with_an_uneven_last_batch(data):
    losses = []
    fit(
        construct_bert("demo"),
        data,
        np.arange(19),
        seed=0,
        on_epoch=lambda epoch, loss, seconds: losses.append(loss),
        **RECIPE | {"learning_rate": 1e-12, "weight_decay": 0.0},
    )
    model, batch = construct_bert("demo").eval(), data.batch(range(19))
    expected = compute_loss(model(**model_inputs(batch)).logits, batch["labels"]).item() / 19
    assert losses == [pytest.approx(expected, rel=1e-4)]


def test_frozen_embeddings_stay_and_the_rest_moves(data):
    start = construct_bert("demo")
    model = fit(
        construct_bert("demo"), data, np.arange(16), seed=0, freeze_embeddings=True, **RECIPE
    )
    moved = {
        name
        for name, value in model.named_parameters()
        if not torch.equal(value, start.get_parameter(name))
    }
    assert moved and not any("embeddings" in name for name in moved)


def test_the_linear_schedule_takes_smaller_steps_than_the_constant_one(data):
    start = weights(construct_bert("demo"))
    distance = {}
    for schedule in SCHEDULES:
        model = fit(
            construct_bert("demo"), data, np.arange(40), seed=0, lr_schedule=schedule, **RECIPE
        )
        distance[schedule] = (weights(model) - start).norm().item()
    assert distance["linear"] < distance["constant"]


def test_prediction_does_not_depend_on_batch_size(data):
    model = construct_bert("demo")
    assert torch.allclose(predict(model, data, 3), predict(model, data, 40), atol=1e-5)
