"""Scores are named after their settings; a spec comes back from its JSON and its arguments."""

import itertools
import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import analyze
from attribution.cli import options_of
from attribution.data.tasks import TASKS
from attribution.files import Refused
from attribution.influence.settings import (
    KINDS,
    STRATEGIES,
    ScoreSpec,
    Settings,
    spec_record,
)
from attribution.influence.stored import KEY, ScoreFolder, StoredScores, remedy
from attribution.training.run import Run

CURVATURES = [one for one in STRATEGIES if one != "replay"]
BOTH = (False, True)
RANKS = (None, 1, 16)
DAMPINGS = (1e-8, 0.0, 1e-4, 0.01, 5.0, None)
MEMBERS = ({}, {"num_members": 5}, {"num_members": 2, "member_steps": 3, "member_share": 0.5})
RUN = Run(Path("checkpoints/demo"), "demo", TASKS["demo"], "", "", "", 1, [], {}, 2)


def settings_of(spec: ScoreSpec) -> Settings:
    """Settings that analyze.py makes of the arguments that the spec gives."""
    return options_of(Settings, analyze.parse_args(["--dataset_name", "demo", *spec.flags.split()]))


def some_specs():
    """Specs of every strategy, precision, implementation, rank and damping, some with members."""
    choices = itertools.product(CURVATURES, (None, "sampled", "exact"), BOTH, BOTH, RANKS, DAMPINGS)
    for place, chosen in enumerate(choices):
        strategy, fisher, half, stock, rank, damping = chosen
        if stock and fisher == "exact":  # refused
            continue
        yield ScoreSpec(
            factor_strategy=strategy,
            fisher=fisher,
            use_half_precision=half,
            stock=stock,
            query_gradient_rank=rank,
            damping_factor=damping,
            first_query=(0, 12)[place % 2],
            **MEMBERS[place % 3],
        )


@pytest.mark.parametrize("strategy", CURVATURES)
def test_a_spec_comes_back_from_its_arguments_and_from_its_json(strategy):
    for spec in some_specs():
        if spec.factor_strategy != strategy:
            continue
        settings = settings_of(spec)
        assert spec_record(settings) == spec_record(spec)
        assert (settings.name, settings.factors_name) == (spec.name, spec.factors_name)
        assert ScoreSpec(**json.loads(json.dumps(spec_record(settings)))) == spec


@given(st.integers(0, 9999), st.integers(-20, 5), st.integers(1, 10**6))
def test_a_damping_of_any_size_and_a_rank_come_back_from_the_arguments(digits, exponent, rank):
    spec = ScoreSpec(query_gradient_rank=rank, damping_factor=float(f"{digits}e{exponent}"))
    assert spec_record(settings_of(spec)) == spec_record(spec)
    assert settings_of(spec).name == spec.name


def test_different_arguments_have_different_names_except_those_that_identity_does_not_use():
    unused = {"damping_factor": 1e-8, "fisher": None}
    different = {
        replace(spec, **unused) if spec.factor_strategy == "identity" else spec
        for spec in some_specs()
    }
    assert len({spec.name for spec in different}) == len(different)
    assert {spec.name for spec in some_specs()} == {spec.name for spec in different}


def test_a_name_leaves_out_what_is_at_its_default():
    assert ScoreSpec().name == "ekfac" and ScoreSpec().flags == "--factor_strategy ekfac"
    everything = ScoreSpec(
        factor_strategy="kfac",
        use_half_precision=True,
        stock=True,
        query_gradient_rank=8,
        damping_factor=None,
    )
    assert everything.name == "kfac_half_stock_rank8_dampingheuristic"
    assert everything.factors_name == "kfac_half_stock"
    flags = set(everything.flags.split(" --"))
    assert flags == {
        "--factor_strategy kfac",
        "use_half_precision",
        "stock",
        "query_gradient_rank 8",
        "damping_factor heuristic",
    }


def test_names_have_members_and_the_first_query_at_their_end():
    five = ScoreSpec(num_members=5, damping_factor=0.1)
    assert five.name == "ekfac_damping0.1_members5"
    assert five.flags == "--factor_strategy ekfac --num_members 5 --damping_factor 0.1"
    assert five.of_one_checkpoint == ScoreSpec(damping_factor=0.1)
    mixed = ScoreSpec(num_members=2, member_steps=3, member_share=0.5, fisher="exact")
    assert mixed.name == "ekfac_exact_members2_steps3_share0.5"
    later = ScoreSpec(factor_strategy="identity", first_query=12)
    assert later.name == "identity_from12"
    assert later.flags == "--factor_strategy identity --first_query 12"


def test_a_refusal_names_a_command_only_where_one_can_help():
    spec = ScoreSpec(damping_factor=0.01)
    found = {spec.name: StoredScores(Path("scores.json"), spec, "stale")}
    assert remedy(RUN, spec.name, found, 50) == (
        "make them with: python analyze.py --dataset_name demo "
        "--max_queries 50 --factor_strategy ekfac --damping_factor 0.01 --overwrite"
    )
    assert remedy(RUN, "kfac", found) == (
        "make them with: python analyze.py --dataset_name demo --factor_strategy kfac"
    )
    assert remedy(RUN, "tfidf", found) == (
        "stored are ekfac_damping0.01; names begin with identity, diagonal, kfac, ekfac, replay, "
        "see analyze.py"
    )


OTHER = {
    "factor_strategy": "kfac",
    "fisher": "exact",
    "use_half_precision": True,
    "stock": True,
    "query_gradient_rank": 3,
    "damping_factor": 0.5,
    "seed": 7,
    "covariance_dtype": "mixed",
    "tf32": True,
    "max_factor_rows": 50,
}
WITHOUT_EFFECT = {
    "num_members": 2,  # members have a fingerprint of their own
    "member_steps": 2,
    "member_share": 0.5,
    "first_query": 3,  # the query rows have one
    "query_batch_size": 7,
    "train_batch_size": 7,
    "overwrite": True,
    "profile": True,
}


FIELDS = [field for field in fields(Settings) if field.metadata]


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_a_field_with_a_fingerprint_makes_its_kind_stale_and_those_after_it(field, tmp_path):
    first = KINDS.index(field.metadata["fingerprint"]) if field.metadata["fingerprint"] else 3
    other = replace(Settings(), **{field.name: (OTHER | WITHOUT_EFFECT)[field.name]})
    assert (field.name in OTHER) == (first < 3)
    for place, kind in enumerate(KINDS):
        before, after = ({kind: one.parts(kind, 100)} for one in (Settings(), other))
        ScoreFolder(tmp_path, Settings(), before).save(kind, {KEY: np.ones((1, 2), np.float32)}, {})
        stored = ScoreFolder(tmp_path, Settings(), after)
        if place < first:
            assert stored.load(kind) is not None
            continue
        with pytest.raises(
            Refused, match=f"other {field.name.replace('_', ' ')}( and .*)?; replace them"
        ):
            stored.load(kind)


@pytest.mark.parametrize(
    ("fisher", "stock", "labels"),
    [(None, False, "exact"), (None, True, "sampled"), ("sampled", False, "sampled")],
)
def test_one_output_has_exact_factors_unless_samples_are_asked_for(fisher, stock, labels):
    settings = Settings(fisher=fisher, stock=stock)
    for num_labels in (1, 2):
        assert replace(settings, num_labels=num_labels).parts("factors", 100)["fisher"] == labels
    assert replace(settings, num_labels=3).parts("factors", 100)["fisher"] == "sampled"
    assert settings.name == "ekfac" + "_sampled" * (fisher is not None) + "_stock" * stock


def test_settings_without_an_effect_on_the_numbers_have_no_part():
    plain = Settings(factor_strategy="identity")
    unused = replace(plain, damping_factor=0.5, fisher="exact", seed=7, covariance_dtype="mixed")
    assert unused.parts("pairwise", 100) == plain.parts("pairwise", 100)
    exact = Settings(fisher="exact")
    assert replace(exact, seed=7).parts("pairwise", 100) == exact.parts("pairwise", 100)
    low_rank = replace(exact, query_gradient_rank=2)  # its projections are drawn by the seed
    assert replace(low_rank, seed=7).parts("pairwise", 100) != low_rank.parts("pairwise", 100)
    assert replace(low_rank, seed=7).parts("self", 100) == low_rank.parts("self", 100)
    assert replace(plain, max_factor_rows=200).parts("self", 100) == plain.parts("self", 100)
