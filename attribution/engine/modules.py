"""Faster exact influence scores: kronfluence's trackers, rewritten to stay in the eigenbasis.

    model = prepare_model(model, task)       # instead of kronfluence.analyzer.prepare_model
    analyzer = ...                           # any kronfluence Analyzer, with its usual arguments

kronfluence forms the gradient `G` (D_out x D_in) of every example and module, writes it to memory,
and rotates it. Here the tokens are rotated first (`G = sum_t delta_t a_t^T`, so Q_out^T G Q_in
needs only the rotated delta and a), gradients are formed in blocks that stay in cache, and queries
may stay rotated, because inner products do not change under rotation: then a pass keeps their
tokens, not their gradients.

Symbols: B examples of a batch, T tokens, D_in and D_out features of a linear layer (D_in counts the
bias), Q queries, N training rows, R low rank. All results equal kronfluence's up to rounding; its
file formats are kept. Formulas: EKFAC, George et al. 2018 (arXiv:1806.03884), equations 8 to 12;
influence functions with it, Grosse et al. 2023 (arXiv:2308.03296), equation 17.
"""

import importlib.metadata

import kronfluence.analyzer
import torch
from kronfluence.module.linear import TrackedLinear
from kronfluence.module.tracked_module import ModuleMode, TrackedModule
from kronfluence.utils import constants as names
from torch import nn

from attribution.engine.contractions import accumulator, rotate, rotation_pays, widened
from attribution.engine.tape import Stream
from attribution.engine.trackers import (
    EigenCovarianceTracker,
    EigenLambdaTracker,
    EigenPairwiseTracker,
    EigenPreconditionTracker,
    EigenSelfScoreTracker,
    Shared,
)
from attribution.files import Refused

KNOWN_VERSIONS = ("1.0.1",)
EIGENVALUES = names.ACTIVATION_EIGENVALUES_NAME, names.GRADIENT_EIGENVALUES_NAME
CACHE_ELEMENTS = {"cpu": 2**21, "cuda": 2**27}  # size of a block of per-example gradients


class EigenLinear(TrackedLinear):
    """kronfluence's linear module with the trackers of `trackers.py`; see `prepare_model`."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.shared = Shared()
        self.bases: tuple = (None, None)  # (input basis, output basis), or (None, None)
        self.keys: tuple = (None, None)  # of the bases, see `key_of`
        self.projection_seed = 0  # of the draws behind low-rank query gradients
        # Dtype of covariance products, with sums in float64; None: the dtype of the sums.
        self.covariance_products: torch.dtype | None = None
        self.pass_queries = 0  # queries of a pass; 0: as many as kronfluence's arguments say
        # Whether inputs, and output gradients, of the scored rows lie in the span of those that the
        # covariances are made of.
        self.spanned = (False, False)
        # Pairwise scores: training tokens are rotated, or else query gradients rotated back.
        self.rotate_rows = True
        self._trackers |= {
            ModuleMode.COVARIANCE: EigenCovarianceTracker(self),
            ModuleMode.LAMBDA: EigenLambdaTracker(self),
            ModuleMode.PRECONDITION_GRADIENT: EigenPreconditionTracker(self),
            ModuleMode.PAIRWISE_SCORE: EigenPairwiseTracker(self),
            ModuleMode.SELF_SCORE: EigenSelfScoreTracker(self),
        }

    def prepare_storage(self, device: torch.device) -> None:
        """Inverts the damped eigenvalues as kronfluence does, and puts all on the device.

        Directions in which no scored row has a gradient (see `spanned`) get the weight 0. That
        changes no score: the rows' components there are zero but for rounding, which one over the
        damping would blow up.
        """
        inputs, outputs = (
            unreached(values.to(device)) if spanned and values is not None else None
            for values, spanned in zip(
                map(self.storage.get, EIGENVALUES), self.spanned, strict=True
            )
        )
        super().prepare_storage(device=device)
        inverse = self.storage[names.LAMBDA_MATRIX_NAME]
        if inverse is not None:
            # (D_out, D_in), without the leading dimension that kfac's has
            inverse = inverse.to(device).view(inverse.shape[-2:])
            if inputs is not None:
                inverse[:, inputs] = 0
            if outputs is not None:
                inverse[outputs] = 0
            self.storage[names.LAMBDA_MATRIX_NAME] = inverse
        if self.storage[names.ACTIVATION_EIGENVECTORS_NAME] is None:
            self.drop_bases()
        else:
            self.set_bases(self.score_args.precondition_dtype, device)
            self.storage[names.ACTIVATION_EIGENVECTORS_NAME] = None
            self.storage[names.GRADIENT_EIGENVECTORS_NAME] = None

    def set_bases(self, dtype: torch.dtype, device: torch.device) -> None:
        """Sets the bases to the eigenvectors, `widened`, one tensor for modules with equal ones.

        In float32 or above: see `tokens`.
        """
        self.bases = tuple(
            self.shared.intern(
                widened(self.storage[name].to(dtype=accumulator(dtype), device=device))
            )
            for name in (names.ACTIVATION_EIGENVECTORS_NAME, names.GRADIENT_EIGENVECTORS_NAME)
        )
        self.keys = tuple(map(key_of, self.bases))

    def drop_bases(self) -> None:
        """Removes the bases: with identity and diagonal, gradients are not rotated."""
        self.bases = self.keys = (None, None)

    def square_bases(self) -> tuple:
        """Bases without the zeros that widen them: (D_in, D_in) and (D_out, D_out), or Nones."""
        return tuple(None if basis is None else basis[:, : len(basis)] for basis in self.bases)

    def block_elements(self, tensor: torch.Tensor) -> int:
        """Numbers in a block of per-example gradients on this tensor's device."""
        return CACHE_ELEMENTS[tensor.device.type]

    def tokens(
        self,
        entry: Stream,
        gradient: Stream,
        dtype,
        rotated: bool = True,
        cheapest: bool = False,
        wide: bool = False,
        scaled: bool = True,
    ):
        """(g (B, T, D_out), a (B, T, D_in), whether rotated) of this batch; a has ones for a bias.

        cheapest: rotate only if that costs less than rotating the gradient that they form. wide: on
        a GPU, a keeps the zeros of its basis (see `widened`), because products of that width are
        far faster in bfloat16. scaled: see `Shared.scaled`. Positions after the last one with a
        gradient are left out: in BERT's last layer only [CLS] has one.

        Tokens are rounded to dtype after the rotation, never before: rounding noise of a token is
        spread over all directions, and would drown those of small eigenvalue, which count as much.
        """
        bias = self.bias is not None
        d_out = self.weight.shape[0]
        d_in = self.weight.shape[1] + bias
        a_basis, g_basis = self.bases
        a_key, g_key = self.keys
        if not gradient.alive:
            used = (with_tokens(gradient.tensor) != 0).any(2).any(0).nonzero()
            gradient.alive = int(used[-1]) + 1 if len(used) else 1
        alive = gradient.alive
        if cheapest:
            rotated = rotation_pays(alive, d_in, d_out)
        if not rotated:
            if cheapest and a_basis is not None:
                dtype = a_basis.dtype  # the gradient that they form is rotated
            a_basis = g_basis = a_key = g_key = None

        def inputs() -> torch.Tensor:
            x = with_tokens(entry.tensor.detach())
            x = x if entry.users > 1 else x[:, :alive]
            x = x.to(dtype if a_basis is None else a_basis.dtype)
            return rotate(x, a_basis, bias).to(dtype)

        def gradients() -> torch.Tensor:
            x = with_tokens(gradient.tensor)[:, :alive]
            return rotate(x.to(dtype if g_basis is None else g_basis.dtype), g_basis, False)

        g = gradient.rotated((g_key, dtype), gradients)
        g = (self.shared.scaled(g) if scaled else g).to(dtype)
        a = entry.rotated((a_key, bias, dtype), inputs)[:, :alive]
        if not wide or a.device.type != "cuda":
            a = a[..., :d_in]
        return g[..., :d_out], a, rotated

    def full_gradients(self, g: torch.Tensor, a: torch.Tensor):
        """Yields blocks (rows, D_out, D_in) of gradients of unrotated tokens, in the bases."""
        a_basis, g_basis = self.square_bases()
        rows = max(1, 4 * self.block_elements(g) // (g.shape[-1] * a.shape[-1]))
        for b in range(0, len(g), rows):
            block = torch.bmm(g[b : b + rows].transpose(1, 2), a[b : b + rows])
            if a_basis is not None:
                block = g_basis.t().to(block.dtype) @ (block @ a_basis.to(block.dtype))
            yield block


def with_tokens(x: torch.Tensor) -> torch.Tensor:
    """Tokens (B, T, D) of a module's tensor; (B, D) has one token a row, as in BERT's pooler."""
    return x if x.dim() > 2 else x[:, None]


def key_of(basis: torch.Tensor) -> tuple:
    """A basis in the keys of rotations, which outlive it. A sum would depend on the threads."""
    return tuple(basis.shape), basis.dtype, basis.diagonal().cpu().numpy().tobytes()


def unreached(eigenvalues: torch.Tensor) -> torch.Tensor:
    """(D,) bool: eigenvalues (D,) of a covariance that are zero but for rounding in float64.

    The bound is that of a numerical rank: D times the rounding of the largest. Covariances in lower
    precision have no eigenvalues as small, so that nothing is left out there.
    """
    size = eigenvalues.abs()
    return size <= len(size) * torch.finfo(torch.float64).eps * size.max()


# --- entry ----------------------------------------------------------------------------------------


def check_version() -> None:
    """Raises Refused for a kronfluence whose inner classes this file may not fit."""
    version = importlib.metadata.version("kronfluence")
    if version not in KNOWN_VERSIONS:
        raise Refused(
            f"kronfluence {version} is not a version that the fast path knows "
            f"({', '.join(KNOWN_VERSIONS)}); install a known one, or pass --stock"
        )


def prepare_model(model: nn.Module, task) -> nn.Module:
    """kronfluence's prepare_model with EigenLinear for linear modules."""
    linear = TrackedModule.SUPPORTED_MODULES[nn.Linear]
    TrackedModule.SUPPORTED_MODULES[nn.Linear] = EigenLinear
    try:
        model = kronfluence.analyzer.prepare_model(model=model, task=task)
    finally:
        TrackedModule.SUPPORTED_MODULES[nn.Linear] = linear
    shared = Shared()
    for module in tracked(model):
        module.shared = shared
    return model


def tracked(model) -> list:
    """Modules of the model that kronfluence tracks: EigenLinear after `prepare_model`."""
    return [module for module in model.modules() if isinstance(module, TrackedModule)]


# --- support -------------------------------------------------------------------------------------

# kronfluence attributes to a row what a module read at the row's place in the batch, once a pass. A
# weight that is used twice (ALBERT's layers, DeBERTa's shared keys), or an input that has no rows
# (relative positions), would give wrong scores without a word.
