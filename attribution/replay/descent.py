"""Retraining replayed: gradient flow in function space, with the tangent kernel of a checkpoint.

Training on rows of weights w moves the outputs of all rows along

    df/dt = -K diag(w) s(f),        s_i = slope of row i's loss at its outputs

(kernel regime of fine-tuning: arXiv:2210.05643, section 3), stopped early, as training is. The flow
begins at 0, because heads are drawn at random, or at a regression's mean label. It has STEPS steps:
a direction that is too steep for them is flattened, so that it ends where it would, but no sooner
than they can. The derivative with respect to w comes from the adjoint of the steps, for all queries
and rows in one sweep (MAGIC, arXiv:2504.16430, takes the same derivative of real training, a query
at a time).

Symbols: N training rows, Q queries, M weightings, L rows that training left out, O outputs of a
row: the logits of C classes; for two classes their difference, the log-odds; for a regression its
output. K (N, N) kernel of training rows, k (Q, N) of queries with them; a row's kernel with itself
is 1 on average.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from attribution.draws import uniform_hash
from attribution.files import Refused
from pipeline import compute_correct, compute_margin

STEPS = 40
STEEPEST = 0.7  # of the curvature above which a step would overshoot
TIMES = tuple(0.25 * 2 ** (i / 2) for i in range(11))  # 0.25 to 8: those that a replay may take
FEWEST_STEEP = 64  # directions that are looked at for being too steep, at least
POWERS = 12  # products with the kernel that find them
BLOCK = 256  # queries whose derivatives are taken at a time
FOLDS = 10  # of the training rows, each of which is left out once


@dataclass(frozen=True)
class Targets:
    """Labels of rows, and the losses and margins of outputs f (..., N, O) against them."""

    labels: torch.Tensor  # (N,): classes, int64, or values of a regression; NaN: the output itself
    num_labels: int

    def to(self, device: torch.device) -> "Targets":
        """The same on a device."""
        return replace(self, labels=self.labels.to(device))

    @property
    def outputs(self) -> int:
        """O."""
        return self.num_labels if self.num_labels > 2 else 1

    def slope(self, f: torch.Tensor) -> torch.Tensor:
        """Direction s (..., N, O) against which the flow moves outputs: the gradient of the loss.

        For two classes the log-odds move as the difference of two logits, each by its own gradient:
        twice p - y.
        """
        if self.num_labels == 1:
            return 2 * (f - self.labels[:, None])
        if self.num_labels == 2:
            return 2 * (f.sigmoid() - self.labels[:, None])
        return f.softmax(-1) - self._one_hot(f)

    def curve(self, f: torch.Tensor, back: torch.Tensor) -> torch.Tensor:
        """Derivative of the slope at f (N, O), times back (Q, N, O)."""
        if self.num_labels == 1:
            return 2 * back
        if self.num_labels == 2:
            p = f.sigmoid()
            return 2 * p * (1 - p) * back
        p = f.softmax(-1)
        return p * (back - (p * back).sum(-1, keepdim=True))

    @property
    def steepest(self) -> float:
        """Largest derivative of the slope."""
        return 2.0 if self.num_labels == 1 else 0.5

    def logits(self, f: torch.Tensor) -> torch.Tensor:
        """Logits (..., N, C) of outputs; those of two classes are 0 and the log-odds."""
        return torch.cat([torch.zeros_like(f), f], -1) if self.num_labels == 2 else f

    def _each(self, measure: Callable, f: torch.Tensor) -> torch.Tensor:
        labels = self.labels.expand(f.shape[:-1]).flatten()
        return measure(self.logits(f).flatten(0, -2), labels).view(f.shape[:-1])

    def margins(self, f: torch.Tensor) -> torch.Tensor:
        """Margins (..., N), see `pipeline.compute_margin`."""
        return self._each(compute_margin, f)

    def correct(self, f: torch.Tensor) -> torch.Tensor:
        """Whether the label has the largest output (..., N); False for a regression."""
        return self._each(compute_correct, f)

    def comparable(self, f: torch.Tensor) -> torch.Tensor:
        """Margins (..., N) of outputs; of a regression the outputs, whose errors have no sign."""
        return f[..., 0] if self.num_labels == 1 else self.margins(f)

    def margin_slope(self, f: torch.Tensor) -> torch.Tensor:
        """Derivative (..., N, O) of the margins with respect to the outputs."""
        if self.num_labels == 1:
            residual = self.labels.nan_to_num() - f[..., 0]
            return torch.where(self.labels.isnan(), 1.0, 2 * residual)[..., None].to(f)
        own = self._one_hot(f)
        others = self.logits(f).masked_fill(own.bool(), -torch.inf)
        return (own - others.softmax(-1))[..., -self.outputs :]

    def _one_hot(self, f: torch.Tensor) -> torch.Tensor:
        return torch.eye(self.num_labels).to(f)[self.labels]


@dataclass(frozen=True)
class Contrast(Targets):
    """Rows whose margin is the log-odds of their label against one other class, not against all."""

    against: int

    def margins(self, f: torch.Tensor) -> torch.Tensor:
        """z_label - z_against (..., N) of outputs."""
        labels = self.labels.expand(f.shape[:-1])[..., None]
        return f.gather(-1, labels)[..., 0] - f[..., self.against]

    def margin_slope(self, f: torch.Tensor) -> torch.Tensor:
        """Derivative (..., N, O) of these margins with respect to the outputs."""
        return self._one_hot(f) - torch.eye(self.num_labels).to(f)[self.against]


def start_of(train: Targets, weights: torch.Tensor) -> torch.Tensor:
    """Output (M, 1, 1) of every row before the flow: 0, or the mean label of a regression.

    weights: (M, N).
    """
    if train.num_labels > 1:
        return weights.new_zeros(len(weights), 1, 1)
    return (weights @ train.labels.to(weights) / weights.sum(1))[:, None, None]


def flow(kernel: torch.Tensor, train: Targets, weights: torch.Tensor, time: float) -> torch.Tensor:
    """Coefficients a (M, N, O) at a time: outputs are start + K a.

    weights: (M, N), at most 1.
    """
    start = start_of(train, weights)
    a = kernel.new_zeros(*weights.shape, train.outputs)
    for _ in range(STEPS):
        f = start + kernel @ a
        a = a - time / STEPS * weights[..., None] * train.slope(f)
    return a


def scores(
    kernel: torch.Tensor,
    others: torch.Tensor,
    train: Targets,
    queries: Targets,
    time: float,
    weight: float = 0.5,
) -> torch.Tensor:
    """Derivative (Q, N) of the queries' replayed margins with respect to each row's weight, where
    all rows have the same weight: 1/2 is what the half of the rows measure that a random subset
    keeps.

    others: kernel (Q, N) of the queries with the training rows.
    """
    length = time / STEPS
    weights = kernel.new_full((1, len(kernel)), weight)
    start = start_of(train, weights)[0]
    a = kernel.new_zeros(len(kernel), train.outputs)
    seen = []
    for _ in range(STEPS):
        seen.append(start + kernel @ a)
        a = a - length * weight * train.slope(seen[-1])
    turn = queries.margin_slope(start + others @ a)
    back = others[:, :, None] * turn[:, None]  # of the margins with respect to a
    total = torch.zeros_like(others)
    shift = turn.sum(-1)  # of the margins with respect to the start
    for f in reversed(seen):
        total -= length * (train.slope(f) * back).sum(-1)
        moved = length * weight * train.curve(f, back)
        shift -= moved.sum((1, 2))
        back = back - kernel @ moved
    if train.num_labels == 1:
        total += shift[:, None] * (train.labels - start) / weights.sum()
    return total


# --- kernels --------------------------------------------------------------------------------------


def steep_directions(kernel: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Largest eigenvalues (R,) of a kernel, and their eigenvectors (N, R), found by subspace
    iteration (Halko, Martinsson and Tropp, arXiv:0909.4061, algorithm 4.4) from a start that is
    the same on every device.
    """
    rank = min(len(kernel), max(FEWEST_STEEP, len(kernel) // 64))
    basis = torch.randn(len(kernel), rank, generator=torch.Generator().manual_seed(0)).to(kernel)
    for _ in range(POWERS):
        basis = torch.linalg.qr(kernel @ basis).Q
    values, vectors = torch.linalg.eigh(basis.T @ kernel @ basis)
    return values.clamp(min=0), basis @ vectors


def flattened(
    kernel: torch.Tensor,
    steep: tuple[torch.Tensor, torch.Tensor],
    train: Targets,
    time: float,
) -> torch.Tensor:
    """Kernel (Q, N) of rows with the training rows, or (N, N) of those, in which no direction of
    the features is too steep for the steps until `time`.

    steep: of `steep_directions`.
    """
    most = STEEPEST * STEPS / (time * train.steepest)
    values, vectors = steep
    over = 1 - most / values.clamp(min=most)
    return torch.addmm(kernel, kernel @ vectors * over, vectors.T, alpha=-1)


def best_time(
    kernel: torch.Tensor,
    others: torch.Tensor,
    steep: tuple[torch.Tensor, torch.Tensor],
    train: Targets,
    left_out: Targets,
    weights: torch.Tensor,
    logits: torch.Tensor,
) -> tuple[float, float]:
    """(time, one of TIMES, at which the replay is most like the model's own training; likeness).

    There the margins of rows that the training left out (a regression's outputs) correlate most
    with those of the model: no retrain is needed to find it. others: kernel (L, N) of these rows
    with the training rows. steep: of `steep_directions`. weights: (N,) of the model's training.
    logits: (L, C) of the model. Raises Refused if margins do not vary, or are not finite.
    """
    measured = left_out.comparable(logits.to(kernel) @ outputs_of(train.num_labels).to(kernel))
    likeness = []
    for time in TIMES:
        flat, flat_others = (flattened(one, steep, train, time) for one in (kernel, others))
        replayed = Replay(flat, flat_others, train, left_out, time).outputs(weights[None])[0]
        pair = torch.stack([measured, left_out.comparable(replayed)])
        likeness.append(float(torch.corrcoef(pair)[0, 1]))
    if not np.isfinite(likeness).any():
        raise Refused(
            "the model's margins do not vary over the rows that it left out, or are not finite, so "
            "its training cannot be replayed; train with another --learning_rate"
        )
    best = int(np.nanargmax(likeness))
    return TIMES[best], likeness[best]


def unit_of(measured: torch.Tensor, replayed: torch.Tensor, left_out: torch.Tensor) -> float:
    """Real changes of margins in units of replayed ones, from K trainings on parts of the rows.

    The slope of the members' own margins (K, N) on replayed ones, of rows that two members or more
    left out, both without their mean over these members: what differs is what the members saw.
    left_out: (K, N). 1 where it cannot be told.
    """
    several = left_out.sum(0) >= 2
    left_out = left_out[:, several].to(measured)

    def deviations(margins: torch.Tensor) -> torch.Tensor:
        margins = margins[:, several]
        mean = (margins * left_out).sum(0) / left_out.sum(0)
        return (margins - mean) * left_out

    x, y = deviations(replayed), deviations(measured)
    slope = float((x * y).sum() / (x * x).sum())
    return slope if slope > 0 else 1.0


def outputs_of(num_labels: int) -> torch.Tensor:
    """Map (C, O) from logits to the outputs of a replay."""
    return torch.tensor([[-1.0], [1.0]]) if num_labels == 2 else torch.eye(num_labels)


# --- a replay -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Replay:
    """One checkpoint's training, which can be replayed with other weights and labels."""

    kernel: torch.Tensor  # (N, N), flattened
    others: torch.Tensor  # (Q, N), flattened
    train: Targets
    queries: Targets
    time: float
    likeness: float = np.nan  # to the real training at this time, see `best_time`

    def scores(self, weight: float = 0.5) -> torch.Tensor:
        """Scores (Q, N), see `scores`, a block of queries at a time."""
        parts = []
        for begin in range(0, len(self.others), BLOCK):
            block = slice(begin, begin + BLOCK)
            asked = replace(self.queries, labels=self.queries.labels[block])
            others = self.others[block]
            parts.append(scores(self.kernel, others, self.train, asked, self.time, weight))
        return torch.cat(parts)

    def of(self, places: list[int]) -> "Replay":
        """The replay for some of the queries, by their places."""
        queries = replace(self.queries, labels=self.queries.labels[places])
        return replace(self, others=self.others[places], queries=queries)

    def outputs(self, weights: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Outputs (M, Q, O) of the queries after training on rows of these weights (M, N).

        labels: (N,) of the training rows; None: their own.
        """
        train = self.train
        if labels is not None:
            train = replace(train, labels=labels.to(train.labels))
        weights = weights.to(self.kernel)
        a = flow(self.kernel, train, weights, self.time)
        return start_of(train, weights) + self.others @ a

    def of_rows(self) -> "Replay":
        """The replay in which the training rows are the queries."""
        return replace(self, others=self.kernel, queries=self.train)

    def outputs_left_out(self, seed: int) -> torch.Tensor:
        """Outputs (N, O) of training rows, each after training without its fold.

        seed: of the folds.
        """
        count = len(self.kernel)
        number = min(FOLDS, count)
        order = np.argsort(uniform_hash(seed, "fold of a replay", np.arange(count)), kind="stable")
        folds = np.empty(count, np.int64)
        folds[order] = np.arange(count) % number
        weights = torch.from_numpy(folds != np.arange(number)[:, None])
        outputs = self.of_rows().outputs(weights)
        return outputs[torch.from_numpy(folds), torch.arange(count)]  # those of each row
