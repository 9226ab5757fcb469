"""Inner products of training gradients are those of autograd, and projections keep them."""

import numpy as np
import pytest
import torch

from attribution.influence.gram import alike
from attribution.training.queries import open_trained
from attribution.training.run import open_data, open_run
from pipeline import compute_loss, model_inputs


@pytest.fixture(scope="module")
def compared(trained):
    """(run's folder, 20 rows, masks (6, 20), their Gram matrix from autograd in float64, mean
    diagonal 1).
    """
    folder, run = open_run(trained, "demo")
    train = open_data(folder, run, None, 1)[0].first(20)
    model = open_trained(folder).double().eval()
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    parameters = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
    gradients = []
    for row in range(len(train)):
        batch = train.batch([row])
        loss = compute_loss(model(**model_inputs(batch)).logits, batch["labels"])
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    gram = (torch.stack(gradients) @ torch.stack(gradients).T).numpy()
    masks = (np.random.default_rng(0).random((6, len(train))) < 0.5).astype(np.uint8)
    return folder, train, masks, gram / gram.diagonal().mean()


def test_without_projection_they_are_those_of_autograd(compared):
    folder, train, masks, gram = compared
    found = alike(folder, train, masks, width=10_000)
    np.testing.assert_allclose(found, gram @ masks.T, rtol=1e-3, atol=1e-4 * np.abs(gram).max())


def test_projections_keep_them_nearly_and_are_always_the_same(compared):
    folder, train, masks, gram = compared
    everyone = np.eye(len(train))  # one row a mask: the Gram matrix itself
    found = alike(folder, train, everyone, width=32)
    assert np.corrcoef(found.ravel(), gram.ravel())[0, 1] > 0.98
    assert np.array_equal(found, alike(folder, train, everyone, width=32))
    assert found.diagonal().mean() == pytest.approx(1)
