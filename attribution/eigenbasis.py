"""Faster exact influence scores: kronfluence's trackers, rewritten to stay in the eigenbasis.

    model = prepare_model(model, task)       # instead of kronfluence.analyzer.prepare_model
    analyzer = ...                           # any kronfluence Analyzer, with its usual arguments

kronfluence forms the gradient `G` (D_out x D_in) of every example and module, writes it to memory, and
rotates it. Here the tokens are rotated first (`G = sum_t delta_t a_t^T`, so Q_out^T G Q_in needs only
the rotated delta and a), the gradient is formed in blocks that stay in cache, and the preconditioned
query gradients may stay rotated, because inner products do not change under rotation.

Symbols: B examples of a batch, T tokens, D_in and D_out features of a linear layer (D_in counts the
bias), Q queries, N training rows, R low rank. All results equal kronfluence's up to rounding; its file
formats are kept. Formulas: EKFAC, George et al. 2018 (arXiv:1806.03884), equations 8 to 12; influence
functions with it, Grosse et al. 2023 (arXiv:2308.03296), equation 17.
"""

import contextlib
import importlib.metadata

import kronfluence.analyzer
import torch
from kronfluence.factor.config import FactorConfig
from kronfluence.module.linear import TrackedLinear
from kronfluence.module.tracked_module import ModuleMode, TrackedModule
from kronfluence.module.tracker.base import BaseTracker
from kronfluence.module.tracker.factor import CovarianceTracker, LambdaTracker
from kronfluence.module.tracker.pairwise_score import PairwiseScoreTracker
from kronfluence.module.tracker.precondition import PreconditionTracker
from kronfluence.module.tracker.self_score import SelfScoreTracker
from kronfluence.utils import constants as names
from torch import nn

from attribution.contractions import (
    accumulator,
    add_squares,
    gram,
    inner_products,
    rotate,
    rotation_pays,
    weighted_squares,
)
from attribution.sharing import Shared, SharedInput
from attribution.store import Refused

KNOWN_VERSIONS = ("1.0.1",)
CACHE_ELEMENTS = {"cpu": 2**20, "cuda": 2**27}  # size of a block of per-example gradients
ROTATE = {"auto": None, "rows": True, "queries": False}  # which side of a pairwise score is rotated


# --- trackers ------------------------------------------------------------------------------------------


class HookTracker(BaseTracker):
    """Calls update(input, g) in the backward pass, with the module's input and its output's gradient."""

    started = False

    def register_hooks(self) -> None:
        @torch.no_grad()
        def forward_hook(module: nn.Module, inputs: tuple[torch.Tensor], outputs: torch.Tensor) -> None:
            if self.cached_hooks:
                raise RuntimeError(f"the module {self.module.name} runs twice in one pass; pass --stock")
            entry = self.module.shared.enter(inputs[0])

            @torch.no_grad()
            def backward_hook(gradient: torch.Tensor) -> None:
                self.cached_hooks.pop().remove()
                self.update(entry, gradient.detach())
                self.module.shared.leave(entry)

            self.cached_hooks.append(outputs.register_hook(backward_hook))

        self.started = False
        self.module.shared.clear()
        self.registered_hooks.append(self.module.register_forward_hook(forward_hook))

    def update(self, entry: SharedInput, gradient: torch.Tensor) -> None:
        raise NotImplementedError


class EigenCovarianceTracker(HookTracker, CovarianceTracker):
    """Input and output-gradient covariances; modules that read one tensor share one input covariance."""

    def update(self, entry: SharedInput, gradient: torch.Tensor) -> None:
        module, args = self.module, self.module.factor_args
        leader = entry.leaders.setdefault(module.bias is None, module)  # the first to come: the last in the model
        if leader is module:
            self._add_inputs(entry.tensor.detach().to(args.activation_covariance_dtype))
        if not self.started:
            self.started, self.leader = True, leader
        if self.leader is not leader:
            raise RuntimeError(f"the input of {module.name} is shared in some batches only; pass --stock")
        for name in (names.ACTIVATION_COVARIANCE_MATRIX_NAME, names.NUM_ACTIVATION_COVARIANCE_PROCESSED):
            module.storage[name] = leader.storage[name]
        # As in kronfluence, gradients count all positions; those of padding are zero.
        flat, count = module.get_flattened_gradient(gradient.to(args.gradient_covariance_dtype))
        self._add(names.GRADIENT_COVARIANCE_MATRIX_NAME, gram(flat))
        self._add(names.NUM_GRADIENT_COVARIANCE_PROCESSED, torch.as_tensor([int(count)]))

    def _add_inputs(self, inputs: torch.Tensor) -> None:
        mask, flat = self.module.attention_mask, inputs.reshape(-1, inputs.shape[-1])
        if mask is not None and mask.numel() == len(flat):
            flat = flat[mask.flatten().nonzero().squeeze(-1)]
        count = torch.as_tensor([len(flat)])
        matrix = gram(flat)
        if self.module.bias is not None:
            sums = flat.sum(0, dtype=accumulator(flat.dtype))
            bordered = sums.new_empty(len(sums) + 1, len(sums) + 1)
            bordered[:-1, :-1], bordered[:-1, -1], bordered[-1, :-1], bordered[-1, -1] = matrix, sums, sums, len(flat)
            matrix = bordered
        self._add(names.ACTIVATION_COVARIANCE_MATRIX_NAME, matrix)
        self._add(names.NUM_ACTIVATION_COVARIANCE_PROCESSED, count)

    def _add(self, name: str, term: torch.Tensor) -> None:
        """Adds the term to a running sum in float32 or above; the first term of a phase starts it."""
        term = term if term.dtype == torch.int64 else term.to(accumulator(term.dtype))
        total = self.module.storage[name]
        self.module.storage[name] = term if total is None else total.add_(term)


class EigenLambdaTracker(HookTracker, LambdaTracker):
    """Mean squared gradient in the eigenbasis, EKFAC's corrected eigenvalues; without a basis, the diagonal."""

    def update(self, entry: SharedInput, gradient: torch.Tensor) -> None:
        module, args = self.module, self.module.factor_args
        if not self.started:
            self.started = True
            if FactorConfig.CONFIGS[args.strategy].requires_eigendecomposition_for_lambda:
                module.set_bases(args.lambda_dtype, gradient.device)
            else:
                module.drop_bases()
            size = module.weight.shape[0], module.weight.shape[1] + (module.bias is not None)
            dtype = accumulator(args.lambda_dtype)
            module.storage[names.LAMBDA_MATRIX_NAME] = torch.zeros(size, dtype=dtype, device=gradient.device)
            module.storage[names.NUM_LAMBDA_PROCESSED] = torch.zeros(1, dtype=torch.int64)
        total = module.storage[names.LAMBDA_MATRIX_NAME]
        module.storage[names.NUM_LAMBDA_PROCESSED] += len(gradient)
        g, a, rotated = module.tokens(entry, gradient, args.per_sample_gradient_dtype, cheapest=True)
        if rotated:
            add_squares(total, g, a, module.block_elements(g))
            return
        for gradients in module.full_gradients(g, a):
            total += gradients.square_().sum(0, dtype=total.dtype)


class EigenPreconditionTracker(HookTracker, PreconditionTracker):
    """Query gradients times the inverse of the damped curvature, left in the basis of the training side.

    Of full rank they are written where they stay, into one tensor for all queries of a pass.
    """

    held: torch.Tensor | None = None  # (queries of a pass, D_out, D_in)

    def update(self, entry: SharedInput, gradient: torch.Tensor) -> None:
        module, args = self.module, self.module.score_args
        g, a, rotated = module.tokens(entry, gradient, args.per_sample_gradient_dtype, cheapest=True)
        rank, inverse = args.query_gradient_low_rank, module.storage[names.LAMBDA_MATRIX_NAME]
        low_rank = rank is not None and rank < min(g.shape[-1], a.shape[-1])
        a_basis, g_basis = (None, None) if module.rotate_rows else module.bases
        room = None if low_rank else self._room(len(g), g.shape[-1], a.shape[-1])
        in_place = rotated and a_basis is None and room is not None and room.dtype == g.dtype == args.precondition_dtype
        if rotated:
            gradients = torch.bmm(g.transpose(1, 2), a, out=room if in_place else None)
        else:
            gradients = torch.cat(list(module.full_gradients(g, a)))
        gradients = gradients.to(args.precondition_dtype)  # in place: is of this type already
        if inverse is not None:
            gradients.mul_(inverse)
        if low_rank:
            self._process_preconditioned_gradient(gradients)
            left, right = module.storage[names.PRECONDITIONED_GRADIENT_NAME]
            if a_basis is not None:  # the two factors are rotated back, not the gradient
                left, right = g_basis.to(left.dtype) @ left, right @ a_basis.t().to(right.dtype)
            kept = module.storage[names.ACCUMULATED_PRECONDITIONED_GRADIENT_NAME] or []
            module.storage[names.ACCUMULATED_PRECONDITIONED_GRADIENT_NAME] = [*kept, (left, right)]
        elif not in_place:
            room.copy_(gradients if a_basis is None else g_basis @ (gradients.to(g_basis.dtype) @ a_basis.t()))

    def _room(self, count: int, d_out: int, d_in: int) -> torch.Tensor:
        """Where these queries' gradients go, behind those of earlier batches of the pass."""
        storage, args = self.module.storage, self.module.score_args
        kept = storage[names.ACCUMULATED_PRECONDITIONED_GRADIENT_NAME]
        start = 0 if kept is None else len(kept)
        if self.held is None:
            size, device = count * args.query_gradient_accumulation_steps, self.module.weight.device
            self.held = torch.empty(size, d_out, d_in, dtype=args.score_dtype, device=device)
        storage[names.ACCUMULATED_PRECONDITIONED_GRADIENT_NAME] = self.held[: start + count]
        return self.held[start : start + count]

    def accumulate_iterations(self) -> None:
        """Nothing is left to do: update() put the gradients where they stay."""
        self.module.storage[names.PRECONDITIONED_GRADIENT_NAME] = None

    def release_memory(self) -> None:
        super().release_memory()
        self.held = None


class EigenPairwiseTracker(HookTracker, PairwiseScoreTracker):
    """Inner products of all held query gradients with each training gradient."""

    def update(self, entry: SharedInput, gradient: torch.Tensor) -> None:
        module = self.module
        if not self.started:
            self.started = True
            self._join_queries()
        g, a, _ = module.tokens(entry, gradient, module.score_args.score_dtype, module.rotate_rows)
        queries = module.storage[names.ACCUMULATED_PRECONDITIONED_GRADIENT_NAME]
        scores = inner_products(queries, g, a, module.block_elements(g))
        module.storage[names.PAIRWISE_SCORE_MATRIX_NAME] = scores

    def _join_queries(self) -> None:
        """Of low rank: list of query batches -> one [left, right]; only this module's is held twice."""
        kept = self.module.storage[names.ACCUMULATED_PRECONDITIONED_GRADIENT_NAME]
        if isinstance(kept, list):
            joined = [torch.cat(parts) for parts in zip(*kept, strict=True)]
            self.module.storage[names.ACCUMULATED_PRECONDITIONED_GRADIENT_NAME] = joined


class EigenSelfScoreTracker(HookTracker, SelfScoreTracker):
    """Each training gradient's inner product with itself, preconditioned."""

    def update(self, entry: SharedInput, gradient: torch.Tensor) -> None:
        module = self.module
        g, a, _ = module.tokens(entry, gradient, module.score_args.per_sample_gradient_dtype, True)
        weight = module.storage[names.LAMBDA_MATRIX_NAME]
        weight = None if weight is None else weight.view(weight.shape[-2:])
        scores = weighted_squares(g, a, weight, module.block_elements(g))
        module.storage[names.SELF_SCORE_VECTOR_NAME] = scores


class EigenLinear(TrackedLinear):
    """kronfluence's linear module with the trackers of this file. Made only inside `registered`."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.shared = Shared()
        self.bases: tuple = (None, None)  # (input basis, output basis), or (None, None)
        self.rotate_rows = True  # pairwise scores: training tokens are rotated, query gradients stay rotated
        self._trackers |= {
            ModuleMode.COVARIANCE: EigenCovarianceTracker(self),
            ModuleMode.LAMBDA: EigenLambdaTracker(self),
            ModuleMode.PRECONDITION_GRADIENT: EigenPreconditionTracker(self),
            ModuleMode.PAIRWISE_SCORE: EigenPairwiseTracker(self),
            ModuleMode.SELF_SCORE: EigenSelfScoreTracker(self),
        }

    def prepare_storage(self, device: torch.device) -> None:
        """Inverts the damped eigenvalues as kronfluence does, then keeps them and the bases on the device."""
        super().prepare_storage(device=device)
        inverse = self.storage[names.LAMBDA_MATRIX_NAME]
        if inverse is not None:
            self.storage[names.LAMBDA_MATRIX_NAME] = inverse.to(device)
        if self.storage[names.ACTIVATION_EIGENVECTORS_NAME] is None:
            self.drop_bases()
        else:
            self.set_bases(self.score_args.precondition_dtype, device)

    def set_bases(self, dtype: torch.dtype, device: torch.device) -> None:
        """Takes the eigenvectors of input and output covariance, shared with modules that have the same.

        In float32 or above: see `tokens`.
        """
        self.bases = tuple(
            self.shared.intern(self.storage[name].to(dtype=accumulator(dtype), device=device))
            for name in (names.ACTIVATION_EIGENVECTORS_NAME, names.GRADIENT_EIGENVECTORS_NAME)
        )

    def drop_bases(self) -> None:
        """Gradients are not rotated: identity and diagonal have no basis."""
        self.bases = (None, None)

    def block_elements(self, tensor: torch.Tensor) -> int:
        """Numbers in a block of per-example gradients on this tensor's device."""
        return CACHE_ELEMENTS[tensor.device.type]

    def tokens(self, entry: SharedInput, gradient: torch.Tensor, dtype, rotated: bool = True, cheapest: bool = False):
        """(g (B, T, D_out), a (B, T, D_in), whether rotated) of this batch, with a column of ones for a bias.

        cheapest: rotate only where that costs less than rotating the gradient that they form. Positions
        after the last one with a gradient are left out: in BERT's last layer only [CLS] has one.

        Rounded to dtype after the rotation, never before: rounding noise of a token is spread over all
        directions, and would drown those of small eigenvalue, which count as much as the others.
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
        if key in entry.rotated:
            return g, entry.rotated[key][:, :alive], rotated
        inputs = inputs if entry.users > 1 else inputs[:, :alive]
        a = self._rounded(inputs, a_basis, bias, dtype)
        entry.rotated[key] = a
        return g, a[:, :alive], rotated

    @staticmethod
    def _rounded(x: torch.Tensor, basis: torch.Tensor | None, bias: bool, dtype: torch.dtype) -> torch.Tensor:
        """[x, 1] in the basis, computed in the basis's precision, then of this dtype."""
        x = x.to(dtype if basis is None else basis.dtype)
        return rotate(x, basis, bias).to(dtype)

    def _alive(self, gradient: torch.Tensor) -> int:
        """Number of leading positions outside of which the gradient (B, T, D_out) is zero; at least 1."""
        used = (gradient != 0).any(2).any(0).nonzero()
        return int(used[-1]) + 1 if len(used) else 1

    def full_gradients(self, g: torch.Tensor, a: torch.Tensor):
        """Yields blocks (rows, D_out, D_in) of the gradients of unrotated tokens, rotated where there is a basis."""
        a_basis, g_basis = self.bases
        rows = max(1, 4 * self.block_elements(g) // (g.shape[-1] * a.shape[-1]))
        for b in range(0, len(g), rows):
            block = torch.bmm(g[b : b + rows].transpose(1, 2), a[b : b + rows])
            if a_basis is not None:
                block = g_basis.t().to(block.dtype) @ (block @ a_basis.to(block.dtype))
            yield block


# --- entry ---------------------------------------------------------------------------------------------


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
            f"kronfluence {version} is not a version that the fast path knows ({', '.join(KNOWN_VERSIONS)}); "
            "install a known one, or pass --stock"
        )


def prepare_model(model: nn.Module, task) -> nn.Module:
    """kronfluence's prepare_model with EigenLinear for every linear module; others stay kronfluence's."""
    check_version()
    with registered():
        model = kronfluence.analyzer.prepare_model(model=model, task=task)
    shared = Shared()
    for module in model.modules():
        if isinstance(module, EigenLinear):
            module.shared = shared
    return model


def choose_rotation(model: nn.Module, tokens: int, passes: int, num_queries: int, low_rank: bool, force: str) -> None:
    """Says for every module whether pairwise scores rotate training tokens or rotate the queries back.

    The first costs passes N T (D_in^2 + D_out^2), the second Q D_in D_out (D_in + D_out). tokens: of all
    training rows. force: a key of ROTATE.
    """
    for module in model.modules():
        if isinstance(module, EigenLinear):
            d_out, d_in = module.weight.shape
            rows = passes * tokens * (d_in**2 + d_out**2)
            queries = num_queries * d_in * d_out * (d_in + d_out)
            forced = ROTATE[force]
            module.rotate_rows = (rows < queries and not low_rank) if forced is None else forced
