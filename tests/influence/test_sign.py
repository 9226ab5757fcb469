"""On a convex model the scores follow exact leave-one-out retraining."""

import logging
from dataclasses import asdict
from types import SimpleNamespace

import torch
from kronfluence.arguments import FactorArguments, ScoreArguments
from scipy.stats import spearmanr
from torch import nn

from attribution.engine import modules
from attribution.engine.analyzer import EigenAnalyzer
from attribution.engine.factors import fit_factors
from attribution.engine.memory import Plan
from attribution.engine.resume import Work
from attribution.engine.scoring import Scorer
from attribution.engine.task import InfluenceTask
from pipeline import compute_loss, compute_margin

N, Q, RIDGE = 200, 6, 0.05


class Points(torch.utils.data.Dataset):
    """Points in three dimensions, two classes."""

    def __init__(self, count: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.arange(count) % 2
        self.x = (
            torch.randn(count, 3, generator=generator, dtype=torch.float64)
            + (2 * self.labels[:, None] - 1) * 0.5
        )
        self.lengths = torch.ones(count, dtype=torch.long).numpy()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        return self, int(index)

    def first(self, count: int) -> "Points":
        """The data set itself: factors are fitted on all of its rows."""
        assert count >= len(self)
        return self

    def batch(self, rows, pad_to=None):
        rows = torch.as_tensor(rows)
        mask = torch.ones(len(rows), 1, dtype=torch.long)
        return {"x": self.x[rows], "attention_mask": mask, "labels": self.labels[rows], "row": rows}


class Logistic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2, bias=False, dtype=torch.float64)

    def forward(self, x, attention_mask):
        return SimpleNamespace(logits=self.linear(x))


def solve(data: Points, kept: torch.Tensor) -> Logistic:
    """The minimum of summed loss plus RIDGE N / 2 times the squared weights, exactly."""
    model = Logistic()
    nn.init.zeros_(model.linear.weight)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-16
    )

    def closure():
        optimizer.zero_grad()
        loss = compute_loss(model.linear(data.x[kept]), data.labels[kept])
        loss = loss + RIDGE * N / 2 * model.linear.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return model


def test_scores_follow_exact_leave_one_out_on_a_convex_model(tmp_path):
    train, queries = Points(N, 0), Points(Q, 1)
    everything = torch.arange(N)

    def margins(model):
        with torch.no_grad():
            return compute_margin(model.linear(queries.x), queries.labels)

    model = solve(train, everything)
    full = margins(model)
    drop = torch.stack(
        [full - margins(solve(train, everything[everything != i])) for i in range(N)], dim=1
    )

    task = InfluenceTask()
    wrapped = modules.prepare_model(model, task)
    analyzer = EigenAnalyzer(tmp_path, wrapped, task, log_level=logging.ERROR)
    plan = asdict(Plan(budget=16, count=1, pass_queries=Q, query_batch=Q))
    factor_args = FactorArguments("ekfac")
    work = Work(tmp_path / "kronfluence/factors_f", {}, "factors", lambda: plan, False)
    fit_factors(analyzer, work, "f", train, factor_args)
    factors = analyzer.load_all_factors("f")
    work = Work(tmp_path / "kronfluence/scores", {}, "scores", lambda: plan, False)
    score_args = ScoreArguments(damping_factor=RIDGE)
    scores = Scorer(analyzer, factors, factor_args, score_args, train, queries, work).compute()
    agreement = [spearmanr(scores[q], drop[q]).statistic for q in range(Q)]
    assert min(agreement) > 0.9, agreement
    sure = drop.abs() > 0.2 * drop.abs().max()
    assert (scores.sign() == drop.sign())[sure].all() and sure.sum() > 10
