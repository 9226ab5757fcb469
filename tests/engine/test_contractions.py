"""Blockwise sums over gradients equal the plain formula, and running sums lose nothing in half
precision.
"""

import pytest
import torch

from attribution.engine import contractions
from attribution.engine.contractions import (
    Gradients,
    LowRank,
    Tokens,
    add_squares,
    gradient_blocks,
    gram,
    inner_products,
    rotate,
    weighted_squares,
    widened,
)
from attribution.engine.trackers import EigenCovarianceTracker


@pytest.fixture
def tokens():
    torch.manual_seed(0)
    return torch.randn(5, 3, 7, dtype=torch.float64), torch.randn(5, 3, 6, dtype=torch.float64)


@pytest.fixture(params=[1, 2, 11])
def threads(request):
    """Runs a test in so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param
    torch.set_num_threads(before)


def gradients(g, a):
    return torch.einsum("bto,bti->boi", g, a)


@pytest.mark.parametrize("elements", [1, 50, 10_000])
def test_sums_of_squares_equal_the_plain_formula_for_every_block_size(tokens, elements, threads):
    g, a = tokens
    full, weight = gradients(g, a), torch.rand(7, 6, dtype=torch.float64)
    total = torch.zeros(7, 6, dtype=torch.float64)
    add_squares(total, g, a, elements)
    assert torch.allclose(total, full.square().sum(0))
    single = torch.zeros(7, 6, dtype=torch.float64)
    add_squares(single, g[:, :1], a[:, :1], elements)
    assert torch.allclose(single, gradients(g[:, :1], a[:, :1]).square().sum(0))
    assert torch.allclose(
        weighted_squares(g, a, weight, elements), (full.square() * weight).sum((1, 2))
    )
    assert torch.allclose(weighted_squares(g, a, None, elements), full.square().sum((1, 2)))


@pytest.mark.parametrize("elements", [1, 50, 10_000])
@pytest.mark.parametrize("kind", ["gradients", "tokens", "weighted tokens", "rank 1", "rank 5"])
def test_inner_products_equal_the_plain_formula_whatever_is_held_of_the_queries(
    tokens, elements, kind, threads
):
    """Training rows in two pieces of unlike length, and a few more of them in a second call."""
    first, second = (
        tokens,
        (torch.randn(2, 4, 7, dtype=torch.float64), torch.randn(2, 4, 6, dtype=torch.float64)),
    )
    held = [tuple(torch.randn(3, t, d, dtype=torch.float64) for d in (7, 6)) for t in (2, 5)]
    dense = torch.cat([gradients(*piece) for piece in held])
    weight = torch.rand(7, 6, dtype=torch.float64)
    queries = Gradients(dense)
    if "tokens" in kind:
        queries = Tokens(held, weight if "weighted" in kind else None, torch.float64)
        dense = dense * weight if "weighted" in kind else dense
    elif "rank" in kind:
        rank = int(kind[-1])
        left, right = (
            torch.randn(6, 7, rank, dtype=torch.float64),
            torch.randn(6, rank, 6, dtype=torch.float64),
        )
        queries, dense = LowRank(left, right), left @ right
    for pieces in ([first, second], [second]):
        expected = torch.einsum(
            "qoi,boi->qb", dense, torch.cat([gradients(*piece) for piece in pieces])
        )
        assert torch.allclose(inner_products(queries, pieces, elements), expected)


def test_blocks_of_rows_and_of_queries_hold_their_number_of_elements(tokens):
    for elements, queries in ((60, 1), (60, 5), (200, 30)):
        for rows, outputs, block in gradient_blocks([tokens], elements, queries):
            assert block.shape == (rows.stop - rows.start, outputs.stop - outputs.start, 6)
            assert block.numel() <= elements and (
                queries * block[0].numel() <= elements or len(block[0]) == 1
            )


def test_wide_gram_matrices_equal_the_product():
    for width in (383, 384, 500):
        x = torch.randn(40, width, dtype=torch.float64)
        assert torch.allclose(gram(x), x.t() @ x)


def test_rotation_appends_a_one_for_the_bias():
    x, basis = torch.randn(2, 3, 4), torch.randn(5, 5)
    expected = torch.cat([x, torch.ones(2, 3, 1)], -1) @ basis
    found = rotate(x, widened(basis), True)
    assert torch.allclose(found[..., :5], expected, atol=1e-5)
    assert found.shape[-1] == 16 and not found[..., 5:].any()
    assert torch.equal(rotate(x, None, True)[..., -1], torch.ones(2, 3))
    assert widened(basis).shape == (5, 16)
    assert torch.allclose(rotate(x, widened(basis[:4, :4]), False)[..., :4], x @ basis[:4, :4])


def test_ten_thousand_bfloat16_terms_lose_nothing():
    """A bfloat16 sum of ones stalls at 256; ours are float32 over rows, batches and modules."""
    ones = torch.ones(10_000, 1, 1, dtype=torch.bfloat16)
    total = torch.zeros(1, 1)
    for row in ones.split(1):
        add_squares(total, row, row, 8)
    assert total.item() == 10_000
    assert inner_products(Gradients(ones[:1]), [(ones[:1], ones[:1])], 8).dtype == torch.float32
    assert weighted_squares(ones[:2], ones[:2], None, 8).dtype == torch.float32
    tracker = object.__new__(EigenCovarianceTracker)
    module = {"storage": {"sum": None}, "covariance_products": None}
    tracker.module = type("Module", (), module)()
    for term in ones[:, 0].split(1):
        tracker._add("sum", term)
    assert tracker.module.storage["sum"].item() == 10_000


def test_rotating_tokens_pays_below_the_stated_number_of_them():
    assert contractions.rotation_pays(767, 768, 768) and not contractions.rotation_pays(
        768, 768, 768
    )
