"""The replay is gradient flow of the linearised model, and the scores are its derivatives."""

import pytest
import torch

from attribution.files import Refused
from attribution.replay.descent import (
    STEEPEST,
    STEPS,
    TIMES,
    Contrast,
    Replay,
    Targets,
    best_time,
    flattened,
    scores,
    steep_directions,
    unit_of,
)
from pipeline import compute_loss, compute_margin

N, Q, D = 12, 5, 30
TIME = 1.5


def case(num_labels: int, dtype=torch.float64):
    """(features of rows and queries, their targets) of a small task."""
    draw = torch.Generator().manual_seed(num_labels)
    rows = torch.randn(N + Q, D, generator=draw, dtype=torch.float64) / D**0.5
    if num_labels == 1:
        labels = torch.randn(N + Q, generator=draw, dtype=torch.float64)
    else:
        labels = torch.arange(N + Q) % num_labels
    rows, labels = rows.to(dtype), labels.to(dtype) if num_labels == 1 else labels
    train, queries = Targets(labels[:N], num_labels), Targets(labels[N:], num_labels)
    return rows[:N], rows[N:], train, queries


def replay(kernel, others, train, weights, time=TIME) -> torch.Tensor:
    """Outputs (M, Q, O) after training on rows of these weights (M, N)."""
    return Replay(kernel, others, train, train, time).outputs(weights)


def logits_of(f: torch.Tensor, num_labels: int) -> torch.Tensor:
    """Logits (..., C) of outputs; for two classes their difference is given, and their sum is 0."""
    return torch.cat([-f, f], -1) / 2 if num_labels == 2 else f


@pytest.mark.parametrize("num_labels", [1, 2, 3, 4])
def test_the_flow_is_gradient_descent_of_a_linear_model(num_labels):
    """The model's own loss, by autograd, with one row of weights a logit."""
    x, x_queries, train, _ = case(num_labels)
    w = torch.linspace(0, 1, N, dtype=torch.float64)
    start = (w @ train.labels.double() / w.sum()) if num_labels == 1 else 0.0
    theta = torch.zeros(num_labels, D, dtype=torch.float64, requires_grad=True)
    for _ in range(STEPS):
        logits = start + x @ theta.T
        loss = sum(
            w[i] * compute_loss(logits[i : i + 1], train.labels[i : i + 1]) for i in range(N)
        )
        (gradient,) = torch.autograd.grad(loss, theta)
        theta = (theta - TIME / STEPS * gradient).detach().requires_grad_()
    expected = start + x_queries @ theta.detach().T
    found = replay(x @ x.T, x_queries @ x.T, train, w[None])[0]
    if num_labels == 2:
        expected = expected[:, 1:] - expected[:, :1]
    assert torch.allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize("num_labels", [1, 2, 3, 4])
def test_margins_and_their_slopes_are_the_pipelines(num_labels):
    _, _, _, queries = case(num_labels)
    f = torch.randn(Q, queries.outputs, dtype=torch.float64, requires_grad=True)
    margins = queries.margins(f)
    assert torch.allclose(margins, compute_margin(logits_of(f, num_labels), queries.labels))
    (slope,) = torch.autograd.grad(margins.sum(), f)
    assert torch.allclose(queries.margin_slope(f.detach()), slope)


@pytest.mark.parametrize("num_labels", [1, 2, 3, 4])
def test_scores_are_the_derivatives_of_the_replay(num_labels):
    x, x_queries, train, queries = case(num_labels)
    kernel, others = x @ x.T, x_queries @ x.T
    found = scores(kernel, others, train, queries, TIME, weight=0.5)
    expected = torch.empty_like(found)
    for i in range(N):
        sides = []
        for change in (1e-5, -1e-5):
            w = torch.full((1, N), 0.5, dtype=torch.float64)
            w[0, i] += change
            sides.append(queries.margins(replay(kernel, others, train, w)[0]))
        expected[:, i] = (sides[0] - sides[1]) / 2e-5
    assert torch.allclose(found, expected, atol=1e-8)


@pytest.mark.parametrize("num_labels", [3, 4])
def test_scores_of_a_contrast_are_the_derivatives_of_the_log_odds_of_two_classes(num_labels):
    x, x_queries, train, queries = case(num_labels)
    kernel, others = x @ x.T, x_queries @ x.T
    labels = torch.arange(Q) % (num_labels - 1)
    against = num_labels - 1
    asked = Replay(kernel, others, train, Contrast(labels, num_labels, against), TIME)
    found = asked.scores()
    assert torch.equal(asked.of([3, 1]).scores(), found[[3, 1]])

    def log_odds(w: torch.Tensor) -> torch.Tensor:
        f = asked.outputs(w[None])[0]
        assert torch.equal(asked.queries.margins(f), f[range(Q), labels] - f[:, against])
        return asked.queries.margins(f)

    for i in range(N):
        change = 1e-5 * torch.eye(N, dtype=torch.float64)[i]
        half = torch.full((N,), 0.5, dtype=torch.float64)
        expected = (log_odds(half + change) - log_odds(half - change)) / 2e-5
        assert torch.allclose(found[:, i], expected, atol=1e-8)


def test_two_classes_are_a_case_of_any_number():
    """The same flow with both logits."""
    x, x_queries, train, queries = case(2)
    kernel, others = x @ x.T, x_queries @ x.T
    w = torch.rand(3, N, dtype=torch.float64)
    a = torch.zeros(3, N, 2, dtype=torch.float64)
    one_hot = torch.nn.functional.one_hot(train.labels).double()
    for _ in range(STEPS):
        a = a - TIME / STEPS * w[..., None] * ((kernel @ a).softmax(-1) - one_hot)
    both = others @ a
    found = replay(kernel, others, train, w)
    assert torch.allclose(found[..., 0], both[..., 1] - both[..., 0], atol=1e-12)


@pytest.mark.parametrize("num_labels", [1, 2, 3])
def test_float32_gives_the_scores_of_float64(num_labels):
    found = []
    for dtype in (torch.float32, torch.float64):
        x, x_queries, train, queries = case(num_labels, dtype)
        found.append(scores(x @ x.T, x_queries @ x.T, train, queries, TIME).double())
    assert torch.allclose(*found, atol=1e-5)


def test_the_output_of_a_regression_without_a_label_is_its_own_margin():
    x, x_queries, train, queries = case(1)
    nobody = Targets(torch.full((Q,), torch.nan, dtype=torch.float64), 1)
    kernel, others = x @ x.T, x_queries @ x.T
    of_output = scores(kernel, others, train, nobody, TIME)
    outputs = replay(kernel, others, train, torch.full((1, N), 0.5).double())[0, :, 0]
    residual = 2 * (queries.labels - outputs)
    of_margin = scores(kernel, others, train, queries, TIME)
    assert torch.allclose(of_margin, residual[:, None] * of_output)


@pytest.mark.parametrize("num_labels", [1, 2])
def test_steep_directions_are_flattened_to_what_the_steps_can_follow(num_labels):
    """In the kernel and, by the same change of metric, in that with other rows; others stay."""
    x, x_queries, train, _ = case(num_labels)
    x = x + 20 * x[:1].mean(1, keepdim=True).sign()
    kernel, others = x @ x.T, x_queries @ x.T
    most = STEEPEST * STEPS / (TIME * train.steepest)
    steep = steep_directions(kernel)
    flat, flat_others = (flattened(one, steep, train, TIME) for one in (kernel, others))
    values, vectors = torch.linalg.eigh(kernel)
    assert values[-2] < most < values[-1]
    assert torch.allclose(flat, (vectors * values.clamp(max=most)) @ vectors.T)
    features = vectors.T @ x / values.sqrt()[:, None]  # directions of the features
    scale = values.clamp(max=most) / values
    assert torch.allclose(flat_others, x_queries @ features.T * scale @ features @ x.T)


def test_a_steep_direction_ends_where_it_would():
    """A regression in which all rows move together reaches their mean label."""
    kernel = torch.eye(N, dtype=torch.float64) + 500 * torch.ones(N, N, dtype=torch.float64)
    train = Targets(torch.linspace(-1, 1, N, dtype=torch.float64), 1)
    w = torch.ones(1, N, dtype=torch.float64)
    w[0, : N // 2] = 0.1
    flat = flattened(kernel, steep_directions(kernel), train, 3.0)
    outputs = replay(flat, flat, train, w, 3.0)[0, :, 0]
    mean = (w[0] * (outputs - train.labels)).sum() / w.sum()
    assert abs(float(mean)) < 0.05


def test_the_time_is_that_at_which_the_replay_is_most_like_the_model():
    """A model that is a replay itself, until some time, of rows that it left out."""
    x, _, train, _ = case(2)
    kernel = x @ x.T
    steep = steep_directions(kernel)
    w = torch.tensor([1.0, 0.0], dtype=torch.float64).repeat(N // 2)
    rows = torch.arange(1, N, 2)
    left_out = Targets(train.labels[rows], 2)
    for time in TIMES[4], TIMES[8]:
        flat = flattened(kernel, steep, train, time)
        f = replay(flat, flat[rows], train, w[None], time)[0]
        logits = torch.cat([-f, f], 1) / 2
        best, likeness = best_time(kernel, kernel[rows], steep, train, left_out, w, logits)
        assert best == time and likeness == pytest.approx(1)
    with pytest.raises(Refused, match="do not vary"):
        best_time(kernel, kernel[rows], steep, train, left_out, w, torch.zeros_like(logits))


@pytest.mark.parametrize("num_labels", [1, 2, 3])
def test_a_row_left_out_with_its_fold_has_the_margin_of_a_training_without_it(num_labels):
    x, _, train, _ = case(num_labels)
    kernel = x @ x.T
    one = Replay(kernel, kernel, train, train, TIME)
    alone = torch.ones(N, N, dtype=torch.float64) - torch.eye(N, dtype=torch.float64)
    expected = train.margins(one.outputs(alone)).diagonal()
    found = one.train.margins(
        one.outputs_left_out(seed=0)
    )  # ten folds of twelve rows: most have one row
    assert (torch.isclose(found, expected).sum() >= 8) and not torch.equal(found, expected)


@pytest.mark.parametrize("num_labels", [1, 2, 3])
def test_what_is_said_of_a_row_that_was_left_out_does_not_depend_on_its_own_label(num_labels):
    x, _, train, _ = case(num_labels)
    kernel = x @ x.T
    before = Replay(kernel, kernel, train, train, TIME).outputs_left_out(seed=0)
    for row in range(N):
        labels = train.labels.clone()
        labels[row] = 5.0 if num_labels == 1 else (labels[row] + 1) % num_labels
        changed = Targets(labels, num_labels)
        after = Replay(kernel, kernel, changed, changed, TIME).outputs_left_out(seed=0)
        same = (after == before).all(1)
        assert same[row] and not same.all()  # but of rows that learned from it


def test_other_labels_are_replayed_as_if_they_were_the_rows_own():
    x, x_queries, train, queries = case(3)
    kernel, others = x @ x.T, x_queries @ x.T
    labels = train.labels.roll(1)
    w = torch.ones(1, N)
    found = Replay(kernel, others, train, queries, TIME).outputs(w, labels)
    assert torch.equal(found, replay(kernel, others, Targets(labels, 3), w.double()))
    assert not torch.equal(found, replay(kernel, others, train, w.double()))


def test_the_unit_is_the_slope_of_what_members_differ_by_on_rows_that_they_left_out():
    draw = torch.Generator().manual_seed(0)
    replayed = torch.randn(4, 50, generator=draw)
    left_out = torch.rand(4, 50, generator=draw) < 0.5
    of_rows = 3 * torch.randn(50, generator=draw)  # the same in all trainings
    measured = 1.7 * replayed + of_rows
    measured[~left_out] += 5  # rows that were trained on do not count
    assert unit_of(measured, replayed, left_out) == pytest.approx(1.7, rel=1e-5)
    assert unit_of(-measured, replayed, left_out) == 1
    assert unit_of(measured, replayed, torch.zeros(4, 50, dtype=torch.bool)) == 1
