"""kronfluence's Analyzer, with factors that count only once they are complete, and with batches of like length."""

import gc
from pathlib import Path

import scipy.linalg
import torch
from kronfluence.analyzer import Analyzer
from kronfluence.factor.eigen import save_eigendecomposition
from kronfluence.utils import constants as names
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from attribution.files import Refused
from attribution.influence.batching import WeighedLoader, batches_within, group_ends
from attribution.influence.contractions import accumulator
from attribution.influence.eigenbasis import EigenLinear, tracked

EIGEN_PAIRS = (
    (names.ACTIVATION_COVARIANCE_MATRIX_NAME, names.NUM_ACTIVATION_COVARIANCE_PROCESSED,
     names.ACTIVATION_EIGENVECTORS_NAME, names.ACTIVATION_EIGENVALUES_NAME),
    (names.GRADIENT_COVARIANCE_MATRIX_NAME, names.NUM_GRADIENT_COVARIANCE_PROCESSED,
     names.GRADIENT_EIGENVECTORS_NAME, names.GRADIENT_EIGENVALUES_NAME),
)  # fmt: skip


class FolderAnalyzer(Analyzer):
    """kronfluence's Analyzer, reading factors from `influence/factors/` once they are complete."""

    def __init__(self, folder: Path, model, task, **kwargs) -> None:
        self.influence = folder
        super().__init__(analysis_name="kronfluence", model=model, task=task, output_dir=str(folder), **kwargs)

    def factors_output_dir(self, factors_name: str) -> Path:
        complete = self.influence / "factors" / factors_name
        return complete if (complete / "factors.json").exists() else super().factors_output_dir(factors_name)

    def with_budget(self, call):
        """call(); kronfluence's own batches are of fixed size."""
        return call()


class EigenAnalyzer(FolderAnalyzer):
    """Batches of like length within a token budget, and one eigendecomposition for equal matrices."""

    def __init__(self, folder: Path, model, task, token_budget: int, **kwargs) -> None:
        super().__init__(folder, model, task, disable_tqdm=True, **kwargs)
        self.token_budget = token_budget
        self.queries = None  # the query data set: its batches are counted in rows
        self.description = ""
        modules = tracked(model)
        # Modules of a kind that is not ours cannot wait for a group of batches.
        self.shared = modules[0].shared if all(isinstance(module, EigenLinear) for module in modules) else None

    def _get_dataloader(self, dataset, per_device_batch_size, dataloader_params, indices=None, **_) -> DataLoader:
        indices = list(range(len(dataset))) if indices is None else list(indices)
        lengths, is_query = dataset.lengths[indices], dataset is self.queries
        batches = batches_within(lengths, self.token_budget, per_device_batch_size if is_query else None)
        tokens = [float(lengths[batch].sum()) for batch in batches]
        description, before, weights = "queries" if is_query else self.description, None, tokens
        if not is_query:
            ends = group_ends(batches, lengths, self.token_budget)

            def before(i: int) -> None:
                if self.shared is not None:
                    self.shared.complete = ends[i]

        if self.queries is not None and not is_query:
            # Multiply-adds over P: some 6 a token for the model, gradient and rotations, one a row and query.
            weights = [6 * t + len(self.queries) * len(batch) for t, batch in zip(tokens, batches, strict=True)]
        return WeighedLoader(
            Subset(dataset, indices), batches, dataloader_params["collate_fn"], description, weights, before
        )

    def perform_eigendecomposition(self, factors_name, factor_args=None, **_) -> None:
        """Eigenvectors and eigenvalues of every covariance, in float64; equal ones (query, key, value) once."""
        covariances = self.load_covariance_matrices(factors_name)
        jobs: list[tuple[torch.Tensor, int]] = []
        sharers = []
        for matrix_name, count_name, *targets in EIGEN_PAIRS:
            for module, matrix in covariances[matrix_name].items():
                count = covariances[count_name][module].item()
                for job, (known, known_count) in enumerate(jobs):  # noqa: B007
                    if known.shape == matrix.shape and known_count == count and torch.equal(known, matrix):
                        break
                else:
                    job = len(jobs)
                    jobs.append((matrix, count))
                sharers.append((job, module, targets))
        with self.profiler.profile("Perform Eigendecomposition"):
            results = self._decompose(jobs, factor_args.eigendecomposition_dtype, accumulator(factor_args.lambda_dtype))
        factors: dict = {name: {} for name in names.EIGENDECOMPOSITION_FACTOR_NAMES}
        for job, module, (vectors_name, values_name) in sharers:
            values, vectors = results[job]
            factors[vectors_name][module], factors[values_name][module] = vectors.clone(), values.clone()
        save_eigendecomposition(self.factors_output_dir(factors_name), factors, factor_args.to_str_dict())

    def _decompose(self, jobs, dtype, kept) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(eigenvalues, eigenvectors) of matrix / count for every job, computed in one type, kept in another."""
        results = []
        for matrix, count in tqdm(jobs, desc="eigendecomposition", leave=False):
            matrix = matrix.to(self.state.device, dtype) / count
            values, vectors = symmetric_eigen((matrix + matrix.t()) / 2)
            results.append((values.to("cpu", kept).contiguous(), vectors.to("cpu", kept).contiguous()))
        return results

    def with_budget(self, call):
        """call(); where the GPU runs out of memory, halves the token budget and calls again."""
        while True:
            try:
                return call()
            except torch.OutOfMemoryError:
                if self.token_budget <= 128:
                    raise
                self.token_budget //= 2
            self._reset_memory()
            gc.collect()
            print(f"out of memory; going on with batches of {self.token_budget:,} tokens")


def symmetric_eigen(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(eigenvalues (D,), eigenvectors (D, D)) of a symmetric matrix, ascending.

    Where the device's algorithm does not converge, the CPU's is tried in float64, then LAPACK's slowest and surest.
    Raises Refused for a matrix that is not finite.
    """
    if not matrix.isfinite().all():
        raise Refused("a covariance is not finite: the model's gradients overflow, so nothing is stored")
    for attempt in (matrix, matrix.double().cpu()):
        try:
            return torch.linalg.eigh(attempt)
        except torch.linalg.LinAlgError:
            continue
    values, vectors = scipy.linalg.eigh(matrix.double().cpu().numpy(), driver="ev")
    return torch.from_numpy(values), torch.from_numpy(vectors)
