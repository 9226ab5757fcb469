"""Features of rows, whose inner products are the tangent kernel of a checkpoint.

    sketch = Sketch(model, second_moments(model, train), seed=0)
    kernel = sketch.features(queries) @ sketch.features(train).T       # (Q, N)

A model that is linear around its weights changes its outputs z (C) by J dw, and two rows by each
other's gradients through the C x C matrix J(x) P J(x')'. One number takes its place, its mean over
the K = C - 1 orthonormal contrasts u_k of the outputs (of a regression, K = 1: its output):

    k(x, x') = 1/K sum_k g_k(x)' P g_k(x'),         g_k(x) = gradient of u_k . z(x)

P = v^(-1/2) is AdamW's preconditioner; v, the mean squared gradient of the loss, has rank one a
layer (Adafactor, arXiv:1804.04235, section 3). The gradient of a linear layer is a sum over tokens
of outer products; both sides of it are sketched (LoGra, arXiv:2405.13954, section 3.1), so that no
gradient is formed. What that leaves is folded with random signs into at most FEATURES numbers (a
count sketch: Charikar, Chen and Farach-Colton, 2002). Other layers are left out.

Symbols: B rows of a batch, T tokens, D_in and D_out of a layer (D_in counts the bias), R width of
the sketch, S numbers of a row before they are folded, F features of a row.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from attribution.data.dataset import GlueDataset
from attribution.engine.batching import batches_within
from attribution.files import Refused
from attribution.progress import steps
from pipeline import model_inputs

WIDTH = 96  # R
FEATURES = 2**16  # F at most
MOMENTS = "squared gradients"  # phase of the progress
MOMENT_ROWS = 128  # training rows from which squared gradients are estimated
FLOOR = 1e-4  # least squared gradient, relative to the mean of its layer
BUDGET = 4096  # tokens of a batch

# Layer -> (inputs (B, T, D_in), output gradients (B, T, D_out)).
Tokens = dict[str, tuple[torch.Tensor, torch.Tensor]]


class Sketch:
    """Preconditioned sketch of one checkpoint's gradients."""

    def __init__(
        self,
        model: nn.Module,
        moments: dict[str, tuple[torch.Tensor, torch.Tensor]],
        seed: int = 0,
        width: int = WIDTH,
    ) -> None:
        """model: its parameters lose their gradients. moments: of `second_moments`."""
        self.model = model.eval().requires_grad_(False)
        draw = torch.Generator().manual_seed(seed)
        device = next(model.parameters()).device
        # Layer -> (D_out, R) and (D_in, R), scaled by the root of the preconditioner.
        self.sides = {
            name: tuple(side_of(side, draw, width).to(device) for side in pair)
            for name, pair in moments.items()
        }
        widths = [out.shape[1] * inner.shape[1] for out, inner in self.sides.values()]
        widths *= len(contrasts(model.config.num_labels))
        size = sum(widths)  # S
        self.num_features = min(size, FEATURES)  # F
        signs = torch.ones(size)
        if size > FEATURES:
            signs = torch.randint(2, (size,), generator=draw) * 2.0 - 1
        # Of each contrast and layer, in this order: the signs of its numbers.
        self.signs = signs.to(device).split(widths)

    def features(
        self, data: GlueDataset, phase: str = "features", part: tuple[float, float] = (0.0, 1.0)
    ) -> torch.Tensor:
        """Features (N, F) of the rows, float32, on the CPU. phase, part: of the progress, see
        `progress.steps`; "" shows none.
        """
        made = torch.empty(len(data), self.num_features)
        for batch, _, found in gradients(self.model, data, np.arange(len(data)), phase, part):
            folded = next(iter(found[0].values()))[0].new_zeros(len(batch), self.num_features)
            signs = iter(self.signs)
            place = 0
            for tokens in found:
                for name, (out, inner) in self.sides.items():
                    a, g = tokens[name]
                    gradient = ((g @ out).transpose(1, 2) @ (a @ inner)).flatten(1)
                    gradient *= next(signs)
                    for piece in split_at(gradient, self.num_features - place, self.num_features):
                        folded[:, place : place + piece.shape[1]] += piece
                        place = (place + piece.shape[1]) % self.num_features
            made[batch] = folded.cpu() / len(found) ** 0.5
        return made


def split_at(values: torch.Tensor, first: int, others: int) -> list[torch.Tensor]:
    """Columns of values (B, S) in parts: `first` of them, then `others` at a time."""
    parts = [values[:, :first]]
    parts += values[:, first:].split(others, 1) if values.shape[1] > first else []
    return parts


def contrasts(num_labels: int) -> torch.Tensor:
    """Orthonormal contrasts (K, C) of the outputs, each of sum zero; (1, 1) of a regression."""
    from scipy.linalg import helmert  # it is not imported at every start

    return torch.from_numpy(helmert(num_labels)).float() if num_labels > 1 else torch.ones(1, 1)


def gradients(
    model: nn.Module,
    data: GlueDataset,
    rows: np.ndarray,
    phase: str,
    part: tuple[float, float] = (0.0, 1.0),
) -> Iterator[tuple[list[int], torch.Tensor, list[Tokens]]]:
    """(places among these rows, logits (B, C), tokens of each contrast) of one batch after the
    other.

    phase, part: of the progress, see `Sketch.features`. Raises Refused for a model without linear
    layers.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    if not layers:
        raise Refused("the model has no linear layers, and a replay is made of their gradients")
    seen: Tokens = {}

    def keep(name: str):
        def forward(module, inputs, output) -> None:
            a = inputs[0].detach()
            if module.bias is not None:
                a = torch.cat([a, a.new_ones(*a.shape[:-1], 1)], -1)
            a = a if a.dim() == 3 else a[:, None]
            output.register_hook(lambda g: seen.__setitem__(name, (a, g.reshape(*a.shape[:2], -1))))

        return forward

    # Gradients end at the embeddings' output, so that none of a weight is computed.
    begin = model.get_input_embeddings()
    handles = [begin.register_forward_hook(lambda *args: args[2].detach().requires_grad_())]
    handles += [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    device = next(model.parameters()).device
    directions = contrasts(model.config.num_labels).to(device)
    try:
        batches = batches_within(data.lengths[rows], BUDGET)
        for batch in steps(batches, phase, part=part, shown=bool(phase)):
            inputs = model_inputs(data.batch(rows[batch]))
            logits = model(**{name: value.to(device) for name, value in inputs.items()}).logits
            found = []
            for number, direction in enumerate(directions, 1):
                logits.backward(direction.expand_as(logits), retain_graph=number < len(directions))
                found.append(dict(seen))
            yield batch, logits.detach(), found
    finally:
        for handle in handles:
            handle.remove()


def second_moments(
    model: nn.Module, data: GlueDataset
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Layer -> sums of the squared gradient of the loss over its rows (D_out,) and its columns
    (D_in,), added up over MOMENT_ROWS of the data set's rows, evenly spaced. On the CPU.

    Its mean over the labels that the model expects: with B B' = U (diag p - p p') U', which is the
    Fisher matrix of the contrasts, the squares of sum_k B_kj g_k are added up over j.
    """
    rows = np.unique(np.linspace(0, len(data) - 1, MOMENT_ROWS).round().astype(int))
    sums: dict[str, list[torch.Tensor]] = {}
    model.eval().requires_grad_(False)
    directions = contrasts(model.config.num_labels)
    for _, logits, found in gradients(model, data, rows, MOMENTS):
        mix = root_of_fisher(logits, directions.to(logits))
        for name, (a, _) in found[0].items():
            g_all = torch.stack([tokens[name][1] for tokens in found])
            for j in range(len(found)):
                g = torch.einsum("kbto,bk->bto", g_all, mix[:, :, j])
                # sum_i (sum_t g_to a_ti)^2 = sum_ts g_to g_so (a_t . a_s), and alike for sum_o
                out = (((a @ a.transpose(1, 2)) @ g) * g).sum((0, 1))
                inner = (((g @ g.transpose(1, 2)) @ a) * a).sum((0, 1))
                old = sums.get(name, [0, 0])
                sums[name] = [old[0] + out, old[1] + inner]
    return {name: (out.cpu(), inner.cpu()) for name, (out, inner) in sums.items()}


def root_of_fisher(logits: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Root B (B, K, K) of the Fisher matrix of the contrasts (K, C); ones for a regression."""
    if logits.shape[-1] == 1:
        return torch.ones_like(logits)[:, :, None]
    p = logits.softmax(-1)
    fisher = directions @ (torch.diag_embed(p) - p[:, :, None] * p[:, None]) @ directions.T
    values, vectors = torch.linalg.eigh(fisher.double())
    return (vectors * values.clamp_min(0).sqrt()[:, None]).to(logits)


def side_of(moments: torch.Tensor, draw: torch.Generator, width: int) -> torch.Tensor:
    """One side (D, R) of a layer's sketch, scaled by v^(-1/4): the product of both sides has the
    root of P. Exact where the layer is not wider than the sketch.
    """
    size = len(moments)
    sketch = torch.eye(size)
    if size > width:
        sketch = torch.randn(size, width, generator=draw) / width**0.5
    scale = (moments / moments.mean() + FLOOR).pow(-0.25)
    return scale[:, None] * sketch
