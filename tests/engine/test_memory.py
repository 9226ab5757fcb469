"""What fits into memory decides batches and passes; what costs less decides which side is rotated."""

import torch
from running import analyze_quickly, close, influence_of, scores_of

from attribution.engine import memory, modules, trackers
from attribution.engine.modules import tracked
from attribution.influence.analysis import make_score_arguments
from attribution.processes import Processes
from pipeline import InfluenceTask, construct_bert


def test_short_memory_lowers_the_token_budget(monkeypatch):
    model = modules.prepare_model(construct_bert("demo", None, seed=0), InfluenceTask())
    features = sum(sum(module.weight.shape) for module in tracked(model))
    monkeypatch.setattr(memory, "free_memory", lambda device: 2 * 32 * features * 1000)
    cpu = torch.device("cpu")
    assert (
        memory.affordable_tokens(model, cpu, 500) == 500
        and memory.affordable_tokens(model, cpu, 8192) == 1000
    )
    assert memory.affordable_tokens(model, torch.device("cuda"), 8192) == 8192


def test_short_memory_takes_more_passes_and_the_cheaper_side_is_rotated(run_copy, monkeypatch):
    influence = influence_of(run_copy)
    analyzer, score_args = influence.analyzer, make_score_arguments(influence.settings)
    sizes = [(m.weight.shape[0], m.weight.shape[1] + 1) for m in tracked(analyzer.model)]

    def plan(free: int, force: str = "auto", rank: int | None = None) -> tuple[int, bool]:
        device = analyzer.state.device
        taken = memory.held_anyway(analyzer.model, "pairwise", len(influence.queries), device)
        taken += analyzer.token_budget * memory.held_a_token(analyzer.model, device)
        monkeypatch.setattr(
            memory, "free_memory", lambda device: (free + taken) / memory.SAFETY + 1
        )
        score_args.query_gradient_low_rank = rank
        passes = memory.plan_queries(
            analyzer, influence.train, influence.queries, 32, score_args, force
        )
        return passes, tracked(analyzer.model)[0].rotate_rows

    one_gradient = 4 * sum(d_out * d_in for d_out, d_in in sizes)
    one_query = 4 * sum(map(sum, sizes)) * int(influence.queries.lengths.max())
    assert plan(2**40) == (1, False)  # 120 rows have more tokens than 9 queries have directions
    everything, influence.train.lengths = influence.train.lengths, influence.train.lengths[:8]
    assert plan(2**40) == (1, True)
    assert plan(3 * one_gradient, "queries") == (3, False) and plan(3 * one_query, "rows") == (
        3,
        True,
    )
    assert plan(2**40, rank=2) == (1, False)
    influence.train.lengths = everything
    assert (
        plan(one_query * 9) == (1, True) and one_query < one_gradient
    )  # gradients would need two passes


def test_a_group_has_the_rows_that_are_wanted_as_far_as_half_of_what_is_left_holds_them(
    run_copy, monkeypatch
):
    influence = influence_of(run_copy)
    analyzer, train, queries = influence.analyzer, influence.train, influence.queries
    score_args, device = make_score_arguments(influence.settings), analyzer.state.device
    analyzer.token_budget = 128
    plan = {"query_batch": 9, "pass_queries": 9, "rotate_rows": True}
    token = 4 * memory.features_of(analyzer.model)
    taken = memory.held_anyway(analyzer.model, "pairwise", 9, device)
    taken += 128 * memory.held_a_token(analyzer.model, device)
    taken += 9 * int(queries.lengths.max()) * token

    def group(tokens_left: float) -> int:
        free = (taken + tokens_left * token) / memory.SAFETY + 1
        monkeypatch.setattr(memory, "free_memory", lambda device: free)
        return memory.plan_group(analyzer, train, queries, score_args, plan)

    assert group(2**30) == 128  # on a CPU a group is a batch
    monkeypatch.setitem(memory.GROUP_ROWS, "cpu", 60)
    assert group(2**30) == round(60 * train.lengths.mean()) > 128
    assert group(200) == 228 and group(0) == group(-50) == 128
    monkeypatch.setitem(memory.GROUP_ROWS, "cpu", 10**6)
    assert group(2**30) == round(
        len(train) * train.lengths.mean()
    )  # more rows than there are wait for nothing
    monkeypatch.setattr(analyzer, "processes", Processes(0, 3, 0, 3))
    monkeypatch.setattr(Processes, "all_of", lambda self, value: [value] * 3)
    assert group(2**30) == max(128, int(train.lengths.sum()) // 12)  # each process gets four


def test_scores_do_not_depend_on_the_rows_that_meet_the_queries_together(run_copy, monkeypatch):
    flags, products, real = (
        ["--rotate", "rows", "--train_batch_size", "2", "--overwrite"],
        [],
        trackers.inner_products,
    )

    def watched(queries, pieces, elements):
        products.append(sum(len(g) for g, _ in pieces))
        return real(queries, pieces, elements)

    monkeypatch.setattr(trackers, "inner_products", watched)
    analyze_quickly(run_copy, *flags)
    expected, small = scores_of(run_copy), products[:]
    products.clear()
    monkeypatch.setitem(memory.GROUP_ROWS, "cpu", 4800)
    analyze_quickly(run_copy, *flags)
    assert (
        max(products) > 2 * max(small)
        and len(products) < len(small) / 2
        and sum(products) == sum(small)
    )
    assert close(scores_of(run_copy), expected, 1e-5)
