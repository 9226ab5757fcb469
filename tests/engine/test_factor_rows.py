"""Factors come from the first rows, which is recorded, and is part of their fingerprint only where
it matters.
"""

import json

from running import QUICK, influence_of, scores_of

import analyze
from attribution.influence.settings import MAX_FACTOR_ROWS, Settings, make_factor_arguments


def test_fewer_factor_rows_change_factors_and_their_fingerprint_and_more_do_not(run_copy):
    def run(*extra: str):
        analyze.main([*QUICK, "--checkpoint_dir", str(run_copy), *extra])
        record = json.loads((run_copy / "demo/influence/factors/ekfac/factors.json").read_text())
        return scores_of(run_copy), record["factor_rows"], record["fingerprint"].get("factor rows")

    everything, rows, part = run()
    assert (rows, part) == (120, None)
    assert run("--max_factor_rows", "120")[1:] == (120, None) and run("--max_factor_rows", "5000")[
        1:
    ] == (120, None)
    fewer, rows, part = run("--max_factor_rows", "40", "--overwrite")
    assert (rows, part) == (40, 40) and not (fewer == everything).all()
    assert "factor rows" not in influence_of(run_copy).factor_parts


def test_the_default_is_kronfluences_own():
    from kronfluence.arguments import FactorArguments

    arguments, stock = make_factor_arguments(Settings()), FactorArguments()
    assert arguments.covariance_max_examples == stock.covariance_max_examples == MAX_FACTOR_ROWS
    assert arguments.lambda_max_examples == stock.lambda_max_examples == MAX_FACTOR_ROWS
