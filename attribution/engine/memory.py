"""Plans that fit into memory: tokens of a batch and of a group, parts, and queries of a pass.

All of it is arithmetic on sizes: shapes of the tracked modules, lengths of rows, free bytes.
Symbols: N training rows, T tokens, Q queries, P parameters, D_in (with the bias) and D_out features
of a module.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from kronfluence.arguments import ScoreArguments

from attribution.engine.batching import Part, batches_within, divide, group_ends, padded_sizes
from attribution.engine.modules import CACHE_ELEMENTS, tracked
from attribution.processes import Processes, free_host_memory, here

SMALLEST_BUDGET = 128  # tokens of a batch below which nothing more is tried
# Multiply-adds of a part: some minutes at most, on any machine.
PART_MADDS = {"cpu": 1.2e12, "cuda": 3e14}
SAFETY = 0.9  # planned share of the free memory; allocators round and scatter the rest
# Bytes of a training pass a token, and an input or output feature of a tracked module: activations
# kept by autograd, gradients, temporaries; on a GPU as measured (tests/test_pretended_gpu.py).
PASS_BYTES = {"cpu": 32, "cuda": 4}
GROUPS_A_PROCESS = 4  # at least, so that processes get about the same
# Rows that meet the queries together, if memory allows: a GPU multiplies many rows up to three
# times as fast as few.
GROUP_ROWS = {"cpu": 0, "cuda": 4800}
CPU_TOKENS = 1024  # of a batch, at most: more need more memory on a CPU and no less time
GROUP_TOKENS = {"cpu": 4096, "cuda": 0}  # the same, in tokens
TAPE_TOKENS = 32768  # at most, of a tape


@dataclass(frozen=True)
class Plan:
    """Division of the work on one phase; stored, and kept on resuming."""

    budget: int  # tokens of a batch with padding
    count: int  # parts at most
    group: int = 0  # tokens of a group of batches; 0: as many as a batch
    pass_queries: int = 1  # queries whose tokens or gradients are in memory at a time
    query_batch: int = 1  # rows of a batch of queries
    rotate_rows: bool = True  # pairwise scores rotate training tokens, else query gradients back

    def parts(self, lengths: np.ndarray) -> list[Part]:
        """Parts of the rows with these lengths (N,)."""
        return divide(lengths, self.budget, self.count, self.group)


# --- sizes ----------------------------------------------------------------------------------------


def shapes_of(model) -> list[tuple[int, int]]:
    """(D_out, D_in) of every tracked module."""
    return [
        (module.weight.shape[0], module.weight[0].numel() + (module.bias is not None))
        for module in tracked(model)
    ]


def features_of(shapes: list[tuple[int, int]]) -> int:
    """Numbers held of a token: inputs and outputs of every tracked module."""
    return sum(map(sum, shapes))


def parameters_of(shapes: list[tuple[int, int]]) -> int:
    """Number P of parameters that scores see: weights and biases of the tracked modules."""
    return sum(d_out * d_in for d_out, d_in in shapes)


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still take on the device, shared with others of its launch.

    Memory that torch keeps on a GPU without using it is given back first: the driver counts it as
    taken.
    """
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0] // here().sharers(device)
    return free_host_memory() // here().sharers(device)


def affordable_tokens(features: int, device: torch.device, wanted: int) -> int:
    """Token budget of a batch: `wanted`, on a CPU at most CPU_TOKENS and what half of the free
    memory holds, because Linux kills a process that runs out of memory.

    A training pass holds about 8 float32 numbers a token and feature.
    """
    if device.type == "cuda":
        return wanted
    affordable = free_memory(device) // 2 // (32 * features)
    return max(SMALLEST_BUDGET, min(wanted, CPU_TOKENS, affordable))


def tape_bytes(features: int, device: torch.device) -> int:
    """Bytes that a tape may take: a quarter of the free memory, and TAPE_TOKENS float32 tokens."""
    return min(free_memory(device) // 4, 4 * features * TAPE_TOKENS)


def fixed_bytes(shapes: list, kind: str, queries: int, device: torch.device) -> int:
    """Bytes of a phase of this kind ("factors", "pairwise", "self") that batches do not change.

    Covariance sums in float64, or lambda's with bases in float32; for scores bases, the inverse
    curvature, and blocks of gradients of queries and rows, one of each a thread.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    squares = sum(d_out**2 + d_in**2 for d_out, d_in in shapes)
    largest = max(d_out * d_in for d_out, d_in in shapes)
    products = parameters_of(shapes)
    block = min(CACHE_ELEMENTS[device.type], max(queries, 16) * largest)
    if kind == "factors":
        return max(8 * squares, 8 * products + 4 * squares) + 2 * 4 * threads * block
    return 4 * (squares + products) + 4 * 4 * threads * block


def bytes_a_token(features: int, device: torch.device, itemsize: int = 4) -> int:
    """Bytes a token of a batch: of the pass, and of a waiting group of as many tokens."""
    return features * (PASS_BYTES[device.type] + itemsize)


def query_bytes(
    shapes: list, lengths: np.ndarray, batch: int, score_args: ScoreArguments, rotate_rows: bool
) -> np.ndarray:
    """(Q,): bytes of the first 1, 2, ... queries of a pass with these lengths (Q,), longest first.

    Tokens are kept, or gradients if rows are not rotated. batch: queries of a batch, which are
    padded to its longest.
    """
    rank = score_args.query_gradient_low_rank
    padded = np.repeat(lengths[::batch], batch)[: len(lengths)].astype(np.int64)
    gradients = sum(
        rank * sum(shape) if rank and rank < min(shape) else shape[0] * shape[1] for shape in shapes
    )
    numbers = np.full(len(lengths), gradients)
    if rotate_rows:
        numbers = padded * features_of(shapes)
    return np.cumsum(numbers) * score_args.score_dtype.itemsize


# --- plans ----------------------------------------------------------------------------------------


def plan_parts(
    shapes: list,
    device: torch.device,
    processes: Processes,
    kind: str,
    budget: int,
    lengths: np.ndarray,
    queries: int,
) -> Plan:
    """Plan of "factors" or "self" scores of rows with these lengths (N,): budget and parts.

    A function of rows, queries, processes and the smallest budget that a process can afford, never
    of a timing. budget: tokens of a batch at most.
    """
    room = SAFETY * free_memory(device) - fixed_bytes(shapes, kind, queries, device)
    token = bytes_a_token(features_of(shapes), device)
    # Batches and groups take at most half of the memory that nothing else holds.
    while budget > SMALLEST_BUDGET and budget * token > room / 2:
        budget = max(SMALLEST_BUDGET, budget // 2)
    budget = min(processes.all_of(budget))
    tokens = int(lengths.sum())
    work = parameters_of(shapes) * (6 * tokens + len(lengths) * queries)
    parts = math.ceil(work / PART_MADDS[device.type])
    group = max(budget, min(GROUP_TOKENS[device.type], 4 * budget))
    if processes.count > 1:
        few = tokens // (GROUPS_A_PROCESS * processes.count)
        budget = min(budget, max(SMALLEST_BUDGET, int(lengths.max()), few))
        parts = max(parts, GROUPS_A_PROCESS * processes.count)
        group = budget
    return Plan(budget, parts, group)


def plan_pairwise(
    plan: Plan,
    shapes: list,
    device: torch.device,
    processes: Processes,
    lengths: np.ndarray,
    query_lengths: np.ndarray,
    query_batch: int,
    score_args: ScoreArguments,
    tape: bool = False,
) -> Plan:
    """Plan of pairwise scores: that of `plan_parts` with passes over queries and groups.

    lengths (N,), query_lengths (Q,) in any order. query_batch: rows of a batch of queries at most.
    tape: whether there is one, whose rows wait without a copy. Of the process that has least
    memory.
    """
    longest_first = np.sort(query_lengths)[::-1]
    features = features_of(shapes)
    fixed = fixed_bytes(shapes, "pairwise", len(longest_first), device)
    room = SAFETY * free_memory(device) - fixed - plan.budget * bytes_a_token(features, device)
    room = max(0.0, room)
    rows = min(GROUP_ROWS[device.type], len(lengths))
    tokens = max(GROUP_TOKENS[device.type], round(rows * float(lengths.mean())))
    batches = batches_within(lengths, plan.budget)
    if tape:  # as many as a part has
        padded = int(padded_sizes(lengths, batches).sum())
        tokens = min(TAPE_TOKENS, -(-padded // plan.count))
    wanted = max(plan.budget, tokens)
    held = {
        side: query_bytes(shapes, longest_first, query_batch, score_args, side)
        for side in (True, False)
    }
    passes, rotate_rows = cheapest_side(
        shapes,
        {side: int((size <= room).sum()) for side, size in held.items()},
        int(lengths.sum()),
        longest_first,
        sum(group_ends(batches, lengths, wanted)),
        score_args.query_gradient_low_rank,
    )
    passes, rotate_rows = max(processes.all_of((passes, rotate_rows)))
    steps = -(-len(longest_first) // (passes * query_batch))
    pass_queries = -(-len(longest_first) // passes)
    batch = -(-len(longest_first) // (passes * steps))
    # A group takes at most half of what the queries leave: a tight plan may run out.
    size = query_bytes(shapes, longest_first, batch, score_args, rotate_rows)[pass_queries - 1]
    left = max(0.0, room - size)
    token = features * score_args.score_dtype.itemsize
    group = min(wanted, plan.budget + int(left / 2 // token))
    if processes.count > 1:
        group = min(group, int(lengths.sum()) // (GROUPS_A_PROCESS * processes.count))
    group = max(plan.budget, min(processes.all_of(group)))
    return Plan(plan.budget, plan.count, group, pass_queries, batch, rotate_rows)


def cheapest_side(
    shapes: list,
    fitting: dict[bool, int],
    tokens: int,
    query_lengths: np.ndarray,
    groups: int,
    rank: int | None,
) -> tuple[int, bool]:
    """(passes over the training rows, whether rows are rotated): the cheaper of two ways.

    Training tokens are rotated, N T (D_in^2 + D_out^2) in every pass, and tokens of queries held,
    whose gradients are formed again for every group of training batches, Q T_q D_in D_out. Or query
    gradients are rotated back once, Q D_in D_out (D_in + D_out), and held; low rank always rotates
    back. One pass more runs the model on all N T training tokens again.

    fitting: queries that memory holds, for either way. tokens: N T. rank: of query gradients.
    """
    queries = len(query_lengths)
    query_tokens = int(query_lengths.sum())
    passes = {side: -(-queries // max(held, 1)) for side, held in fitting.items()}
    size = parameters_of(shapes)
    rotations = sum(d_out**2 + d_in**2 for d_out, d_in in shapes)
    back = queries * sum(d_out * d_in * (d_out + d_in) for d_out, d_in in shapes)
    rows = passes[True] * tokens * (3 * size + rotations) + groups * query_tokens * size
    gradients = passes[False] * tokens * 3 * size + query_tokens * size + back
    rotate_rows = rows < gradients and not rank
    return passes[rotate_rows], rotate_rows
