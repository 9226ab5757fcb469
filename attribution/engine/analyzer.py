"""kronfluence's Analyzer, with factors that count only once they are complete, and with batches of
like length.
"""

import gc
from pathlib import Path

import scipy.linalg
import torch
from kronfluence.analyzer import Analyzer
from kronfluence.utils import constants as names
from kronfluence.utils.state import State
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from attribution.data.dataset import collate
from attribution.engine.batching import WeighedLoader, batches_within, group_ends
from attribution.engine.contractions import accumulator
from attribution.engine.modules import EigenLinear, tracked
from attribution.files import Refused, write_tensors
from attribution.processes import ALONE, Processes, choose_device, share_out

EIGEN_PAIRS = (
    (
        names.ACTIVATION_COVARIANCE_MATRIX_NAME,
        names.NUM_ACTIVATION_COVARIANCE_PROCESSED,
        names.ACTIVATION_EIGENVECTORS_NAME,
        names.ACTIVATION_EIGENVALUES_NAME,
    ),
    (
        names.GRADIENT_COVARIANCE_MATRIX_NAME,
        names.NUM_GRADIENT_COVARIANCE_PROCESSED,
        names.GRADIENT_EIGENVECTORS_NAME,
        names.GRADIENT_EIGENVALUES_NAME,
    ),
)


class FolderAnalyzer(Analyzer):
    """kronfluence's Analyzer, reading factors from `influence/factors/` once they are complete."""

    def __init__(self, folder: Path, model, task, **kwargs) -> None:
        self.influence = folder
        stand_alone(choose_device())
        super().__init__(
            analysis_name="kronfluence", model=model, task=task, output_dir=str(folder), **kwargs
        )

    def factors_output_dir(self, factors_name: str) -> Path:
        """Where kronfluence finds factors of this name: the complete ones, else those that are
        being made.
        """
        complete = self.influence / "factors" / factors_name
        return (
            complete
            if (complete / "factors.json").exists()
            else super().factors_output_dir(factors_name)
        )


def stand_alone(device: torch.device) -> None:
    """Makes kronfluence's State, of which there is one, know this process and its device only.

    Under a launcher with GPUs it would connect to the other processes, and then save on one of them
    only.
    """
    State._reset_state()
    alone = {"num_processes": 1, "process_index": 0, "local_process_index": 0}
    State._shared_state.update(
        alone, cpu=device.type == "cpu", n_gpus=torch.cuda.device_count(), device=device
    )


class EigenAnalyzer(FolderAnalyzer):
    """Batches of like length within a token budget, and one eigendecomposition for equal matrices.

    token_budget: tokens of a batch with padding. processes: those of this launch; each runs an
    analyzer of its own.
    """

    def __init__(
        self, folder: Path, model, task, token_budget: int, processes: Processes = ALONE, **kwargs
    ) -> None:
        super().__init__(folder, model, task, disable_tqdm=True, **kwargs)
        self.token_budget, self.processes = token_budget, processes
        self.queries = None  # the query data set: its batches are counted in rows
        self.description = ""
        modules = tracked(model)
        # Modules of a kind that is not ours cannot wait for a group of batches.
        self.shared = (
            modules[0].shared
            if all(isinstance(module, EigenLinear) for module in modules)
            else None
        )

    def _get_dataloader(
        self, dataset, per_device_batch_size, dataloader_params, indices=None, **_
    ) -> DataLoader:
        indices = list(range(len(dataset))) if indices is None else list(indices)
        lengths, is_query = dataset.lengths[indices], dataset is self.queries
        batches = batches_within(
            lengths, self.token_budget, per_device_batch_size if is_query else None
        )
        tokens = [float(lengths[batch].sum()) for batch in batches]
        description, before, weights = "queries" if is_query else self.description, None, tokens
        if not is_query:
            ends = group_ends(batches, lengths, self.token_budget)

            def before(i: int) -> None:
                if self.shared is not None:
                    self.shared.complete = ends[i]

        if self.queries is not None and not is_query:
            # Multiply-adds over P: some 6 a token for the model, gradient and rotations, one a row
            # and query.
            weights = [
                6 * t + len(self.queries) * len(batch)
                for t, batch in zip(tokens, batches, strict=True)
            ]
        return WeighedLoader(
            Subset(dataset, indices),
            batches,
            dataloader_params["collate_fn"],
            description,
            weights,
            before,
        )

    def loader(
        self,
        dataset,
        batches: list,
        ends: list[bool] | None,
        weights: list[float],
        description: str,
        before=None,
        after=None,
    ) -> WeighedLoader:
        """Batches of row numbers. ends: whether a batch is its group's last; None where there are
        no groups.

        before(i), after(): called before batch i, and after the last.
        """

        def begin(i: int) -> None:
            if before:
                before(i)
            if self.shared is not None and ends is not None:
                self.shared.complete = ends[i]

        shown = self.processes.main
        return WeighedLoader(dataset, batches, collate, description, weights, begin, after, shown)

    def perform_eigendecomposition(self, factors_name, factor_args=None, **_) -> None:
        """Eigenvectors and eigenvalues of every covariance, in float64; equal ones (query, key,
        value) once.

        The processes share the matrices out; the main process saves.
        """
        covariances = self.load_covariance_matrices(factors_name)
        jobs: list[tuple[torch.Tensor, int]] = []
        sharers = []
        for matrix_name, count_name, *targets in EIGEN_PAIRS:
            for module, matrix in covariances[matrix_name].items():
                count = covariances[count_name][module].item()
                for job, (known, known_count) in enumerate(jobs):  # noqa: B007
                    if (
                        known.shape == matrix.shape
                        and known_count == count
                        and torch.equal(known, matrix)
                    ):
                        break
                else:
                    job = len(jobs)
                    jobs.append((matrix, count))
                sharers.append((job, module, targets))
        with self.profiler.profile("Perform Eigendecomposition"):
            results = self._decompose(
                jobs, factor_args.eigendecomposition_dtype, accumulator(factor_args.lambda_dtype)
            )
        factors: dict = {name: {} for name in names.EIGENDECOMPOSITION_FACTOR_NAMES}
        for job, module, (vectors_name, values_name) in sharers:
            values, vectors = results[job]
            factors[vectors_name][module], factors[values_name][module] = (
                vectors.clone(),
                values.clone(),
            )
        if (
            self.processes.main
        ):  # kronfluence's own call adds metadata, whose order is another one each time
            for name, tensors in factors.items():
                write_tensors(
                    self.factors_output_dir(factors_name) / f"{name}.safetensors", tensors
                )

    def _decompose(self, jobs, dtype, kept) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(eigenvalues, eigenvectors) of matrix / count for every job, computed in one type, kept
        in another.
        """
        shares = share_out([float(len(matrix)) ** 3 for matrix, _ in jobs], self.processes.count)
        own, results = set(shares[self.processes.rank]), []
        bar = tqdm(jobs, desc="eigendecomposition", leave=False, disable=not self.processes.main)
        for job, (matrix, count) in enumerate(bar):
            values, vectors = (
                matrix.new_empty(len(matrix), dtype=kept),
                torch.empty_like(matrix, dtype=kept),
            )
            if job in own:
                matrix = matrix.to(self.state.device, dtype) / count
                values, vectors = symmetric_eigen((matrix + matrix.t()) / 2)
                values, vectors = (
                    values.to("cpu", kept).contiguous(),
                    vectors.to("cpu", kept).contiguous(),
                )
            results.append((values, vectors))
        for rank, share in enumerate(shares):
            for job in share:
                for tensor in results[job]:
                    self.processes.spread(tensor, rank)
        return results

    def release(self) -> None:
        """Lets go of everything that a phase holds: hooks, waiting batches, inputs, rotations,
        bases, factors.
        """
        self._reset_memory()
        for module in tracked(self.model):
            for tracker in module._trackers.values():
                tracker.release_hooks()
                tracker.release_memory()
            module._initialize_storage()
            if isinstance(module, EigenLinear):
                module.drop_bases()
                module.shared.clear()
        gc.collect()
        if self.state.device.type == "cuda":
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that a GPU's memory is full; cuBLAS and cuSOLVER have errors of their
    own for that.
    """
    signs = ("STATUS_ALLOC_FAILED", "out of memory")
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    )


def symmetric_eigen(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(eigenvalues (D,), eigenvectors (D, D)) of a symmetric matrix, ascending.

    Where the device's algorithm does not converge, the CPU's is tried in float64, then LAPACK's
    slowest and surest. Raises Refused for a matrix that is not finite.
    """
    if not matrix.isfinite().all():
        raise Refused(
            "a covariance is not finite: the model's gradients overflow, so nothing is stored"
        )
    for attempt in (matrix, matrix.double().cpu()):
        try:
            return torch.linalg.eigh(attempt)
        except RuntimeError as error:  # cuSOLVER has failures that are no LinAlgError
            if attempt.device.type == "cpu" and not isinstance(error, torch.linalg.LinAlgError):
                raise
    values, vectors = scipy.linalg.eigh(matrix.double().cpu().numpy(), driver="ev")
    return torch.from_numpy(values), torch.from_numpy(vectors)
