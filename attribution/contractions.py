"""Sums over examples of per-example gradients, formed in blocks that stay in cache.

The gradient of one example of a linear layer is `G = sum_t g_t a_t^T`, with a (T, D_in) the inputs of its
T tokens (a one appended for the bias) and g (T, D_out) the gradients of their outputs. Nothing here knows
kronfluence or a module. Symbols: B examples, Q queries, R low rank.
"""

import math

import torch


def gram(x: torch.Tensor) -> torch.Tensor:
    """x^T x (D, D) of x (n, D); for wide x only the blocks on and above the diagonal are multiplied."""
    width = x.shape[1]
    if width < 1024:
        return x.t() @ x
    step = -(-width // 4)
    out = torch.empty(width, width, dtype=x.dtype, device=x.device)
    for i in range(0, width, step):
        block = x[:, i : i + step].t() @ x[:, i:]
        out[i : i + step, i:] = block
        out[i:, i : i + step] = block.t()
    return out


def rotate(x: torch.Tensor, basis: torch.Tensor | None, bias: bool) -> torch.Tensor:
    """[x, 1] basis for x (B, T, D); without a basis just [x, 1], and no 1 where there is no bias."""
    if basis is None:
        return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], dim=-1) if bias else x
    flat = x.reshape(-1, x.shape[-1])
    flat = torch.addmm(basis[-1], flat, basis[:-1]) if bias else flat @ basis
    return flat.view(*x.shape[:-1], -1)


def rotation_pays(tokens: int, d_in: int, d_out: int) -> bool:
    """Whether rotating T tokens, T (D_in^2 + D_out^2), costs less than rotating G, D_in D_out (D_in + D_out)."""
    return tokens * (d_in**2 + d_out**2) < d_in * d_out * (d_in + d_out)


def gradient_blocks(g: torch.Tensor, a: torch.Tensor, elements: int):
    """Yields (rows, outputs, G) with G (rows, outputs, D_in) a block of sum_t g_t a_t^T.

    g (B, T, D_out), a (B, T, D_in). A block has about as many rows as outputs: few rows make thin products
    with the queries, few outputs thin products over tokens. Outputs change slowest, so that what belongs to an
    output is read once. The memory of G is reused: use it before the next block is asked for.
    """
    count, _, d_out = g.shape
    d_in = a.shape[-1]
    rows = min(count, max(1, math.isqrt(elements // d_in)))
    outputs = min(d_out, max(1, elements // (rows * d_in)))
    buffer = torch.empty(rows * outputs * d_in, dtype=g.dtype, device=g.device)
    left = g.transpose(1, 2)
    for o in range(0, d_out, outputs):
        o_end = min(o + outputs, d_out)
        for b in range(0, count, rows):
            b_end = min(b + rows, count)
            block = buffer[: (b_end - b) * (o_end - o) * d_in].view(b_end - b, o_end - o, d_in)
            yield slice(b, b_end), slice(o, o_end), torch.bmm(left[b:b_end, o:o_end], a[b:b_end], out=block)


def add_squares(total: torch.Tensor, g: torch.Tensor, a: torch.Tensor, elements: int) -> None:
    """total (D_out, D_in) += sum over examples of (sum_t g_t a_t^T)^2, the square entry by entry."""
    if g.shape[1] == 1:
        total += (g[:, 0].square().t() @ a[:, 0].square()).to(total.dtype)
        return
    for _, outputs, block in gradient_blocks(g, a, elements):
        total[outputs] += block.square_().sum(0, dtype=total.dtype)


def weighted_squares(g: torch.Tensor, a: torch.Tensor, weight: torch.Tensor | None, elements: int) -> torch.Tensor:
    """(B,): for every example the sum of weight (D_out, D_in) x (sum_t g_t a_t^T)^2."""
    total = torch.zeros(len(g), dtype=accumulator(g.dtype), device=g.device)
    for rows, outputs, block in gradient_blocks(g, a, elements):
        block.square_()
        if weight is not None:
            block.mul_(weight[outputs])
        total[rows] += block.sum((1, 2), dtype=total.dtype)
    return total


def inner_products(queries, g: torch.Tensor, a: torch.Tensor, elements: int) -> torch.Tensor:
    """(Q, B): inner products of query gradients with sum_t g_t a_t^T.

    queries: a tensor (Q, D_out, D_in), or [left (Q, D_out, R), right (Q, R, D_in)] of low rank.
    """
    low_rank = isinstance(queries, list)
    left, right = queries if low_rank else (queries, None)
    count, (batch, tokens, d_out), d_in = len(left), g.shape, a.shape[-1]
    total = torch.zeros(count, batch, dtype=accumulator(g.dtype), device=g.device)
    if low_rank and tokens * left.shape[-1] * (d_in + d_out) < d_in * d_out * (1 + left.shape[-1] / batch):
        for b in range(0, batch, rows := max(1, elements // (count * left.shape[-1] * tokens))):
            gl = torch.einsum("bto,qok->qkbt", g[b : b + rows], left)
            ra = torch.einsum("bti,qki->qkbt", a[b : b + rows], right)
            total[:, b : b + rows] = (gl * ra).sum((1, 3), dtype=total.dtype)
        return total
    expanded, current = None, None
    for rows, outputs, block in gradient_blocks(g, a, elements):
        if outputs != current:
            current = outputs
            expanded = left[:, outputs] @ right if low_rank else left[:, outputs]
        flat, block = expanded.reshape(count, -1), block.view(len(block), -1)
        if total.dtype == block.dtype:
            total[:, rows].addmm_(flat, block.t())
        else:
            total[:, rows] += flat @ block.t()
    return total


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type of a running sum: never below float32 (a bfloat16 sum stalls after 256 equal terms)."""
    return torch.promote_types(dtype, torch.float32)
