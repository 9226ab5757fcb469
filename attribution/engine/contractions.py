"""Sums over examples of per-example gradients, formed in blocks that stay in cache.

The gradient of one example of a linear layer is `G = sum_t g_t a_t^T`, with a (T, D_in) the inputs
of its T tokens (a one appended for the bias) and g (T, D_out) the gradients of their outputs.
Examples come in pieces (g (B, T, D_out), a (B, T, D_in)), each padded to a T of its own. Nothing
here depends on kronfluence or on a module. Symbols: B examples, Q queries, R low rank.
"""

import copy
import functools
import hashlib
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

GRAM_STEP = 192  # rows of a block of a symmetric product
ALIGNED = 16  # a GPU multiplies fastest where sizes are multiples of this
MAX_WORKERS = 8  # threads that form blocks at a time; more would wait for Python's lock


def gram(x: torch.Tensor) -> torch.Tensor:
    """x^T x (D, D) of x (n, D); if it is wide, only blocks on and above the diagonal are
    multiplied.
    """
    width = x.shape[1]
    if width < 2 * GRAM_STEP:
        return x.t() @ x
    out = torch.empty(width, width, dtype=x.dtype, device=x.device)
    for i in range(0, width, GRAM_STEP):
        block = x[:, i : i + GRAM_STEP].t() @ x[:, i:]
        out[i : i + GRAM_STEP, i:] = block
        out[i:, i : i + GRAM_STEP] = block.t()
    return out


def widened(basis: torch.Tensor) -> torch.Tensor:
    """The basis (D, D) with columns of zeros up to a multiple of 16: products of that width are
    faster.
    """
    return torch.nn.functional.pad(basis, (0, -len(basis) % ALIGNED))


def rotate(x: torch.Tensor, basis: torch.Tensor | None, bias: bool) -> torch.Tensor:
    """[x, 1] basis for x (B, T, D) and a `widened` basis, with its zeros; without a basis just [x,
    1].

    No 1 is appended where there is no bias.
    """
    if basis is None:
        return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], dim=-1) if bias else x
    flat = x.reshape(-1, x.shape[-1])
    flat = torch.addmm(basis[-1], flat, basis[:-1]) if bias else flat @ basis
    return flat.view(*x.shape[:-1], -1)


def rotation_pays(tokens: int, d_in: int, d_out: int) -> bool:
    """Whether rotating T tokens, T (D_in^2 + D_out^2), costs less than rotating G, D_in D_out (D_in
    + D_out).
    """
    return tokens * (d_in**2 + d_out**2) < d_in * d_out * (d_in + d_out)


# --- query gradients of a pass --------------------------------------------------------------------


@dataclass
class Gradients:
    """Query gradients (Q, D_out, D_in)."""

    values: torch.Tensor

    def __len__(self) -> int:
        return len(self.values)

    def block(self, outputs: slice) -> torch.Tensor:
        """(Q, outputs, D_in)."""
        return self.values[:, outputs]


@dataclass
class LowRank:
    """Query gradients as left (Q, D_out, R) times right (Q, R, D_in)."""

    left: torch.Tensor
    right: torch.Tensor

    def __len__(self) -> int:
        return len(self.left)

    def block(self, outputs: slice) -> torch.Tensor:
        """(Q, outputs, D_in)."""
        return self.left[:, outputs] @ self.right


@dataclass
class Tokens:
    """Query gradients as pieces (g, a); blocks are multiplied by weight (D_out, D_in).

    Far smaller than the gradients, as long as a query has fewer tokens than a layer has inputs or
    outputs. Columns of a beyond D_in are zeros.
    """

    pieces: list[tuple[torch.Tensor, torch.Tensor]]
    weight: torch.Tensor | None
    dtype: torch.dtype  # of a block
    buffer: torch.Tensor = torch.empty(0)  # memory of the last block

    def __len__(self) -> int:
        return sum(len(g) for g, _ in self.pieces)

    def block(self, outputs: slice) -> torch.Tensor:
        """(Q, outputs, D_in); the next block overwrites it."""
        pieces = [(g[:, :, outputs], a) for g, a in self.pieces]
        g, a = pieces[0]
        shape = len(self), g.shape[-1], a.shape[-1]
        size = math.prod(shape)
        if self.buffer.numel() < size:
            self.buffer = torch.empty(size, dtype=g.dtype, device=g.device)
        block = self.buffer[:size].view(shape)
        outer_products(pieces, block)
        if self.weight is not None:
            weight = self.weight[outputs]
            if block.device.type == "cpu":
                # A CPU multiplies two dtypes slowly; the product is the same.
                block = block.to(weight.dtype)
            # Products of whole blocks are faster than of their first columns.
            missing = shape[-1] - weight.shape[-1]
            block.mul_(torch.nn.functional.pad(weight, (0, missing)) if missing else weight)
        return block.to(self.dtype)


# --- sums over blocks -----------------------------------------------------------------------------


@functools.cache
def workers(count: int, threads: int) -> ThreadPoolExecutor:
    """A pool of `count` started threads, each of which computes in `threads` threads."""
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(threads,))
    started = threading.Barrier(count)
    list(pool.map(lambda _: started.wait(), range(count)))
    return pool


def over_outputs(work, g: torch.Tensor) -> list:
    """[work(outputs)] for shares of the outputs of g (B, T, D_out): on a CPU one share a core.

    A core then multiplies blocks that it has just written. If cores shared every single product, a
    core would fetch half of each block from another core's cache, which takes up to twice the time
    of the products.
    """
    threads = torch.get_num_threads()
    d_out = g.shape[-1]
    count = min(threads, MAX_WORKERS, d_out)
    if g.device.type != "cpu" or count == 1:
        return [work(slice(0, d_out))]
    shares = [slice(d_out * i // count, d_out * (i + 1) // count) for i in range(count)]
    try:
        pool = workers(count, threads // count)
        torch.set_num_threads(threads // count)
        return list(pool.map(work, shares))
    finally:
        torch.set_num_threads(threads)


def side_by_side(work: Callable, items: list, device: torch.device) -> Iterator:
    """Results of work(item), in order: on a CPU several at a time, each in one thread, which gives
    the same bits on any number of cores.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu":
        yield from map(work, items)
        return
    try:
        torch.set_num_threads(1)
        if threads == 1:
            yield from map(work, items)
        else:
            yield from workers(min(threads, MAX_WORKERS), 1).map(work, items)
    finally:
        torch.set_num_threads(threads)


def outer_products(pieces: list, out: torch.Tensor) -> None:
    """Writes sum_t g_t a_t^T of every example of the pieces, one after the other, into out (B,
    D_out, D_in).
    """
    start = 0
    for g, a in pieces:
        torch.bmm(g.transpose(1, 2), a, out=out[start : start + len(g)])
        start += len(g)


def cut(pieces: list, start: int, end: int) -> list:
    """The pieces of the examples from start to end, counted through all pieces."""
    parts = []
    for g, a in pieces:
        if start < len(g) and end > 0:
            parts.append((g[max(start, 0) : end], a[max(start, 0) : end]))
        start -= len(g)
        end -= len(g)
    return parts


def gradient_blocks(pieces: list, elements: int, queries: int = 1, share: slice = slice(None)):
    """Yields (rows, outputs, G) with G (rows, outputs, D_in) a block of sum_t g_t a_t^T.

    share: the outputs of all blocks. A block of `elements` numbers has up to sixteen times as many
    rows as outputs, because few rows make thin products with the queries, whose block is no larger;
    rows are divided evenly. Outputs change slowest, so that the memory of an output is read once.
    The memory of G is reused: use it before the next block.
    """
    count = sum(len(g) for g, _ in pieces)
    g, a = pieces[0]
    first, end, _ = share.indices(g.shape[-1])
    d_in = a.shape[-1]
    rows = -(-count // -(-count // max(1, 4 * math.isqrt(elements // d_in))))
    outputs = min(end - first, max(1, elements // (max(rows, queries) * d_in)))
    if g.device.type != "cpu" and outputs > ALIGNED:
        outputs -= outputs % ALIGNED
    buffer = torch.empty(rows * outputs * d_in, dtype=g.dtype, device=g.device)
    groups = [
        (slice(b, min(b + rows, count)), cut(pieces, b, b + rows)) for b in range(0, count, rows)
    ]
    for o in range(first, end, outputs):
        chosen = slice(o, min(o + outputs, end))
        for place, parts in groups:
            shape = place.stop - place.start, chosen.stop - o, d_in
            block = buffer[: math.prod(shape)].view(shape)
            outer_products([(g[:, :, chosen], a) for g, a in parts], block)
            yield place, chosen, block


def add_squares(total: torch.Tensor, g: torch.Tensor, a: torch.Tensor, elements: int) -> None:
    """total (D_out, D_in) += sum over examples of (sum_t g_t a_t^T)^2, entry by entry; blocks in
    float32 or above.
    """
    if g.shape[1] == 1:
        total += (g[:, 0].square().t() @ a[:, 0].square()).to(total.dtype)
        return
    dtype = accumulator(g.dtype)

    def work(share: slice) -> None:
        for _, outputs, block in gradient_blocks([(g, a)], elements, share=share):
            if block.device.type == "cpu":
                total[outputs] += block.square_().sum(0, dtype=dtype)
            else:  # a GPU reads the block once and writes nothing back
                total[outputs] += torch.linalg.vector_norm(block, dim=0, dtype=dtype).square_()

    over_outputs(work, g)


def weighted_squares(
    g: torch.Tensor, a: torch.Tensor, weight: torch.Tensor | None, elements: int
) -> torch.Tensor:
    """(B,): for every example the sum of weight (D_out, D_in) x (sum_t g_t a_t^T)^2."""

    def work(share: slice) -> torch.Tensor:
        total = torch.zeros(len(g), dtype=accumulator(g.dtype), device=g.device)
        for rows, outputs, block in gradient_blocks([(g, a)], elements, share=share):
            block.square_()
            if weight is not None:
                block.mul_(weight[outputs])
            total[rows] += block.sum((1, 2), dtype=total.dtype)
        return total

    return sum(over_outputs(work, g))


def inner_products(
    queries: Gradients | LowRank | Tokens, pieces: list, elements: int
) -> torch.Tensor:
    """(Q, B): inner products of query gradients with sum_t g_t a_t^T of every example of the
    pieces.
    """
    first, a = pieces[0]
    if isinstance(queries, LowRank):
        rank = queries.left.shape[-1]
        d_in = a.shape[-1]
        d_out = first.shape[-1]
        if first.shape[1] * rank * (d_in + d_out) < d_in * d_out * (1 + rank / len(first)):
            return torch.cat([token_products(queries, g, a, elements) for g, a in pieces], dim=1)
    size = len(queries), sum(len(g) for g, _ in pieces)
    dtype = accumulator(first.dtype)

    def work(share: slice) -> torch.Tensor:
        total = torch.zeros(size, dtype=dtype, device=first.device)
        own = copy.copy(queries)  # with the memory of this thread's block
        current = None
        for rows, outputs, block in gradient_blocks(pieces, elements, len(queries), share):
            if outputs != current:
                current = outputs
                flat = own.block(outputs).reshape(len(queries), -1)
            block = block.view(len(block), -1)
            if dtype == block.dtype:
                total[:, rows].addmm_(flat, block.t())
            else:
                total[:, rows] += flat @ block.t()
        return total

    return sum(over_outputs(work, first))


def token_products(
    queries: LowRank, g: torch.Tensor, a: torch.Tensor, elements: int
) -> torch.Tensor:
    """`inner_products` for one piece, token by token: cheaper where tokens and rank are few."""
    total = torch.zeros(len(queries), len(g), dtype=accumulator(g.dtype), device=g.device)
    rows = max(1, elements // (len(queries) * queries.left.shape[-1] * g.shape[1]))
    for b in range(0, len(g), rows):
        gl = torch.einsum("bto,qok->qkbt", g[b : b + rows], queries.left)
        ra = torch.einsum("bti,qki->qkbt", a[b : b + rows], queries.right)
        total[:, b : b + rows] = (gl * ra).sum((1, 3), dtype=total.dtype)
    return total


def randomized_factors(
    matrices: torch.Tensor, rank: int, seed: str, bases: tuple = (None, None)
) -> tuple[torch.Tensor, torch.Tensor]:
    """(left (Q, M, R), right (Q, R, N)) whose product is close to the best of rank R to each of the
    matrices (Q, M, N).

    Randomized subspace iteration (Halko, Martinsson and Tropp 2011, arXiv:0909.4061, algorithms 4.4
    and 5.1). The test matrix is drawn on the CPU in float32 from the seed, one for all queries: the
    same on any device. bases: (N, N) and (M, M) in which the matrices are given; it is drawn
    outside of them, where eigenvectors' signs do not matter.
    """
    wide = matrices.shape[1] < matrices.shape[2]
    tall = matrices.mT if wide else matrices
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "little") >> 1
    draws = torch.Generator().manual_seed(number)
    test = torch.randn(tall.shape[2], rank, generator=draws).to(tall)
    if (given := bases[wide]) is not None:
        test = given.to(tall).t() @ test
    basis = torch.linalg.qr(tall @ test).Q
    for _ in range(2):  # as torch.svd_lowrank does
        basis = torch.linalg.qr(tall.mT @ basis).Q
        basis = torch.linalg.qr(tall @ basis).Q
    # No more columns than the rank, so that a decomposition would cut nothing off.
    rest = basis.mT @ tall
    return (rest.mT, basis.mT) if wide else (basis, rest)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Dtype of a running sum: never below float32 (a bfloat16 sum stalls after 256 equal terms)."""
    return torch.promote_types(dtype, torch.float32)
