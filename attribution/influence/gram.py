"""How alike training rows are to a checkpoint: inner products of the gradients of their losses.

The gradient of a linear layer is a sum of outer products over tokens. Both sides are projected at
random before the sum (LoGra, arXiv:2405.13954, section 3.1), so that little is held, and inner
products stay the same in expectation. Symbols: N training rows, M masks, B rows of a batch, T
tokens, L linear layers, W the width of a projection.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from attribution.data.dataset import GlueDataset
from attribution.engine.batching import batches_within
from attribution.training.queries import open_trained
from pipeline import compute_loss, model_inputs

WIDTH = 64
ROWS = 32  # of a batch


def alike(
    checkpoint: Path, train: GlueDataset, masks: np.ndarray, width: int = WIDTH
) -> np.ndarray:
    """(N, M) float64: for each row and mask, the sum over the mask's rows of their inner products
    with the row.

    That is the Gram matrix of the gradients times the masks (M, N), 1 = kept; the matrix is scaled
    to a mean diagonal of 1, and never held. checkpoint: a run's folder. width: projections are
    exact for layers that are not wider.
    """
    model = open_trained(checkpoint).eval()
    sides = projections(model, width)
    chosen = torch.from_numpy(masks).to(model.device, torch.float32)
    total = torch.zeros((), device=model.device)
    for rows, found in features(model, train, sides):
        total = total + chosen[:, rows] @ found  # (M, L W W): the gradients of each mask, added up
    products, trace = np.empty((len(train), len(masks))), 0.0
    for rows, found in features(model, train, sides):
        products[rows] = (found @ total.T).cpu().numpy()
        trace += float(found.square_().sum())
    return products * (len(train) / trace if trace > 0 else 0.0)


def projections(model: nn.Module, width: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Name -> (of inputs, with a one where there is a bias, of outputs) of every linear layer;
    always the same.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(size: int) -> torch.Tensor:
        drawn = torch.randn(size, width, generator=generator) / width**0.5
        return (torch.eye(size) if size <= width else drawn).to(model.device)

    layers = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }
    return {
        name: (draw(layer.in_features + (layer.bias is not None)), draw(layer.out_features))
        for name, layer in layers.items()
    }


def features(
    model: nn.Module, train: GlueDataset, sides: dict
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """(row numbers, projected gradients (B, L W W)) of batches that together are all rows, the
    longest first.
    """
    inputs: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str, given: tuple[torch.Tensor], output: torch.Tensor) -> None:
        inputs[name], outputs[name] = given[0].detach(), output

    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda _, given, output, name=name: keep(name, given, output)
        )
        for name in sides
    ]
    try:
        for rows in batches_within(train.lengths, 0, ROWS):
            batch = {name: value.to(model.device) for name, value in train.batch(rows).items()}
            loss = compute_loss(model(**model_inputs(batch)).logits, batch["labels"])
            gradients = torch.autograd.grad(loss, list(outputs.values()), materialize_grads=True)
            parts = [
                projected(inputs[name], gradient, *sides[name])
                for name, gradient in zip(outputs, gradients, strict=True)
            ]
            yield rows, torch.cat(parts, dim=1)
    finally:
        for hook in hooks:
            hook.remove()


def projected(
    given: torch.Tensor, gradient: torch.Tensor, left: torch.Tensor, right: torch.Tensor
) -> torch.Tensor:
    """(B, W W): the projected gradient of a layer's weight, and bias where it has one, for every
    row.

    given: (B, ..., inputs); gradient: of the outputs, (B, ..., outputs); left and right: its
    `projections`.
    """
    given, gradient = (x.reshape(len(x), -1, x.shape[-1]) for x in (given, gradient))
    if len(left) > given.shape[-1]:
        given = torch.cat([given, torch.ones_like(given[..., :1])], dim=-1)
    return torch.einsum("bti,bto->bio", given @ left, gradient @ right).flatten(1)
