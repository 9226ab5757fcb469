"""Trackers: a module's share in covariances, lambda matrices and scores, from its backward pass.

They replace kronfluence's and stay in the eigenbasis. kronfluence calls a tracker's methods by
name: `register_hooks` when a phase begins, `accumulate_iterations` after a batch, `release_memory`
at the end. Each tracker here takes a module's input and the gradient of its output in `update`.
Symbols: B examples of a batch, T tokens, D_in and D_out features of a module, Q queries, R rank.
"""

import contextlib

import torch
from kronfluence.factor.config import FactorConfig
from kronfluence.module.tracker.base import BaseTracker
from kronfluence.module.tracker.factor import CovarianceTracker, LambdaTracker
from kronfluence.module.tracker.pairwise_score import PairwiseScoreTracker
from kronfluence.module.tracker.precondition import PreconditionTracker
from kronfluence.module.tracker.self_score import SelfScoreTracker
from kronfluence.utils import constants as names
from torch import nn

from attribution.engine.contractions import (
    Gradients,
    LowRank,
    Tokens,
    accumulator,
    add_squares,
    gram,
    inner_products,
    randomized_factors,
    weighted_squares,
)
from attribution.engine.tape import Pass, Stream, Tape


class Shared:
    """Inputs of the current pass and equal bases, shared by the modules of a model.

    Query, key and value of an attention layer read the same input.
    """

    def __init__(self) -> None:
        self.inputs: dict[int, Stream] = {}
        # (B,): factors of the rows' output gradients in the current pass; None: 1. See `tape`.
        self.scale: torch.Tensor | None = None
        self.tape: Tape | None = None  # where one output is enough for all gradients of a row
        self.bases: list[torch.Tensor] = []
        # Whether the current batch ends a group of batches; see EigenPairwiseTracker.
        self.complete = True
        # Whether the batch passes for the first time; see `fisher.fisher_column`.
        self.first = True

    def enter(self, tensor: torch.Tensor) -> Stream:
        """The entry of this input tensor; one more module will use it."""
        entry = self.inputs.setdefault(id(tensor), Stream(tensor))
        entry.users += 1
        return entry

    def take(self, module, entry: Stream, gradient: torch.Tensor) -> None:
        """Updates the module's tracker in the backward pass, and records the step if asked."""
        step = module, entry, Stream(gradient)
        self.update(*step)
        if self.tape is not None and self.tape.recording is not None:
            self.tape.recording.steps.append(step)

    def update(self, module, entry: Stream, gradient: Stream) -> None:
        """Updates the module's tracker of the current phase; after the last module that reads it,
        an entry is no input any more.
        """
        module._trackers[module.current_mode].update(entry, gradient)
        gradient.keep_one()
        entry.users -= 1
        if entry.users == 0:
            self.inputs = {key: other for key, other in self.inputs.items() if other is not entry}
            entry.keep_one()

    def scaled(self, gradient: torch.Tensor) -> torch.Tensor:
        """Output gradient (B, ...) of the loss, from that of the output."""
        if self.scale is None:
            return gradient
        return gradient * self.scale.to(gradient.dtype).view(-1, *[1] * (gradient.dim() - 1))

    def play(self, one: Pass) -> None:
        """Updates the trackers with a pass of the tape, as its backward pass would."""
        for _, entry, _ in one.steps:
            entry.users += 1
        for step in one.steps:
            self.update(*step)

    def intern(self, basis: torch.Tensor) -> torch.Tensor:
        """The first basis with these values, so that equal bases are one object."""
        for known in self.bases:
            if known.dtype == basis.dtype and torch.equal(known, basis):
                return known
        self.bases.append(basis)
        return basis

    def clear(self) -> None:
        """Removes all inputs and bases, before the next phase."""
        self.inputs.clear()
        self.bases.clear()


@contextlib.contextmanager
def full_precision():
    """Context without TF32, whatever --tf32 says: the inverse of a covariance blows up the error of
    its small eigenvalues.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class HookTracker(BaseTracker):
    """Tracker whose `update` is called in the backward pass, with input and output gradient."""

    started = False

    def register_hooks(self) -> None:
        """Hooks into the module, without anything of an earlier phase."""

        @torch.no_grad()
        def forward_hook(module, inputs, outputs) -> None:
            entry = self.module.shared.enter(inputs[0])

            @torch.no_grad()
            def backward_hook(gradient: torch.Tensor) -> None:
                self.cached_hooks.pop().remove()
                self.module.shared.take(self.module, entry, gradient.detach())

            self.cached_hooks.append(outputs.register_hook(backward_hook))

        self.started = False
        self.module.shared.clear()
        self.forget()
        self.registered_hooks.append(self.module.register_forward_hook(forward_hook))

    def release_memory(self) -> None:
        """Frees the memory of a phase; kronfluence calls it at the end."""
        super().release_memory()
        self.forget()

    def forget(self) -> None:
        """Frees batches that wait for their group to be complete."""

    def update(self, entry: Stream, gradient: Stream) -> None:
        """Takes a batch in its backward pass, into `module.storage`.

        entry: the module's input (rows, tokens, D_in), shared with modules that read the same
        tensor. gradient: of the summed loss (or minus the summed margin) by the module's output
        (rows, tokens, D_out), before it is `Shared.scaled`.
        """
        raise NotImplementedError


class EigenCovarianceTracker(HookTracker, CovarianceTracker):
    """Input and output-gradient covariances; modules that read one tensor share one input
    covariance.

    Padding and positions whose gradient is zero are left out of the products, and batches wait for
    their group as in `EigenPairwiseTracker`. If a batch passes several times, it is counted, and
    its inputs are added, the first time.
    """

    leader: nn.Module  # whose input covariance this module takes

    def forget(self) -> None:
        """Frees inputs and gradients of an incomplete group."""
        self.inputs: list[torch.Tensor] = []
        self.gradients: list[torch.Tensor] = []

    def update(self, entry: Stream, gradient: Stream) -> None:
        """Adds a group's products of inputs and of gradients to the two covariances, and counts
        tokens.
        """
        module = self.module
        # The first module to come is the last one in the model.
        leader = entry.leaders.setdefault(module.bias is None, module)
        first = module.shared.first
        if leader is module and first:
            self._add_inputs(entry.tensor.detach())
        if not self.started:
            self.started = True
            self.leader = leader
        if self.leader is not leader:
            raise RuntimeError(
                f"the input of {module.name} is shared in some batches only; pass --stock"
            )
        for name in (
            names.ACTIVATION_COVARIANCE_MATRIX_NAME,
            names.NUM_ACTIVATION_COVARIANCE_PROCESSED,
        ):
            module.storage[name] = leader.storage[name]
        scaled = module.shared.scaled(gradient.tensor)
        flat, count = module.get_flattened_gradient(scaled)  # counted as in kronfluence
        if first:
            self._add(names.NUM_GRADIENT_COVARIANCE_PROCESSED, torch.as_tensor([int(count)]))
        self.gradients.append(flat[(flat != 0).any(1)])
        if module.shared.complete:
            flat = torch.cat(self.gradients)
            self.gradients = []
            dtype = module.factor_args.gradient_covariance_dtype
            with full_precision():
                matrix = gram(flat.to(module.covariance_products or dtype))
            self._add(names.GRADIENT_COVARIANCE_MATRIX_NAME, matrix)

    def _add_inputs(self, inputs: torch.Tensor) -> None:
        module = self.module
        flat = inputs.reshape(-1, inputs.shape[-1])
        mask = module.attention_mask
        if mask is not None and mask.numel() == len(flat):
            flat = flat[mask.flatten() != 0]
        self._add(names.NUM_ACTIVATION_COVARIANCE_PROCESSED, torch.as_tensor([len(flat)]))
        self.inputs.append(flat)
        if not module.shared.complete:
            return
        dtype = module.covariance_products or module.factor_args.activation_covariance_dtype
        flat = torch.cat(self.inputs).to(dtype)
        self.inputs = []
        with full_precision():
            matrix = gram(flat)
        if module.bias is not None:
            sums = flat.sum(0, dtype=accumulator(flat.dtype))
            bordered = sums.new_empty(len(sums) + 1, len(sums) + 1)
            bordered[:-1, :-1] = matrix
            bordered[:-1, -1] = sums
            bordered[-1, :-1] = sums
            bordered[-1, -1] = len(flat)
            matrix = bordered
        self._add(names.ACTIVATION_COVARIANCE_MATRIX_NAME, matrix)

    def _add(self, name: str, term: torch.Tensor) -> None:
        """Adds the term to a running sum, which its first term in a phase starts.

        Sums are in float32 or above, and in float64 if products are in a dtype of their own.
        """
        if term.is_floating_point():
            mixed = self.module.covariance_products
            term = term.to(torch.float64 if mixed else accumulator(term.dtype))
        total = self.module.storage[name]
        self.module.storage[name] = term if total is None else total.add_(term)


class EigenLambdaTracker(HookTracker, LambdaTracker):
    """Mean squared gradient in the eigenbasis, EKFAC's corrected eigenvalues; without a basis, the
    diagonal.

    The sum over the data set is in float64, squares of one block are summed in float32.
    """

    def update(self, entry: Stream, gradient: Stream) -> None:
        """Adds the squares of the batch's gradients in the eigenbasis, and counts rows."""
        module = self.module
        args = module.factor_args
        device = module.weight.device
        if not self.started:
            self.started = True
            if FactorConfig.CONFIGS[args.strategy].requires_eigendecomposition_for_lambda:
                module.set_bases(args.lambda_dtype, device)
            else:
                module.drop_bases()
            # Else it is the sum of an earlier process.
            if module.storage[names.LAMBDA_MATRIX_NAME] is None:
                size = module.weight.shape[0], module.weight.shape[1] + (module.bias is not None)
                zeros = torch.zeros(size, dtype=torch.float64, device=device)
                module.storage[names.LAMBDA_MATRIX_NAME] = zeros
                module.storage[names.NUM_LAMBDA_PROCESSED] = torch.zeros(1, dtype=torch.int64)
        total = module.storage[names.LAMBDA_MATRIX_NAME]
        g, a, rotated = module.tokens(
            entry, gradient, args.per_sample_gradient_dtype, cheapest=True
        )
        module.storage[names.NUM_LAMBDA_PROCESSED] += len(g) if module.shared.first else 0
        if rotated:
            add_squares(total, g, a, module.block_elements(g))
            return
        for gradients in module.full_gradients(g, a):
            total += gradients.square_().sum(0, dtype=accumulator(gradients.dtype))


class EigenPreconditionTracker(HookTracker, PreconditionTracker):
    """Query gradients of a pass: `Tokens` in the eigenbasis, or preconditioned gradients.

    Gradients are multiplied by the inverse of the damped curvature and rotated back, then kept in
    full (in one tensor for all queries of a pass) or as two factors of low rank.
    """

    gradients: torch.Tensor | None  # (queries of a pass, D_out, D_in)

    def update(self, entry: Stream, gradient: Stream) -> None:
        """Appends the batch's queries to those of the pass."""
        module = self.module
        args = module.score_args
        name = names.ACCUMULATED_PRECONDITIONED_GRADIENT_NAME
        inverse = module.storage[names.LAMBDA_MATRIX_NAME]
        if module.rotate_rows:
            piece = module.tokens(entry, gradient, args.per_sample_gradient_dtype, wide=True)[:2]
            if module.storage[name] is None:
                module.storage[name] = Tokens([], inverse, args.score_dtype)
            module.storage[name].pieces.append(piece)
            return
        g, a, rotated = module.tokens(
            entry, gradient, args.per_sample_gradient_dtype, cheapest=True
        )
        if rotated:
            gradients = torch.bmm(g.transpose(1, 2), a)
        else:
            gradients = torch.cat(list(module.full_gradients(g, a)))
        gradients = gradients.to(args.precondition_dtype)
        if inverse is not None:
            gradients.mul_(inverse)
        rank = args.query_gradient_low_rank
        a_basis, g_basis = module.square_bases()
        if rank is not None and rank < min(gradients.shape[1:]):
            left, right = self._low_rank(gradients, rank)
            if a_basis is not None:  # the two factors are rotated back, not the gradient
                left = g_basis.to(left.dtype) @ left
                right = right @ a_basis.t().to(right.dtype)
            if (earlier := module.storage[name]) is not None:
                left = torch.cat([earlier.left, left])
                right = torch.cat([earlier.right, right])
            module.storage[name] = LowRank(left, right)
            return
        if a_basis is not None:
            gradients = g_basis @ (gradients.to(g_basis.dtype) @ a_basis.t())
        start = len(module.storage[name] or ())
        if self.gradients is None:
            count = module.pass_queries or len(gradients) * args.query_gradient_accumulation_steps
            size = count, *gradients.shape[1:]
            self.gradients = torch.empty(size, dtype=args.score_dtype, device=gradients.device)
        self.gradients[start : start + len(gradients)] = gradients
        module.storage[name] = Gradients(self.gradients[: start + len(gradients)])

    def _low_rank(self, gradients: torch.Tensor, rank: int) -> list[torch.Tensor]:
        """[left (Q, D_out, R), right (Q, R, D_in)] of the gradients (Q, D_out, D_in).

        By a full decomposition where kronfluence's arguments ask for it; else a randomized one,
        whose draws depend on the seed and the module only, so that the same queries give the same
        factors in every pass and on every device.
        """
        module = self.module
        args = module.score_args
        gradients = gradients.to(args.query_gradient_svd_dtype).contiguous()
        if args.use_full_svd:
            return self._compute_low_rank_preconditioned_gradient(gradients, args.score_dtype)
        drawn = f"{module.projection_seed}/{module.name}"
        left, right = randomized_factors(gradients, rank, drawn, module.square_bases())
        return [left.to(args.score_dtype), right.to(args.score_dtype)]

    def accumulate_iterations(self) -> None:
        """Nothing to do: `update` has stored the queries."""

    def forget(self) -> None:
        """Frees the gradients."""
        self.gradients = None


class EigenPairwiseTracker(HookTracker, PairwiseScoreTracker):
    """Inner products of all query gradients of a pass with each training gradient.

    Batches wait until their group is complete, see `Shared.complete`: a product with more rows is
    faster, and blocks of query gradients are formed once for the group. The scores of a waiting
    batch have no columns.
    """

    def forget(self) -> None:
        """Frees the batches of an incomplete group."""
        self.waiting: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.scales: list[torch.Tensor | None] = []

    def update(self, entry: Stream, gradient: Stream) -> None:
        """Stores scores (queries, rows) of a complete group for kronfluence to collect.

        Columns are scaled, not tokens, so that a batch of a tape waits without a copy.
        """
        module = self.module
        dtype = module.score_args.score_dtype
        g, a, _ = module.tokens(entry, gradient, dtype, module.rotate_rows, wide=True, scaled=False)
        self.waiting.append((g, a))
        self.scales.append(module.shared.scale)
        queries = module.storage[names.ACCUMULATED_PRECONDITIONED_GRADIENT_NAME]
        if module.shared.complete:
            elements = module.block_elements(module.weight)
            scores = inner_products(queries, self.waiting, elements)
            if module.shared.scale is not None:
                scores *= torch.cat(self.scales).to(scores.dtype)
            self.waiting = []
            self.scales = []
        else:
            scores = torch.empty(len(queries), 0, device=module.weight.device)
        module.storage[names.PAIRWISE_SCORE_MATRIX_NAME] = scores

    def accumulate_iterations(self) -> None:
        """Clears the scores of a batch; waiting batches stay."""
        self.module.storage[names.PAIRWISE_SCORE_MATRIX_NAME] = None


class EigenSelfScoreTracker(HookTracker, SelfScoreTracker):
    """Each training gradient's inner product with itself, preconditioned."""

    def update(self, entry: Stream, gradient: Stream) -> None:
        """Stores the batch's self-influence (rows,) for kronfluence to collect."""
        module = self.module
        g, a, _ = module.tokens(entry, gradient, module.score_args.per_sample_gradient_dtype)
        weight = module.storage[names.LAMBDA_MATRIX_NAME]
        scores = weighted_squares(g, a, weight, module.block_elements(g))
        module.storage[names.SELF_SCORE_VECTOR_NAME] = scores
