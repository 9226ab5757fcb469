"""The benchmark counts what was multiplied, measures what it says, and takes medians."""

import json

import pytest
import torch
from running import ROOT

from attribution.cli import run_script
from attribution.files import write_json
from lab import (
    additive,
    ceiling,
    estimates,
    gpu,
    inner,
    members,
    scale,
    speed,
    wrong_labels,
)


def test_every_matrix_product_is_counted_once_with_its_multiply_adds():
    x, weight, out = torch.randn(2, 5, 4), torch.randn(3, 4, requires_grad=True), torch.zeros(3, 6)
    with inner.ProductLog() as log:
        # 2 x 5 x 4 x 3, and as many for the weight's gradient.
        torch.nn.functional.linear(x, weight, torch.zeros(3)).sum().backward()
        torch.bmm(x, x.transpose(1, 2), out=torch.empty(2, 5, 5))  # 2 x 5 x 4 x 5
        out.addmm_(torch.ones(3, 2), torch.ones(2, 6))  # 3 x 2 x 6
    total = sum(inner.multiply_adds(*layouts) * count for layouts, count in log.counts.items())
    assert total == 120 + 120 + 200 + 36


def test_attention_counts_as_its_products():
    q = torch.randn(2, 3, 5, 4, requires_grad=True)
    with inner.ProductLog() as log:
        torch.nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()
    assert (
        sum(inner.multiply_adds(*layouts) * count for layouts, count in log.counts.items())
        == 7 * 2 * 3 * 5 * 5 * 4
    )


def test_a_product_of_repeated_rows_can_be_timed():
    left = torch.ones(1, 4).expand(5, 4)
    layouts = [inner.ProductLog._layout(x) for x in (left, torch.ones(3, 4).t())]
    assert 0 < inner.seconds_alone(*layouts) < 1


@pytest.mark.parametrize(
    ("what", "number"),
    [("training", "rows_per_second"), ("products", "multiply_adds"), ("profile", "seconds")],
)
def test_every_measurement_stores_its_number_and_leaves_the_run_as_it_was(
    trained, tmp_path, what, number
):
    before = sorted(trained.rglob("*"))
    place = ["--dataset_name", "demo", "--checkpoint_dir", str(trained), "--max_queries", "3"]
    inner.main([what, *place, "--output", str(tmp_path / "measured.json")])
    assert json.loads((tmp_path / "measured.json").read_text())[number] > 0
    assert sorted(trained.rglob("*")) == before


def test_the_estimate_for_a_gpu_reproduces_what_was_published_for_stock():
    stock, ours = estimates.stock(), estimates.ours(4)
    assert all(
        sum(ours[phase].values()) - ours[phase].get("moved", 0) < stock[phase] for phase in stock
    )
    # The stock phases are limited by products, so that one rate fits all three within 40 %: the
    # counts are plausible.
    rates = [stock[phase] / estimates.PUBLISHED["float32"][phase] for phase in stock]
    assert max(rates) < 1.4 * min(rates)
    assert estimates.estimate()["float32"]["all"] < sum(estimates.PUBLISHED["float32"].values())


def test_of_several_runs_the_median_counts():
    runs = [
        {"seconds": dict.fromkeys((*speed.PHASES, "all"), seconds)} for seconds in (1.0, 9.0, 3.0)
    ]
    assert speed.middle(runs)["lambda"] == 3.0


@pytest.mark.parametrize("script", [ceiling, gpu, scale, speed])
def test_a_place_that_cannot_be_written_is_named_before_the_work(script, tmp_path, capsys):
    (tmp_path / "a file").write_text("")
    place = ["--results_dir", str(tmp_path / "a file/results")]
    assert run_script(script.main, place) == 2
    assert "nothing can be written to" in capsys.readouterr().err


@pytest.mark.parametrize("script", [additive, ceiling, gpu, members, scale, speed, wrong_labels])
def test_a_trial_writes_nothing_into_the_projects_results(script, monkeypatch):
    given = [] if script in (ceiling, gpu, scale, speed) else ["--dataset_name", "demo"]
    folder = ROOT / script.parse_args(given).results_dir
    assert not folder.is_relative_to(ROOT / "results")


def test_a_measurement_inside_one_process_is_kept(tmp_path, monkeypatch):
    bench = speed.Bench(speed.parse_args(["--work_dir", str(tmp_path)]))
    calls = []

    def child(*command):
        calls.append(command)
        write_json(command[command.index("--output") + 1], {"rows_per_second": 3.0})

    monkeypatch.setattr(bench, "child", child)
    monkeypatch.setattr(bench, "checkpoint", lambda case: tmp_path)
    for _ in range(2):
        found = bench.inner("training", "training", speed.CASES["demo"])
        assert found == {"rows_per_second": 3.0}
    assert len(calls) == 1
