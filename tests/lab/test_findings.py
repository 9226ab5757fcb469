"""Rankings that look for wrong labels are measured by AUROC and recall."""

import numpy as np
import pytest
import torch

from attribution.files import Refused
from lab import findings
from pipeline import compute_loss, compute_margin

WRONG = np.arange(100) % 10 == 0


def test_a_perfect_ranking_finds_all_and_a_reversed_one_none():
    best = findings.found(WRONG.astype(float), WRONG, 50)
    assert (
        best["auroc"]["value"] == 1
        and best["recall at 5%"]["value"] == 0.5
        and best["recall at 10%"]["value"] == 1
    )
    worst = findings.found(-WRONG.astype(float), WRONG, 50)
    assert worst["auroc"]["value"] == 0 and worst["recall at 20%"]["value"] == 0


def test_an_interval_covers_chance_for_a_ranking_that_knows_nothing():
    ranking = np.random.default_rng(0).random(100)
    low, high = findings.found(ranking, WRONG, 200)["auroc"]["interval"]
    assert low < 0.5 < high


def test_the_loss_of_a_margin_is_the_cross_entropy():
    logits, labels = (
        torch.randn(7, 3, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 1, 2, 0, 1, 2, 0]),
    )
    losses = findings.loss_of_margin(compute_margin(logits, labels).numpy())
    for i in range(7):
        assert losses[i] == pytest.approx(
            compute_loss(logits[i : i + 1], labels[i : i + 1]).item(), rel=1e-5
        )


def test_ties_are_no_better_than_chance_whatever_the_order_of_the_file():
    first = np.arange(100) < 10
    found = findings.found(np.ones(100), first, 50)
    assert found["auroc"]["value"] == 0.5 and found["recall at 10%"]["value"] == pytest.approx(0.1)
    top = findings.within_top(np.array([3.0, 1.0, 1.0, 2.0]), 3)
    assert top.tolist() == [1, 0.5, 0.5, 1] and findings.within_top(np.ones(3), 0).sum() == 0
    with pytest.raises(Refused, match="not finite"):
        findings.found(np.array([1.0, np.nan]), np.array([True, False]))
