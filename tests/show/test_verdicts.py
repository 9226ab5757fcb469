"""A verdict says how many models are behind it."""

from attribution.show.verdicts import counted


def test_models_that_diverged_are_left_out_of_both_numbers_and_named():
    assert counted([1.0, 0.0, 1.0], "base seeds") == "2 of 3 base seeds"
    assert counted([1.0, None, 0.0], "retrains") == "1 of 2 retrains (1 diverged)"
    assert counted([None], "retrains") == "0 of 0 retrains (1 diverged)"
