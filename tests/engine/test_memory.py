"""Plans: batches and passes fit into memory, and the cheaper side is rotated."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from kronfluence.arguments import ScoreArguments
from running import analyze_quickly, close, scores_of

from attribution.engine import analyzer, memory, modules, trackers
from attribution.engine.memory import Plan
from attribution.engine.task import InfluenceTask
from attribution.processes import ALONE, Processes

CPU = torch.device("cpu")
# (D_out, D_in) of the modules of one layer of an encoder, and of a head without bias.
SHAPES = [*[(64, 65)] * 4, (256, 65), (64, 257), (2, 64)]
FEATURES = 4 * 129 + 321 + 321 + 66
PARAMETERS = 4 * 64 * 65 + 256 * 65 + 64 * 257 + 2 * 64
TRAIN = np.random.default_rng(0).integers(3, 30, 120)
QUERIES = np.random.default_rng(1).integers(3, 30, 9)
BUDGET = 512


@pytest.fixture
def free(monkeypatch) -> Callable[[float], None]:
    """free(left): as much free memory as leaves so many bytes to queries and waiting groups."""

    def free(left: float, budget: int = BUDGET) -> None:
        taken = memory.fixed_bytes(SHAPES, "pairwise", len(QUERIES), CPU)
        taken += budget * memory.bytes_a_token(FEATURES, CPU)
        size = (left + taken) / memory.SAFETY + 1
        monkeypatch.setattr(memory, "free_memory", lambda device: size)

    return free


def test_sizes_are_those_of_the_tracked_modules():
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2, False)
    )
    wrapped = modules.prepare_model(model, InfluenceTask())
    assert memory.shapes_of(wrapped) == [(4, 4), (2, 4)]
    assert memory.features_of(SHAPES) == FEATURES
    assert memory.parameters_of(SHAPES) == PARAMETERS


def test_short_memory_lowers_the_token_budget(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 2 * 32 * FEATURES * 1000)
    assert memory.affordable_tokens(FEATURES, CPU, 500) == 500
    assert memory.affordable_tokens(FEATURES, CPU, 8192) == 1000
    assert memory.affordable_tokens(FEATURES, torch.device("cuda"), 8192) == 8192
    monkeypatch.setattr(memory, "free_memory", lambda device: 1)
    assert memory.affordable_tokens(FEATURES, CPU, 8192) == memory.SMALLEST_BUDGET
    monkeypatch.setattr(memory, "free_memory", lambda device: 2**50)
    assert memory.affordable_tokens(FEATURES, CPU, 8192) == memory.CPU_TOKENS


def test_batches_and_groups_take_half_of_what_nothing_else_holds(monkeypatch):
    def budget(times: float) -> int:
        """Budget where free memory, without what a phase holds anyway, is `times` that of 1,024."""
        room = times * 1024 * memory.bytes_a_token(FEATURES, CPU)
        size = (room + memory.fixed_bytes(SHAPES, "factors", 0, CPU)) / memory.SAFETY + 1
        monkeypatch.setattr(memory, "free_memory", lambda device: size)
        return memory.plan_parts(SHAPES, CPU, ALONE, "factors", 1024, TRAIN, 0).budget

    assert [budget(times) for times in (2, 1, 0.5, 0.01)] == [1024, 512, 256, 128]


def test_parts_are_a_function_of_the_work_and_processes_get_four_groups_each(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 2**40)
    tokens = int(TRAIN.sum())
    madds = PARAMETERS * (6 * tokens + len(TRAIN) * 9)

    def plan(processes: Processes = ALONE) -> Plan:
        return memory.plan_parts(SHAPES, CPU, processes, "pairwise", 1024, TRAIN, 9)

    assert plan() == Plan(1024, 1, 4096)
    monkeypatch.setitem(memory.PART_MADDS, "cpu", madds / 6.5)
    assert plan() == Plan(1024, 7, 4096)
    monkeypatch.setattr(Processes, "all_of", lambda self, value: [value] * self.count)
    assert plan(Processes(0, 3, 0, 3)) == Plan(tokens // 12, 12, tokens // 12)


def test_short_memory_takes_more_passes_and_the_cheaper_side_is_rotated(free):
    gradient = 4 * PARAMETERS
    query = 4 * FEATURES * int(QUERIES.max())

    def plan(left: float, rows: int, rank: int | None = None) -> tuple[int, bool]:
        free(left)
        score_args = ScoreArguments(query_gradient_low_rank=rank)
        plan = Plan(BUDGET, 1)
        sizes = TRAIN[:rows], QUERIES, 32, score_args
        plan = memory.plan_pairwise(plan, SHAPES, CPU, ALONE, *sizes)
        return -(-len(QUERIES) // plan.pass_queries), plan.rotate_rows

    assert plan(2**40, 120) == (1, False)  # rows have more tokens than queries have directions
    assert plan(2**40, 8) == (1, True)
    assert plan(2**40, 8, rank=2) == (1, False)  # low rank is rotated back
    assert plan(3 * gradient, 120) == (3, False) and plan(3 * query, 8) == (3, True)
    # Gradients would need two passes.
    assert plan(query * 9, 120) == (1, True) and query < gradient


def test_passes_are_of_the_queries_that_memory_holds_and_a_pass_more_costs_the_model_again():
    size = PARAMETERS
    rotations = sum(d_out**2 + d_in**2 for d_out, d_in in SHAPES)
    back = sum(d_out * d_in * (d_out + d_in) for d_out, d_in in SHAPES)
    tokens = 2000
    groups = 2

    def side(fitting: dict[bool, int], rank: int | None = None) -> tuple[int, bool]:
        return memory.cheapest_side(SHAPES, fitting, tokens, QUERIES, groups, rank)

    def costs(passes: dict[bool, int]) -> dict[bool, int]:
        asked = int(QUERIES.sum()) * size
        return {
            True: passes[True] * tokens * (3 * size + rotations) + groups * asked,
            False: passes[False] * tokens * 3 * size + asked + len(QUERIES) * back,
        }

    for fitting in ({True: 9, False: 9}, {True: 3, False: 9}, {True: 9, False: 2}):
        passes = {rows: -(-9 // held) for rows, held in fitting.items()}
        cost = costs(passes)
        rows = cost[True] < cost[False]
        assert side(fitting) == (passes[rows], rows)
        assert side(fitting, rank=2) == (passes[False], False)
    assert side({True: 9, False: 2})[1] and not side({True: 3, False: 9})[1]
    assert side({True: 0, False: 0})[0] == 9


def test_held_of_queries_are_their_padded_tokens_their_gradients_or_two_factors():
    lengths = np.array([10, 8, 8, 2])
    score_args = ScoreArguments()
    tokens = memory.query_bytes(SHAPES, lengths, 2, score_args, True)
    assert tokens.tolist() == [4 * FEATURES * n for n in (10, 20, 28, 36)]
    gradients = memory.query_bytes(SHAPES, lengths, 2, score_args, False)
    assert gradients.tolist() == [4 * PARAMETERS * n for n in (1, 2, 3, 4)]
    score_args = ScoreArguments(query_gradient_low_rank=2, score_dtype=torch.bfloat16)
    factors = memory.query_bytes(SHAPES, lengths, 2, score_args, False)
    assert factors[0] == 2 * (2 * (FEATURES - 66) + 2 * 64)  # rank 2 is full for two outputs


def test_a_group_has_the_wanted_rows_as_far_as_half_of_what_is_left_holds_them(free, monkeypatch):
    score_args = ScoreArguments()
    token = 4 * FEATURES
    held = 9 * int(QUERIES.max()) * token
    # Rows are rotated, and tokens of all queries are held.
    monkeypatch.setattr(memory, "cheapest_side", lambda *sizes: (1, True))

    def group(tokens_left: float, processes: Processes = ALONE) -> int:
        free(held + tokens_left * token, budget=128)
        plan = memory.plan_pairwise(
            Plan(128, 1), SHAPES, CPU, processes, TRAIN, QUERIES, 9, score_args
        )
        assert (plan.budget, plan.pass_queries, plan.query_batch) == (128, 9, 9)
        return plan.group

    assert group(2**30) == memory.GROUP_TOKENS["cpu"]
    monkeypatch.setitem(memory.GROUP_TOKENS, "cpu", 0)
    assert group(2**30) == 128
    monkeypatch.setitem(memory.GROUP_ROWS, "cpu", 60)
    assert group(2**30) == round(60 * TRAIN.mean()) > 128
    assert group(200) == 228 and group(0) == group(-50) == 128
    monkeypatch.setitem(memory.GROUP_ROWS, "cpu", 10**6)
    # More rows than there are wait for nothing.
    assert group(2**30) == round(len(TRAIN) * TRAIN.mean())
    monkeypatch.setattr(Processes, "all_of", lambda self, value: [value] * self.count)
    # Each process gets four.
    assert group(2**30, Processes(0, 3, 0, 3)) == max(128, int(TRAIN.sum()) // 12)


def test_scores_do_not_depend_on_the_rows_that_meet_the_queries_together(run_copy, monkeypatch):
    monkeypatch.setattr(memory, "cheapest_side", lambda *sizes: (1, True))
    monkeypatch.setitem(memory.GROUP_TOKENS, "cpu", 0)
    flags = ["--train_batch_size", "2", "--overwrite"]
    analyze_quickly(run_copy, *flags)
    of_tape = scores_of(run_copy)
    monkeypatch.setattr(analyzer, "Tape", lambda *_: None)
    products: list[int] = []
    real = trackers.inner_products

    def watched(queries, pieces, elements):
        products.append(sum(len(g) for g, _ in pieces))
        return real(queries, pieces, elements)

    monkeypatch.setattr(trackers, "inner_products", watched)
    analyze_quickly(run_copy, *flags)
    expected = scores_of(run_copy)
    small = products[:]
    products.clear()
    monkeypatch.setitem(memory.GROUP_ROWS, "cpu", 4800)
    analyze_quickly(run_copy, *flags)
    assert max(products) > 2 * max(small)
    assert len(products) < len(small) / 2 and sum(products) == sum(small)
    assert close(scores_of(run_copy), expected, 1e-5)
    assert close(of_tape, expected, 1e-5)
