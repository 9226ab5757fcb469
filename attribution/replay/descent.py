"""Retraining replayed: gradient flow in function space, with the tangent kernel of a checkpoint.

Training on rows of weights w moves the outputs of all rows along

    df/dt = -K diag(w) s(f),        s_i = slope of row i's loss at its outputs

(kernel regime of fine-tuning: arXiv:2210.05643, section 3), stopped early, as training is. The flow
begins at 0, because heads are drawn at random, or at a regression's mean label. Its derivative with
respect to w comes from the adjoint of its steps, for all queries and rows in one sweep (MAGIC,
arXiv:2504.16430, takes the same derivative of real training, a query at a time).

Symbols: N training rows, Q queries, M weightings, O outputs of a row: the logits of C classes; for
two classes their difference, the log-odds; for a regression its output. K (N, N) kernel of training
rows, k (Q, N) of queries with them.
"""

from dataclasses import dataclass

import torch

ROUNDS = 30  # of the power iteration
LEAST_STEPS = 40  # of a flow
STEEPEST = 0.7  # of the step above which the steepest direction would overshoot
LONGEST = 8.0  # time of a replay at most, where the mean kernel of a row with itself is 1


@dataclass(frozen=True)
class Targets:
    """Labels of rows, and the losses and margins of outputs f (..., N, O) against them."""

    labels: torch.Tensor  # (N,): classes, int64, or values of a regression; NaN: the output itself
    num_labels: int

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

    def margins(self, f: torch.Tensor) -> torch.Tensor:
        """Margins (..., N), as `pipeline.compute_margin` has them."""
        if self.num_labels == 1:
            output = f[..., 0]
            return torch.where(
                self.labels.isnan(), output, -(output - self.labels.nan_to_num()).square()
            )
        if self.num_labels == 2:
            return f[..., 0] * (2 * self.labels - 1)
        own = self._one_hot(f).bool()
        return f.masked_fill(~own, 0).sum(-1) - f.masked_fill(own, -torch.inf).logsumexp(-1)

    def comparable(self, f: torch.Tensor) -> torch.Tensor:
        """Margins (..., N) of outputs; of a regression the outputs, whose errors have no sign."""
        return f[..., 0] if self.num_labels == 1 else self.margins(f)

    def margin_slope(self, f: torch.Tensor) -> torch.Tensor:
        """Derivative (..., N, O) of the margins with respect to the outputs."""
        if self.num_labels == 1:
            residual = self.labels.nan_to_num() - f[..., 0]
            return torch.where(self.labels.isnan(), 1.0, 2 * residual)[..., None].to(f)
        if self.num_labels == 2:
            return (2 * self.labels - 1).to(f).expand(f.shape[:-1])[..., None]
        own = self._one_hot(f)
        return own - f.masked_fill(own.bool(), -torch.inf).softmax(-1)

    def _one_hot(self, f: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(self.labels, self.num_labels).to(f).expand_as(f)


def start_of(train: Targets, weights: torch.Tensor) -> torch.Tensor:
    """Output (M, 1, 1) of every row before the flow: 0, or the mean label of a regression.

    weights: (M, N).
    """
    if train.num_labels > 1:
        return weights.new_zeros(len(weights), 1, 1)
    return (weights @ train.labels.to(weights) / weights.sum(1))[:, None, None]


def step_of(kernel: torch.Tensor, train: Targets, most: float, time: float) -> tuple[float, int]:
    """(length, number) of steps of a flow until `time` that overshoot in no direction.

    most: the largest weight.
    """
    vector = kernel.new_ones(len(kernel), 1)
    size = 1.0
    for _ in range(ROUNDS):
        vector = kernel @ (vector / vector.norm())
        size = float(vector.norm())
    count = max(LEAST_STEPS, int(time * train.steepest * size * most / STEEPEST) + 1)
    return time / count, count


def flow(kernel: torch.Tensor, train: Targets, weights: torch.Tensor, time: float) -> torch.Tensor:
    """Coefficients a (M, N, O) at a time: outputs are start + K a.

    weights: (M, N).
    """
    length, count = step_of(kernel, train, float(weights.max()), time)
    start = start_of(train, weights)
    a = kernel.new_zeros(*weights.shape, train.outputs)
    for _ in range(count):
        f = start + kernel @ a
        a = a - length * weights[..., None] * train.slope(f)
    return a


def replay(
    kernel: torch.Tensor,
    others: torch.Tensor,
    train: Targets,
    weights: torch.Tensor,
    time: float,
) -> torch.Tensor:
    """Outputs (M, Q, O) of the queries after training on rows of these weights (M, N).

    others: kernel (Q, N) of the queries with the training rows.
    """
    return start_of(train, weights) + others @ flow(kernel, train, weights, time)


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
    """
    weights = kernel.new_full((1, len(kernel)), weight)
    length, count = step_of(kernel, train, weight, time)
    start = start_of(train, weights)[0]
    a = kernel.new_zeros(len(kernel), train.outputs)
    seen = []
    for _ in range(count):
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
        back = back - torch.einsum("nm,qno->qmo", kernel, moved)
    if train.num_labels == 1:
        total += shift[:, None] * (train.labels - start) / weights.sum()
    return total


def best_time(
    kernel: torch.Tensor,
    others: torch.Tensor,
    train: Targets,
    left_out: Targets,
    weights: torch.Tensor,
    logits: torch.Tensor,
) -> float:
    """Time at which the replay is most like the model's own training, up to LONGEST.

    There the margins of rows that the training left out (a regression's outputs) correlate most
    with those of the model: no retrain is needed to find it. others: kernel (L, N) of these rows
    with the training rows. weights: (N,) of the model's training. logits: (L, C) of the model.
    """
    length, count = step_of(kernel, train, 1.0, LONGEST)
    start = start_of(train, weights[None])[0]
    measured = left_out.comparable(logits.to(kernel) @ outputs_of(train.num_labels).to(kernel))
    a = kernel.new_zeros(len(kernel), train.outputs)
    best = (-torch.inf, LONGEST)
    for step in range(1, count + 1):
        a = a - length * weights[:, None] * train.slope(start + kernel @ a)
        replayed = left_out.comparable(start + others @ a)
        likeness = float(torch.corrcoef(torch.stack([measured, replayed]))[0, 1])
        best = max(best, (likeness, step * length))
    return best[1]


def outputs_of(num_labels: int) -> torch.Tensor:
    """Map (C, O) from logits to the outputs of a replay."""
    return torch.tensor([[-1.0], [1.0]]) if num_labels == 2 else torch.eye(num_labels)
