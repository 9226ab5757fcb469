"""Factors are fitted on the first rows; how many is recorded, and part of their fingerprint."""

import json

from running import QUICK, influence_of, scores_of

import analyze
from attribution.influence.checkpoint import make_factor_arguments
from attribution.influence.settings import MAX_FACTOR_ROWS, Settings


def test_fewer_factor_rows_change_factors_and_their_fingerprint_and_more_do_not(run_copy):
    def run(*extra: str):
        analyze.main([*QUICK, "--checkpoint_dir", str(run_copy), *extra])
        record = json.loads((run_copy / "demo/influence/factors/ekfac/factors.json").read_text())
        return scores_of(run_copy), record["factor_rows"], record["fingerprint"]["max factor rows"]

    everything, rows, part = run()
    assert (rows, part) == (120, 120)
    for most in ("120", "5000"):  # the same factors, so that nothing is fitted again
        assert run("--max_factor_rows", most)[1:] == (120, 120)
    fewer, rows, part = run("--max_factor_rows", "40", "--overwrite")
    assert (rows, part) == (40, 40) and not (fewer == everything).all()
    assert influence_of(run_copy).analyses[0].factor_parts["max factor rows"] == 120


def test_the_default_is_kronfluences_own():
    from kronfluence.arguments import FactorArguments

    arguments = make_factor_arguments(Settings())
    stock = FactorArguments()
    assert arguments.covariance_max_examples == stock.covariance_max_examples == MAX_FACTOR_ROWS
    assert arguments.lambda_max_examples == stock.lambda_max_examples == MAX_FACTOR_ROWS
