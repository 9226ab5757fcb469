"""Faster exact influence scores: kronfluence's trackers, rewritten to stay in the eigenbasis.

    model = prepare_model(model, task)       # instead of kronfluence.analyzer.prepare_model
    analyzer = ...                           # any kronfluence Analyzer, with its usual arguments

kronfluence forms the gradient `G` (D_out x D_in) of every example and module, writes it to memory,
and rotates it. Here the tokens are rotated first (`G = sum_t delta_t a_t^T`, so Q_out^T G Q_in
needs only the rotated delta and a), gradients are formed in blocks that stay in cache, and queries
may stay rotated, because inner products do not change under rotation: then their tokens are held,
not their gradients.

Symbols: B examples of a batch, T tokens, D_in and D_out features of a linear layer (D_in counts the
bias), Q queries, N training rows, R low rank. All results equal kronfluence's up to rounding; its
file formats are kept. Formulas: EKFAC, George et al. 2018 (arXiv:1806.03884), equations 8 to 12;
influence functions with it, Grosse et al. 2023 (arXiv:2308.03296), equation 17.
"""

import contextlib
import importlib.metadata

import kronfluence.analyzer
import torch
from kronfluence.module.linear import TrackedLinear
from kronfluence.module.tracked_module import ModuleMode, TrackedModule
from kronfluence.utils import constants as names
from torch import nn

from attribution.engine.contractions import accumulator, rotate, rotation_pays, widened
from attribution.engine.trackers import (
    EigenCovarianceTracker,
    EigenLambdaTracker,
    EigenPairwiseTracker,
    EigenPreconditionTracker,
    EigenSelfScoreTracker,
    Shared,
    SharedInput,
)
from attribution.files import Refused

KNOWN_VERSIONS = ("1.0.1",)
CACHE_ELEMENTS = {"cpu": 2**21, "cuda": 2**27}  # size of a block of per-example gradients


class EigenLinear(TrackedLinear):
    """kronfluence's linear module with the trackers of `trackers.py`. Made only inside
    `registered`.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.shared = Shared()
        self.bases: tuple = (None, None)  # (input basis, output basis), or (None, None)
        self.projection_seed = 0  # of the draws behind low-rank query gradients
        self.covariance_products: torch.dtype | None = (
            None  # None: the type of the sums; else these are in float64
        )
        self.pass_queries = 0  # queries of a pass; 0: as many as kronfluence's arguments say
        # pairwise scores: training tokens are rotated, or else query gradients rotated back
        self.rotate_rows = True
        self._trackers |= {
            ModuleMode.COVARIANCE: EigenCovarianceTracker(self),
            ModuleMode.LAMBDA: EigenLambdaTracker(self),
            ModuleMode.PRECONDITION_GRADIENT: EigenPreconditionTracker(self),
            ModuleMode.PAIRWISE_SCORE: EigenPairwiseTracker(self),
            ModuleMode.SELF_SCORE: EigenSelfScoreTracker(self),
        }

    def prepare_storage(self, device: torch.device) -> None:
        """Inverts the damped eigenvalues as kronfluence does, then keeps them and the bases on the
        device.
        """
        super().prepare_storage(device=device)
        inverse = self.storage[names.LAMBDA_MATRIX_NAME]
        if inverse is not None:
            self.storage[names.LAMBDA_MATRIX_NAME] = inverse.to(device)
        if self.storage[names.ACTIVATION_EIGENVECTORS_NAME] is None:
            self.drop_bases()
        else:
            self.set_bases(self.score_args.precondition_dtype, device)
            self.storage[names.ACTIVATION_EIGENVECTORS_NAME] = self.storage[
                names.GRADIENT_EIGENVECTORS_NAME
            ] = None

    def set_bases(self, dtype: torch.dtype, device: torch.device) -> None:
        """Takes the eigenvectors of input and output covariance, `widened`, shared with modules
        that have the same.

        In float32 or above: see `tokens`.
        """
        self.bases = tuple(
            self.shared.intern(
                widened(self.storage[name].to(dtype=accumulator(dtype), device=device))
            )
            for name in (names.ACTIVATION_EIGENVECTORS_NAME, names.GRADIENT_EIGENVECTORS_NAME)
        )

    def drop_bases(self) -> None:
        """Gradients are not rotated: identity and diagonal have no basis."""
        self.bases = (None, None)

    def square_bases(self) -> tuple:
        """The bases without the zeros that widen them: (D_in, D_in) and (D_out, D_out), or (None,
        None).
        """
        return tuple(None if basis is None else basis[:, : len(basis)] for basis in self.bases)

    def block_elements(self, tensor: torch.Tensor) -> int:
        """Numbers in a block of per-example gradients on this tensor's device."""
        return CACHE_ELEMENTS[tensor.device.type]

    def tokens(
        self,
        entry: SharedInput,
        gradient: torch.Tensor,
        dtype,
        rotated: bool = True,
        cheapest: bool = False,
        wide: bool = False,
    ):
        """(g (B, T, D_out), a (B, T, D_in), whether rotated) of this batch, with a column of ones
        for a bias.

        cheapest: rotate only where that costs less than rotating the gradient that they form. wide:
        on a GPU, a keeps the zeros of its basis (see `widened`), because products of that width are
        far faster in bfloat16. Positions after the last one with a gradient are left out: in BERT's
        last layer only [CLS] has one.

        Rounded to dtype after the rotation, never before: rounding noise of a token is spread over
        all directions, and would drown those of small eigenvalue, which count as much as the
        others.
        """
        inputs, bias = entry.tensor.detach(), self.bias is not None
        if gradient.dim() == 2:
            gradient, inputs = gradient[:, None], inputs[:, None]
        alive = self._alive(gradient)
        a_basis, g_basis = self.bases
        if cheapest:
            rotated = rotation_pays(alive, inputs.shape[-1] + bias, gradient.shape[-1])
        if not rotated:
            if cheapest and a_basis is not None:
                dtype = a_basis.dtype  # the gradient that they form is rotated
            a_basis = g_basis = None
        g = self._rounded(gradient[:, :alive], g_basis, False, dtype)
        key = (id(a_basis), bias, dtype)
        if key not in entry.rotated:
            inputs = inputs if entry.users > 1 else inputs[:, :alive]
            entry.rotated[key] = self._rounded(inputs, a_basis, bias, dtype)
        a = entry.rotated[key][:, :alive]
        d_in = inputs.shape[-1] + bias
        return (
            g[..., : gradient.shape[-1]],
            a if wide and a.device.type == "cuda" else a[..., :d_in],
            rotated,
        )

    @staticmethod
    def _rounded(
        x: torch.Tensor, basis: torch.Tensor | None, bias: bool, dtype: torch.dtype
    ) -> torch.Tensor:
        """[x, 1] in the basis, computed in the basis's precision, then of this dtype."""
        x = x.to(dtype if basis is None else basis.dtype)
        return rotate(x, basis, bias).to(dtype)

    def _alive(self, gradient: torch.Tensor) -> int:
        """Number of leading positions outside of which the gradient (B, T, D_out) is zero; at least
        1.
        """
        used = (gradient != 0).any(2).any(0).nonzero()
        return int(used[-1]) + 1 if len(used) else 1

    def full_gradients(self, g: torch.Tensor, a: torch.Tensor):
        """Yields blocks (rows, D_out, D_in) of the gradients of unrotated tokens, rotated where
        there is a basis.
        """
        a_basis, g_basis = self.square_bases()
        rows = max(1, 4 * self.block_elements(g) // (g.shape[-1] * a.shape[-1]))
        for b in range(0, len(g), rows):
            block = torch.bmm(g[b : b + rows].transpose(1, 2), a[b : b + rows])
            if a_basis is not None:
                block = g_basis.t().to(block.dtype) @ (block @ a_basis.to(block.dtype))
            yield block


# --- entry ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def registered():
    """Inside, kronfluence wraps `nn.Linear` in EigenLinear; afterwards as it did before."""
    before = TrackedModule.SUPPORTED_MODULES[nn.Linear]
    TrackedModule.SUPPORTED_MODULES[nn.Linear] = EigenLinear
    try:
        yield
    finally:
        TrackedModule.SUPPORTED_MODULES[nn.Linear] = before


def check_version() -> None:
    """Raises Refused where kronfluence is not a version whose inner classes this file knows."""
    version = importlib.metadata.version("kronfluence")
    if version not in KNOWN_VERSIONS:
        raise Refused(
            f"kronfluence {version} is not a version that the fast path knows "
            f"({', '.join(KNOWN_VERSIONS)}); install a known one, or pass --stock"
        )


def prepare_model(model: nn.Module, task) -> nn.Module:
    """kronfluence's prepare_model with EigenLinear for every linear module; others stay
    kronfluence's.
    """
    check_version()
    with registered():
        model = kronfluence.analyzer.prepare_model(model=model, task=task)
    shared = Shared()
    for module in model.modules():
        if isinstance(module, EigenLinear):
            module.shared = shared
    return model


def tracked(model) -> list[TrackedModule]:
    """The modules that kronfluence sees."""
    return [module for module in model.modules() if isinstance(module, TrackedModule)]
