"""A name says which arguments store scores under it, and other arguments store them under another
name.
"""

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import analyze
from attribution.influence.analysis import Settings
from attribution.influence.names import (
    DAMPING,
    STRATEGIES,
    factors_name,
    flags_of,
    remedy,
    scores_name,
)

HALVES, STOCKS, RANKS, DAMPINGS = (
    (False, True),
    (False, True),
    (None, 1, 16),
    (DAMPING, 0.0, 1e-4, 0.01, 5.0, None),
)


def settings_of(name: str) -> Settings:
    """What analyze.py makes of the arguments that a name gives back."""
    return analyze.settings_of(
        analyze.parse_args(["--dataset_name", "demo", *flags_of(name).split()])
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("stock", STOCKS)
def test_the_arguments_that_a_name_gives_back_store_under_that_name(strategy, half, stock):
    for rank, damping in itertools.product(RANKS, DAMPINGS):
        name = scores_name(strategy, half, stock, rank, damping)
        settings = settings_of(name)
        assert settings.scores == name and settings.factors == factors_name(strategy, half, stock)
        assert (settings.strategy, settings.half, settings.stock, settings.rank) == (
            strategy,
            half,
            stock,
            rank,
        )
        assert settings.damping == (DAMPING if strategy == "identity" else damping)


@given(st.integers(0, 9999), st.integers(-20, 5), st.integers(1, 10**6))
def test_a_damping_of_any_size_and_a_rank_come_back_from_the_name(digits, exponent, rank):
    damping = float(f"{digits}e{exponent}")
    settings = settings_of(name := scores_name("ekfac", rank=rank, damping=damping))
    assert (settings.scores, settings.rank, settings.damping) == (name, rank, damping)


def test_different_arguments_have_different_names_except_the_damping_of_identity():
    names = [
        scores_name(*given)
        for given in itertools.product(STRATEGIES, HALVES, STOCKS, RANKS, DAMPINGS)
    ]
    damped = len(STRATEGIES) - 1
    assert len(set(names)) == len(HALVES) * len(STOCKS) * len(RANKS) * (damped * len(DAMPINGS) + 1)


def test_a_name_leaves_out_what_is_at_its_default():
    assert scores_name("ekfac") == "ekfac" and flags_of("ekfac") == "--factor_strategy ekfac"
    everything = "kfac_half_stock_rank8_dampingheuristic"
    assert scores_name("kfac", True, True, 8, None) == everything
    assert flags_of(everything) == (
        "--factor_strategy kfac --use_half_precision --stock --query_gradient_rank 8 "
        "--damping_factor heuristic"
    )


def test_a_refusal_names_a_command_only_where_one_can_help():
    command = remedy("ekfac_damping0.01", "demo", Path("checkpoints"), 50, True)
    assert command == (
        "make them with: python analyze.py --dataset_name demo --checkpoint_dir checkpoints "
        "--max_queries 50 --factor_strategy ekfac --damping_factor 0.01 --overwrite"
    )
    assert remedy("tfidf", "demo", Path("checkpoints")) == (
        "scores have names that begin with identity, diagonal, kfac, ekfac"
    )
    assert remedy("ekfac_corrected", "demo", Path("checkpoints"), 50) == (
        "make them with: python evaluate_lds.py --dataset_name demo --checkpoint_dir checkpoints "
        "--max_queries 50 --correct ekfac"
    )
