"""Features of rows are autograd's gradients of the model's outputs, preconditioned and sketched."""

import pytest
import torch
from torch import nn

from attribution.data.tasks import GlueTask
from attribution.files import Refused
from attribution.replay.features import FLOOR, Sketch, contrasts, root_of_fisher, second_moments
from pipeline import construct_bert, get_glue_dataset, model_inputs

ROWS = 6
WIDE = 10_000  # wider than any layer: the sketch is exact


def rows_and_model(num_labels: int):
    data = get_glue_dataset("demo", "train", max_samples=ROWS)
    names = tuple("abcd"[:num_labels]) if num_labels > 1 else ()
    task = GlueTask(("sentence",), num_labels, names)
    model = construct_bert("demo", num_hidden_layers=1, new_head=True, task=task)
    return data, model.eval()


def sketched(model: nn.Module, data, seed: int = 0, width: int = WIDE) -> Sketch:
    return Sketch(model, second_moments(model, data), seed, width)


def jacobian(model: nn.Module, data) -> tuple[torch.Tensor, dict[str, list[torch.Tensor]]]:
    """(logits (N, C), layer -> for each row the gradients (C, D_out, D_in) of its logits, with the
    bias as the last column), float64, one row and one output at a time.
    """
    model = model.double().requires_grad_(True)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    found: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    logits = []
    for row in range(len(data)):
        z = model(**model_inputs(data.batch([row]))).logits[0]
        each = []
        for output in z:
            weights = [(m.weight, m.bias) for m in layers.values()]
            flat = torch.autograd.grad(
                output, [p for pair in weights for p in pair], retain_graph=True
            )
            each.append(
                [torch.cat([w, b[:, None]], 1) for w, b in zip(flat[::2], flat[1::2], strict=True)]
            )
        for place, name in enumerate(layers):
            found[name].append(torch.stack([parts[place] for parts in each]))
        logits.append(z.detach())
    model.float()
    return torch.stack(logits), found


@pytest.mark.parametrize("num_labels", [1, 2, 3])
def test_the_kernel_is_that_of_autograds_gradients_with_the_preconditioner(num_labels, monkeypatch):
    monkeypatch.setattr("attribution.replay.features.FEATURES", 10**7)
    data, model = rows_and_model(num_labels)
    logits, gradients = jacobian(model, data)
    directions = contrasts(num_labels).double()
    mix = root_of_fisher(logits, directions)
    expected = torch.zeros(ROWS, ROWS, dtype=torch.float64)
    for parts in gradients.values():
        g = torch.einsum("kc,ncoi->nkoi", directions, torch.stack(parts))
        squares = torch.einsum("nkj,nkoi->njoi", mix, g).square().sum((0, 1))
        out, inner = squares.sum(1), squares.sum(0)
        out, inner = (side / side.mean() + FLOOR for side in (out, inner))
        scaled = (g / (out[:, None] * inner).pow(0.25)).flatten(2)
        expected += torch.einsum("nkd,mkd->nm", scaled, scaled) / len(directions)
    features = sketched(model, data).features(data).double()
    assert torch.allclose(features @ features.T, expected, rtol=1e-4)


def test_the_root_of_the_fisher_matrix_is_its_root():
    logits = torch.randn(7, 4, dtype=torch.float64)
    directions = contrasts(4).double()
    rounding = 4 * torch.finfo(contrasts(4).dtype).eps  # they are made in float32
    product = directions @ directions.T
    assert torch.allclose(product, torch.eye(3, dtype=torch.float64), rtol=0, atol=rounding)
    assert directions.sum(1).abs().max() < rounding
    root = root_of_fisher(logits, directions)
    p = logits.softmax(-1)
    fisher = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    assert torch.allclose(root @ root.mT, directions @ fisher @ directions.T)


def test_a_sketch_is_a_function_of_its_seed_and_near_the_kernel(monkeypatch):
    """Sketched, then folded to less than half of its numbers."""
    monkeypatch.setattr("attribution.replay.features.FEATURES", 10**7)
    data, model = rows_and_model(2)
    exact = sketched(model, data).features(data)
    exact = exact @ exact.T
    kernels = []
    monkeypatch.setattr("attribution.replay.features.FEATURES", 3000)
    for seed in (0, 0, 1):
        features = sketched(model, data, seed, width=32).features(data)
        kernels.append(features @ features.T)
    assert torch.equal(kernels[0], kernels[1]) and not torch.equal(kernels[0], kernels[2])
    assert all((one - exact).norm() < 0.3 * exact.norm() for one in kernels)


def test_features_depend_on_neither_batches_nor_other_rows(monkeypatch):
    data, model = rows_and_model(2)
    sketch = sketched(model, data, width=32)
    whole = sketch.features(data)
    monkeypatch.setattr("attribution.replay.features.BUDGET", 1)
    alone = sketch.features(data)
    part = sketch.features(data.subset([4, 1]))
    assert torch.allclose(whole, alone, atol=1e-5 * float(whole.abs().max()))
    assert torch.allclose(part, whole[[4, 1]], atol=1e-5 * float(whole.abs().max()))
    assert not any(p.grad is not None for p in model.parameters())


def test_a_model_without_linear_layers_is_refused():
    data, model = rows_and_model(2)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], nn.Identity())
    with pytest.raises(Refused, match="no linear layers"):
        second_moments(model, data)
