"""A random number is a function of seed, stream and row."""

import numpy as np

from attribution.draws import uniform_hash


def test_hashed_numbers_are_uniform_and_depend_on_seed_stream_and_row():
    rows = np.arange(20_000)
    u = uniform_hash(0, "lambda", rows)
    assert (u > 0).all() and (u < 1).all()
    assert abs(u.mean() - 0.5) < 0.01 and abs(u.var() - 1 / 12) < 0.003
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.03
    for other in (uniform_hash(1, "lambda", rows), uniform_hash(0, "covariance", rows)):
        assert abs(np.corrcoef(u, other)[0, 1]) < 0.03
    assert np.array_equal(uniform_hash(0, "lambda", rows[::-1]), u[::-1])
