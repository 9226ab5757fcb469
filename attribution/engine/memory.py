"""What fits into memory: tokens of a batch, queries of a pass, and how many partitions a phase is
cut into.
"""

import math
import time

import numpy as np
import torch

from attribution.engine.analyzer import EigenAnalyzer
from attribution.engine.batching import batches_within, group_ends
from attribution.engine.modules import CACHE_ELEMENTS, EigenLinear, tracked
from attribution.engine.parts import SMALLEST_BUDGET
from attribution.processes import free_host_memory, here

# seconds of work between two points from which an interrupted run of stock kronfluence goes on
PATIENCE = 600.0
PART_MADDS = {
    "cpu": 1.2e12,
    "cuda": 3e14,
}  # multiply-adds of a part: some minutes at most, whatever the machine
# share of the free memory that is planned with; the rest is for what allocators round and scatter
SAFETY = 0.9
# Bytes a token, and an input or output feature of a tracked module, of a training pass: what
# autograd keeps, gradients, temporaries; on a CPU as in `affordable_tokens`, on a GPU as measured
# (tests/test_pretended_gpu.py).
PASS_BYTES = {"cpu": 32, "cuda": 4}
GROUPS_A_PROCESS = 4  # at least, so that processes get about the same
# Rows that meet the queries together, where memory allows: a GPU multiplies many rows up to three
# times as fast as few.
GROUP_ROWS = {"cpu": 0, "cuda": 4800}
CPU_TOKENS = 4096  # of a batch, at most
ROTATE = {"auto": None, "rows": True, "queries": False}  # which side of a pairwise score is rotated


def parameters_of(model) -> int:
    """Number P of parameters that scores see: weights and biases of the tracked modules."""
    return sum(m.weight.numel() + (0 if m.bias is None else m.bias.numel()) for m in tracked(model))


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still take on the device, which it may share with others of its
    launch.

    What torch keeps of a GPU without using it is given back first: the driver counts it as taken.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0] // here().sharers(device)
    return free_host_memory() // here().sharers(device)


def affordable_tokens(model, device: torch.device, wanted: int) -> int:
    """The token budget, lowered on the CPU to CPU_TOKENS and to what a stated estimate allows.

    To CPU_TOKENS because larger batches need more memory there and no less time; to an estimate
    because Linux kills a process that runs out of memory instead of raising.

    Estimate: a training pass holds about 8 float32 numbers a token for every input and output
    feature of every tracked module; half of the free memory may go there.
    """
    if device.type == "cuda":
        return wanted
    features = sum(sum(module.weight.shape) for module in tracked(model))
    return max(
        SMALLEST_BUDGET, min(wanted, CPU_TOKENS, free_memory(device) // 2 // (32 * features))
    )


def shapes_of(model) -> list[tuple[int, int]]:
    """(D_out, D_in) of every tracked module; D_in counts the bias."""
    return [(m.weight.shape[0], m.weight[0].numel() + (m.bias is not None)) for m in tracked(model)]


def features_of(model) -> int:
    """Numbers that are held of a token: inputs and outputs of every tracked module."""
    return sum(map(sum, shapes_of(model)))


def held_anyway(model, kind: str, queries: int, device: torch.device) -> int:
    """Bytes that a phase of this kind ("factors", "pairwise", "self") holds whatever the size of
    its batches.

    Covariance sums in float64, or lambda's with bases in float32; for scores bases, the inverse
    curvature, and blocks of gradients of queries and rows, one of each a thread.
    """
    shapes, threads = shapes_of(model), torch.get_num_threads() if device.type == "cpu" else 1
    squares = sum(d_out**2 + d_in**2 for d_out, d_in in shapes)
    products = [d_out * d_in for d_out, d_in in shapes]
    block = min(CACHE_ELEMENTS[device.type], max(queries, 16) * max(products))
    if kind == "factors":
        return max(8 * squares, 8 * sum(products) + 4 * squares) + 2 * 4 * threads * block
    return 4 * (squares + sum(products)) + 4 * 4 * threads * block


def held_a_token(model, device: torch.device, itemsize: int = 4) -> int:
    """Bytes a token of a batch: of the pass itself, and of a waiting group, which has as many
    tokens as a batch.
    """
    return features_of(model) * (PASS_BYTES[device.type] + itemsize)


def fitting_budget(analyzer: EigenAnalyzer, kind: str, queries: int) -> int:
    """The token budget, halved until batches and groups take at most half of what nothing else
    holds.
    """
    device, model, budget = analyzer.state.device, analyzer.model, analyzer.token_budget
    room = SAFETY * free_memory(device) - held_anyway(model, kind, queries, device)
    while budget > SMALLEST_BUDGET and budget * held_a_token(model, device) > room / 2:
        budget = max(SMALLEST_BUDGET, budget // 2)
    return budget


def room_for_queries(analyzer: EigenAnalyzer, queries: int) -> float:
    """Bytes that bases, blocks, a batch and a group of as many tokens leave to what is held of so
    many queries.
    """
    device, model = analyzer.state.device, analyzer.model
    room = SAFETY * free_memory(device) - held_anyway(model, "pairwise", queries, device)
    return max(0.0, room - analyzer.token_budget * held_a_token(model, device))


def held_of(model, lengths: np.ndarray, batch: int, score_args, rotate_rows: bool) -> np.ndarray:
    """(Q,): bytes held of the first 1, 2, ... queries with these lengths (Q,), longest first: their
    tokens, or their gradients where rows are not rotated.

    batch: query rows a batch, which are padded to its longest.
    """
    shapes, rank = shapes_of(model), score_args.query_gradient_low_rank
    padded = np.repeat(lengths[::batch], batch)[: len(lengths)].astype(np.int64)
    kept = sum(
        rank * sum(shape) if rank and rank < min(shape) else shape[0] * shape[1] for shape in shapes
    )
    numbers = padded * features_of(model) if rotate_rows else np.full(len(lengths), kept)
    return np.cumsum(numbers) * score_args.score_dtype.itemsize


def wanted_group(analyzer: EigenAnalyzer, lengths: np.ndarray) -> int:
    """Tokens of a group of training batches that are wanted, for training rows of these lengths
    (N,).
    """
    rows = min(GROUP_ROWS[analyzer.state.device.type], len(lengths))
    return max(analyzer.token_budget, round(rows * float(lengths.mean())))


def plan_group(analyzer: EigenAnalyzer, train, queries, score_args, plan: dict) -> int:
    """Tokens of a group: those wanted, as far as the queries of a pass leave memory, and processes
    get groups enough.

    plan: of `plan_passes`. Of the process that has least memory.
    """
    budget, model, lengths = analyzer.token_budget, analyzer.model, np.sort(queries.lengths)[::-1]
    wanted, processes = wanted_group(analyzer, train.lengths), analyzer.processes
    held = held_of(model, lengths, plan["query_batch"], score_args, plan["rotate_rows"])[
        plan["pass_queries"] - 1
    ]
    left = max(0.0, room_for_queries(analyzer, len(lengths)) - held)
    token = features_of(model) * score_args.score_dtype.itemsize
    group = min(
        wanted, budget + int(left / 2 // token)
    )  # half: what is planned tightly may run out
    if processes.count > 1:
        group = min(group, int(train.lengths.sum()) // (GROUPS_A_PROCESS * processes.count))
    return max(budget, min(processes.all_of(group)))


def plan_queries(
    analyzer: EigenAnalyzer, train, queries, batch: int, score_args, force: str = "auto"
) -> int:
    """How many passes over the training rows the queries need; says for every module which side is
    rotated.

    Training tokens are rotated, N T (D_in^2 + D_out^2) in every pass, and tokens of queries held,
    whose gradients are formed again for every group of training batches, Q T_q D_in D_out. Or query
    gradients are rotated back once, Q D_in D_out (D_in + D_out), and held. What is held may take
    what bases, batches, waiting groups and blocks leave; a pass more runs the model on all N T
    training tokens again. The cheaper of the two is taken, unless force (a key of ROTATE) names
    one; low rank always rotates back. batch: query rows a batch.
    """
    model, rank, lengths = (
        analyzer.model,
        score_args.query_gradient_low_rank,
        np.sort(queries.lengths)[::-1],
    )
    shapes = shapes_of(model)
    size = sum(d_out * d_in for d_out, d_in in shapes)
    room = room_for_queries(analyzer, len(lengths))
    holds = {
        side: int((held_of(model, lengths, batch, score_args, side) <= room).sum())
        for side in (True, False)
    }
    passes = {side: -(-len(lengths) // max(held, 1)) for side, held in holds.items()}
    tokens, asked = int(train.lengths.sum()), int(lengths.sum())
    batches = batches_within(train.lengths, analyzer.token_budget)
    group = wanted_group(analyzer, train.lengths)
    groups = sum(group_ends(batches, train.lengths, group)) if analyzer.shared else len(batches)
    rotations = sum(d_out**2 + d_in**2 for d_out, d_in in shapes)
    back = len(lengths) * sum(d_out * d_in * (d_out + d_in) for d_out, d_in in shapes)
    costs = {
        True: passes[True] * tokens * (3 * size + rotations) + groups * asked * size,
        False: passes[False] * tokens * 3 * size + asked * size + back,
    }
    forced = ROTATE[force]
    rows = (costs[True] < costs[False] if forced is None else forced) and not rank
    for module in tracked(model):
        if isinstance(module, EigenLinear):
            module.rotate_rows = rows
    return passes[rows]


def plan_parts(
    analyzer: EigenAnalyzer, kind: str, lengths: np.ndarray, queries: int, asked: int | None = None
) -> dict[str, int]:
    """How the rows with these lengths (N,) are divided: "budget" tokens of a batch, "count" of
    parts at most.

    A function of rows, queries, processes and the smallest budget that a process can afford; never
    of a timing. kind: "factors", "pairwise" or "self". asked: count of parts that was asked for.
    """
    processes, tokens = analyzer.processes, int(lengths.sum())
    budget = min(processes.all_of(fitting_budget(analyzer, kind, queries)))
    work = parameters_of(analyzer.model) * (6 * tokens + len(lengths) * queries)
    count = math.ceil(work / PART_MADDS[analyzer.state.device.type])
    if processes.count > 1:
        few = tokens // (GROUPS_A_PROCESS * processes.count)
        budget = min(budget, max(SMALLEST_BUDGET, int(lengths.max()), few))
        count = max(count, GROUPS_A_PROCESS * processes.count)
    return {"budget": budget, "count": asked or count}


def plan_passes(
    analyzer: EigenAnalyzer, train, queries, batch: int, score_args, force: str = "auto"
) -> dict:
    """ "pass_queries" of a pass, "query_batch" of them a batch, and "rotate_rows", see
    `plan_queries`.

    Of the process that has least memory. batch: query rows a batch that were asked for.
    """
    mine = (
        plan_queries(analyzer, train, queries, batch, score_args, force),
        tracked(analyzer.model)[0].rotate_rows,
    )
    passes, rotate_rows = max(analyzer.processes.all_of(mine))
    steps = -(-len(queries) // (passes * batch))
    return {
        "pass_queries": -(-len(queries) // passes),
        "query_batch": -(-len(queries) // (passes * steps)),
        "rotate_rows": rotate_rows,
    }


def plan_partitions(
    model, device: torch.device, rows: int, tokens: int, queries: int
) -> dict[str, int]:
    """Phase -> number of stock kronfluence's data partitions, so that a killed run loses some
    PATIENCE seconds.

    Multiply-adds: 6 P a token for a factor phase, and P a row and query for pairwise scores; at a
    tenth of the rate that a matrix product reaches here, because an estimate must not be too
    bright.
    """
    x = torch.randn(1024, 1024, device=device)
    (x @ x).sum().item()
    start = time.perf_counter()
    (x @ x @ x @ x).sum().item()
    rate = 0.1 * 3 * 1024**3 / (time.perf_counter() - start)
    size = parameters_of(model)
    work = {
        "factors": 6 * size * tokens,
        "pairwise": size * (rows * queries + 3 * tokens),
        "self": 6 * size * tokens,
    }
    return {
        phase: int(min(rows, max(1, -(-madds // (rate * PATIENCE)))))
        for phase, madds in work.items()
    }
