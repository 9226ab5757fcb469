"""What fits into memory decides batches and passes; what costs less decides which side is rotated."""

import torch
from running import influence_of

from attribution.influence import eigenbasis, memory
from attribution.influence.analysis import make_score_arguments
from attribution.influence.eigenbasis import tracked
from pipeline import InfluenceTask, construct_bert


def test_short_memory_lowers_the_token_budget(monkeypatch):
    model = eigenbasis.prepare_model(construct_bert("demo", None, seed=0), InfluenceTask())
    features = sum(sum(module.weight.shape) for module in tracked(model))
    monkeypatch.setattr(memory, "free_memory", lambda device: 2 * 32 * features * 1000)
    cpu = torch.device("cpu")
    assert memory.affordable_tokens(model, cpu, 500) == 500 and memory.affordable_tokens(model, cpu, 8192) == 1000
    assert memory.affordable_tokens(model, torch.device("cuda"), 8192) == 8192


def test_short_memory_takes_more_passes_and_the_cheaper_side_is_rotated(run_copy, monkeypatch):
    influence = influence_of(run_copy)
    analyzer, score_args = influence.analyzer, make_score_arguments(influence.settings)
    sizes = [(m.weight.shape[0], m.weight.shape[1] + 1) for m in tracked(analyzer.model)]

    def plan(free: int, force: str = "auto", rank: int | None = None) -> tuple[int, bool]:
        device = analyzer.state.device
        taken = memory.held_anyway(analyzer.model, "pairwise", len(influence.queries), device)
        taken += analyzer.token_budget * memory.held_a_token(analyzer.model, device)
        monkeypatch.setattr(memory, "free_memory", lambda device: (free + taken) / memory.SAFETY + 1)
        score_args.query_gradient_low_rank = rank
        passes = memory.plan_queries(analyzer, influence.train, influence.queries, 32, score_args, force)
        return passes, tracked(analyzer.model)[0].rotate_rows

    one_gradient = 4 * sum(d_out * d_in for d_out, d_in in sizes)
    one_query = 4 * sum(map(sum, sizes)) * int(influence.queries.lengths.max())
    assert plan(2**40) == (1, False)  # 120 rows have more tokens than 9 queries have directions
    everything, influence.train.lengths = influence.train.lengths, influence.train.lengths[:8]
    assert plan(2**40) == (1, True)
    assert plan(3 * one_gradient, "queries") == (3, False) and plan(3 * one_query, "rows") == (3, True)
    assert plan(2**40, rank=2) == (1, False)
    influence.train.lengths = everything
    assert plan(one_query * 9) == (1, True) and one_query < one_gradient  # gradients would need two passes
