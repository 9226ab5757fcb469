"""What fits into memory: tokens of a batch, queries of a pass, and how many partitions a phase is cut into."""

import time

import numpy as np
import psutil
import torch

from attribution.influence.analyzer import EigenAnalyzer
from attribution.influence.batching import batches_within, group_ends
from attribution.influence.eigenbasis import EigenLinear, tracked

PATIENCE = 600.0  # seconds of work between two points from which an interrupted run goes on
CPU_TOKENS = 4096  # of a batch, at most
ROTATE = {"auto": None, "rows": True, "queries": False}  # which side of a pairwise score is rotated


def parameters_of(model) -> int:
    """Number P of parameters that scores see: weights and biases of the tracked modules."""
    return sum(m.weight.numel() + (0 if m.bias is None else m.bias.numel()) for m in tracked(model))


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on the device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def affordable_tokens(model, device: torch.device, wanted: int) -> int:
    """The token budget, lowered on the CPU to CPU_TOKENS and to what a stated estimate allows.

    To CPU_TOKENS because larger batches need more memory there and no less time; to an estimate because Linux kills
    a process that runs out of memory instead of raising.

    Estimate: a training pass holds about 8 float32 numbers a token for every input and output feature of
    every tracked module; half of the free memory may go there.
    """
    if device.type == "cuda":
        return wanted
    features = sum(sum(module.weight.shape) for module in tracked(model))
    return max(128, min(wanted, CPU_TOKENS, free_memory(device) // 2 // (32 * features)))


def plan_queries(analyzer: EigenAnalyzer, train, queries, batch: int, score_args, force: str = "auto") -> int:
    """How many passes over the training rows the queries need; says for every module which side is rotated.

    Training tokens are rotated, N T (D_in^2 + D_out^2) in every pass, and tokens of queries held, whose gradients are
    formed again for every group of training batches, Q T_q D_in D_out. Or query gradients are rotated back once,
    Q D_in D_out (D_in + D_out), and held. Whatever is held may take half of the free memory; a pass more runs the
    model on all N T training tokens again. The cheaper of the two is taken, unless force (a key of ROTATE) names one;
    low rank always rotates back. batch: query rows a batch.
    """
    model, rank, lengths = analyzer.model, score_args.query_gradient_low_rank, np.sort(queries.lengths)[::-1]
    shapes = [(m.weight.shape[0], m.weight[0].numel() + (m.bias is not None)) for m in tracked(model)]
    size = sum(d_out * d_in for d_out, d_in in shapes)
    kept = sum(rank * sum(shape) if rank and rank < min(shape) else shape[0] * shape[1] for shape in shapes)
    room = free_memory(analyzer.state.device) // 2 / score_args.score_dtype.itemsize
    padded = np.repeat(lengths[::batch], batch)[: len(lengths)]
    holds = {True: int((np.cumsum(padded) * sum(map(sum, shapes)) <= room).sum()), False: int(room // kept)}
    passes = {side: -(-len(lengths) // min(max(held, 1), len(lengths))) for side, held in holds.items()}
    tokens, asked = int(train.lengths.sum()), int(lengths.sum())
    batches = batches_within(train.lengths, analyzer.token_budget)
    groups = sum(group_ends(batches, train.lengths, analyzer.token_budget)) if analyzer.shared else len(batches)
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


def plan_partitions(model, device: torch.device, rows: int, tokens: int, queries: int) -> dict[str, int]:
    """Phase -> number of data partitions, so that a killed run loses some PATIENCE seconds.

    Multiply-adds: 6 P a token for a factor phase, and P a row and query for pairwise scores; at a tenth of
    the rate that a matrix product reaches here, because an estimate must not be too bright.
    """
    x = torch.randn(1024, 1024, device=device)
    (x @ x).sum().item()
    start = time.perf_counter()
    (x @ x @ x @ x).sum().item()
    rate = 0.1 * 3 * 1024**3 / (time.perf_counter() - start)
    size = parameters_of(model)
    work = {"factors": 6 * size * tokens, "pairwise": size * (rows * queries + 3 * tokens), "self": 6 * size * tokens}
    return {phase: int(min(rows, max(1, -(-madds // (rate * PATIENCE))))) for phase, madds in work.items()}
