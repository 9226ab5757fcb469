"""Random numbers that are a function of seed and row, and labels drawn from a model with them."""

import hashlib

import numpy as np
import torch
from scipy.special import ndtri


def uniform_hash(seed: int, stream: str, rows: np.ndarray) -> np.ndarray:
    """A number in (0, 1), float64, for every row: a function of seed, stream and row number alone.

    splitmix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195, figure 17) applied to the row
    number, offset by a hash of seed and stream.
    """
    offset = int.from_bytes(hashlib.sha256(f"{seed}/{stream}".encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):
        z = (rows.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(offset)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


@torch.no_grad()
def sample_labels(uniform: np.ndarray, logits: torch.Tensor) -> torch.Tensor:
    """Labels (B,) drawn from the model's own distribution, by inverting its distribution function at `uniform` (B,).

    logits: (B, C). For regression (C = 1) a Gaussian around the output with variance 1/2: the squared error is then
    the negative log-likelihood, up to a constant.
    """
    if logits.shape[-1] == 1:
        noise = torch.from_numpy(ndtri(uniform) * 0.5**0.5).to(logits.device)
        return logits.squeeze(-1).double() + noise
    cumulative = logits.double().softmax(-1).cumsum(-1)
    draws = torch.from_numpy(uniform).to(logits.device)[:, None]
    return (draws > cumulative[:, :-1]).sum(-1)
