"""Random numbers that are a function of a seed and a row."""

import hashlib

import numpy as np


def uniform_hash(seed: int, stream: str, rows: np.ndarray) -> np.ndarray:
    """Uniform numbers in (0, 1), float64, one a row: functions of seed, stream and row number.

    splitmix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195, figure 17) applied to the
    row number, offset by a hash of seed and stream.
    """
    offset = int.from_bytes(hashlib.sha256(f"{seed}/{stream}".encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):
        z = (rows.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z += np.uint64(offset)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
