"""The benchmark counts what was multiplied, and its report says what was measured."""

import importlib.util

import pytest
import torch
from running import ROOT


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def inner():
    return load("inner")


def test_every_matrix_product_is_counted_once_with_its_multiply_adds(inner):
    x, weight, out = torch.randn(2, 5, 4), torch.randn(3, 4, requires_grad=True), torch.zeros(3, 6)
    with inner.ProductLog() as log:
        # 2 x 5 x 4 x 3, and as many for the weight's gradient.
        torch.nn.functional.linear(x, weight, torch.zeros(3)).sum().backward()
        torch.bmm(x, x.transpose(1, 2), out=torch.empty(2, 5, 5))  # 2 x 5 x 4 x 5
        out.addmm_(torch.ones(3, 2), torch.ones(2, 6))  # 3 x 2 x 6
    total = sum(inner.multiply_adds(*layouts) * count for layouts, count in log.counts.items())
    assert total == 120 + 120 + 200 + 36


def test_attention_counts_as_its_products(inner):
    q = torch.randn(2, 3, 5, 4, requires_grad=True)
    with inner.ProductLog() as log:
        torch.nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()
    assert sum(inner.multiply_adds(*layouts) * count for layouts, count in log.counts.items()) == 7 * 2 * 3 * 5 * 5 * 4


def test_a_product_of_repeated_rows_can_be_timed(inner):
    left = torch.ones(1, 4).expand(5, 4)
    layouts = [inner.ProductLog._layout(x) for x in (left, torch.ones(3, 4).t())]
    assert 0 < inner.seconds_alone(*layouts) < 1


def test_the_estimate_for_a_gpu_reproduces_what_was_published_for_stock():
    gpu = load("gpu")
    stock, ours = gpu.stock(), gpu.ours(4)
    assert all(sum(ours[phase].values()) - ours[phase].get("moved", 0) < stock[phase] for phase in stock)
    # The stock phases are limited by products, so that one rate fits all three within 40 %: the counts are plausible.
    rates = [stock[phase] / gpu.PUBLISHED["float32"][phase] for phase in stock]
    assert max(rates) < 1.4 * min(rates)
    assert gpu.estimate()["float32"]["all"] < sum(gpu.PUBLISHED["float32"].values())


def test_the_report_shows_medians_ratios_and_agreement():
    speed = load("speed")
    runs = [{"seconds": dict.fromkeys((*speed.PHASES, "all"), seconds)} for seconds in (1.0, 9.0, 3.0)]
    assert speed.middle(runs)["lambda"] == 3.0
    seconds = {"stock": {"all": 30.0}, "ours": {"all": 4.0}}
    spearman = {"stock": {"ours": 0.999991, "stock again": 0.998}, "stock again": {"ours": 0.9999}}
    found = {"rows": 512, "queries": 64, "seconds": seconds, "times faster": {"all": 7.5}, "spearman": spearman}
    found["peak"] = {"stock": 2**31, "ours": 2**30}
    text = speed.report({"cases": {"sst2": found}})
    assert "| mean Spearman with stock | - | 0.999991 | - |" in text
    assert "of stock again, with stock | 0.998000 | - |" in text
    assert "| all | 30.0 s | 4.0 s | 7.5 |" in text and "| 2.00 GiB | 1.00 GiB | 2.0 |" in text
