"""Labels drawn from a model, and the mean over all draws. Symbols: B examples, C classes."""

import numpy as np
import torch


@torch.no_grad()
def sample_labels(uniform: np.ndarray, logits: torch.Tensor) -> torch.Tensor:
    """Labels (B,) drawn from the model's distribution, by inverting its distribution function
    at `uniform` (B,).

    logits: (B, C). For regression (C = 1) a Gaussian around the output with variance 1/2: the
    squared error is then the negative log-likelihood, up to a constant.
    """
    if logits.shape[-1] == 1:
        from scipy.special import ndtri  # for regressions only

        noise = torch.from_numpy(ndtri(uniform) * 0.5**0.5).to(logits.device)
        return logits.squeeze(-1).double() + noise
    cumulative = logits.double().softmax(-1).cumsum(-1)
    draws = torch.from_numpy(uniform).to(logits.device)[:, None]
    return (draws > cumulative[:, :-1]).sum(-1)


def fisher_column(logits: torch.Tensor, column: int) -> torch.Tensor:
    """Quantity (B,) whose gradients are one column of a root of the Fisher matrix; float64.

    The loss of a label drawn from the model has the gradient J^T r by the model's parameters, J
    being that of the logits (B, C) and r of covariance diag(p) - p p^T = L L^T. So the mean of g
    g^T over labels, for any part g of the gradient, is the sum of the same over the C - 1 columns l
    of L, with the gradients of l^T logits. L is Cholesky's, in closed form (Tanabe and Sagae 1992,
    J. R. Statist. Soc. B 54, 211): with q_j the sum of p_j, p_j+1, ..., it is sqrt(p_j q_j+1 / q_j)
    on the diagonal and -p_i sqrt(p_j / (q_j q_j+1)) below. Of two classes that leaves sqrt(p_0 p_1)
    (z_0 - z_1); of a regression, with its variance of 1/2 (see `sample_labels`), sqrt(2) z.
    """
    logits = logits.double()
    if logits.shape[-1] == 1:
        return 2**0.5 * logits.squeeze(-1)
    with torch.no_grad():
        p = logits.log_softmax(-1)
        q = p.flip(-1).logcumsumexp(-1).flip(-1)
        here, left, after = p[:, column], q[:, column], q[:, column + 1]
        root = -(p + ((here - left - after) / 2)[:, None]).exp()
        root[:, column] = ((here + after - left) / 2).exp()
        root[:, :column] = 0
    return (root * logits).sum(-1)
