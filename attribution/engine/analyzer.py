"""kronfluence's Analyzer: factors count only once they are complete, batches have rows of like
length, and equal covariances are decomposed once.
"""

import gc
from collections.abc import Callable
from pathlib import Path

import torch
from kronfluence.analyzer import Analyzer
from kronfluence.utils import constants as names
from kronfluence.utils.state import State

from attribution.data.dataset import GlueDataset
from attribution.engine.batching import Batches
from attribution.engine.contractions import accumulator, side_by_side
from attribution.engine.memory import features_of, shapes_of, tape_bytes
from attribution.engine.modules import tracked
from attribution.engine.tape import Tape
from attribution.files import Refused
from attribution.processes import ALONE, Processes, choose_device, share_out
from attribution.progress import steps
from attribution.tensors import write_tensors

# Covariance, its count, eigenvectors and eigenvalues, of inputs and of output gradients.
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
        """Folder of the factors of this name: the complete ones, else those in the making."""
        complete = self.influence / "factors" / factors_name
        if (complete / "factors.json").exists():
            return complete
        return super().factors_output_dir(factors_name)


def stand_alone(device: torch.device) -> None:
    """Makes kronfluence's only State know this process and its device alone.

    Under a launcher with GPUs it would connect to the other processes, and then save on one of them
    only.
    """
    State._reset_state()
    alone = {"num_processes": 1, "process_index": 0, "local_process_index": 0}
    State._shared_state.update(
        alone, cpu=device.type == "cpu", n_gpus=torch.cuda.device_count(), device=device
    )


class EigenAnalyzer(FolderAnalyzer):
    """Analyzer of the fast path. processes: of this launch; each has an analyzer."""

    def __init__(
        self,
        folder: Path,
        model,
        task,
        processes: Processes = ALONE,
        one_output: bool = False,
        **kwargs,
    ) -> None:
        """one_output: whether the gradients of a row's labels are multiples of one another."""
        super().__init__(folder, model, task, disable_tqdm=True, **kwargs)
        self.processes = processes
        self.shared = tracked(model)[0].shared
        if one_output and self.state.device.type == "cpu":
            features = features_of(shapes_of(model))
            room = tape_bytes(features, self.state.device)
            self.shared.tape = Tape(features, room)
            task.shared = self.shared

    def arguments(self) -> dict:
        """Arguments that kronfluence's inner functions have in common."""
        return {
            "model": self.model,
            "state": self.state,
            "task": self.task,
            "disable_tqdm": True,
        }

    def loader(
        self,
        dataset: GlueDataset,
        batches: list[list[int]],
        ends: list[bool],
        phase: str,
        before: Callable[[int], None] = lambda i: None,
        after: Callable[[], None] = lambda: None,
        part: tuple[float, float] = (0.0, 1.0),
    ) -> Batches:
        """Batches of row numbers of a phase, or of a part of it.

        ends: whether a batch is its group's last. before(i), after(): called before batch i, and
        after the last.
        """

        def begin(i: int) -> None:
            before(i)
            self.shared.complete = ends[i]

        shown = self.processes.main
        return Batches(dataset, batches, phase, shown, begin, after, part)

    def take_rotated(self, rotated: bool) -> None:
        """Says whether rows on the tape may be in the eigenbasis in the phase that begins."""
        if self.shared.tape is not None:
            self.shared.tape.rotated = rotated

    def perform_eigendecomposition(self, factors_name, factor_args=None, **_) -> None:
        """Eigenvectors and eigenvalues of every covariance, in float64; equal ones (query, key,
        value) once.

        The processes share the matrices out; the main process saves.
        """
        covariances = self.load_covariance_matrices(factors_name)
        jobs: list[tuple[torch.Tensor, int]] = []
        users = []
        for matrix_name, count_name, *targets in EIGEN_PAIRS:
            for module, matrix in covariances[matrix_name].items():
                count = covariances[count_name][module].item()
                same = (
                    i
                    for i, (known, known_count) in enumerate(jobs)
                    if known_count == count and torch.equal(known, matrix)
                )
                job = next(same, len(jobs))
                if job == len(jobs):
                    jobs.append((matrix, count))
                users.append((job, module, targets))
        with self.profiler.profile("Perform Eigendecomposition"):
            kept = accumulator(factor_args.lambda_dtype)
            results = self._decompose(jobs, factor_args.eigendecomposition_dtype, kept)
        if not self.processes.main:
            return
        factors: dict = {name: {} for name in names.EIGENDECOMPOSITION_FACTOR_NAMES}
        for job, module, (vectors_name, values_name) in users:
            values, vectors = results[job]
            factors[vectors_name][module] = vectors.clone()
            factors[values_name][module] = values.clone()
        # kronfluence's own call adds metadata, whose order differs each time.
        for name, tensors in factors.items():
            write_tensors(self.factors_output_dir(factors_name) / f"{name}.safetensors", tensors)

    def _decompose(self, jobs, dtype, kept) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        """Job -> (eigenvalues, eigenvectors) of its matrix / count, computed in dtype."""
        shares = share_out([float(len(matrix)) ** 3 for matrix, _ in jobs], self.processes.count)

        def decompose(job: int) -> tuple[torch.Tensor, torch.Tensor]:
            matrix, count = jobs[job]
            matrix = matrix.to(self.state.device, dtype) / count
            values, vectors = symmetric_eigen((matrix + matrix.t()) / 2)
            return values.to("cpu", kept), vectors.to("cpu", kept).contiguous()

        # The largest first, side by side on the cores.
        mine = sorted(shares[self.processes.rank], key=lambda job: -len(jobs[job][0]))
        done = side_by_side(decompose, mine, self.state.device)
        shown = steps(done, "eigendecomposition", count=len(mine), shown=self.processes.main)
        found = dict(zip(mine, shown, strict=True))
        return {job: one for part in self.processes.all_of(found) for job, one in part.items()}

    def release(self) -> None:
        """Frees everything that a phase holds: hooks, waiting batches, inputs, bases, factors."""
        self._reset_memory()
        for module in tracked(self.model):
            for tracker in module._trackers.values():
                tracker.release_hooks()
                tracker.release_memory()
            module._initialize_storage()
            module.drop_bases()
            module.shared.clear()
        gc.collect()
        if self.state.device.type == "cuda":
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error is a lack of GPU memory; cuBLAS and cuSOLVER have their own errors."""
    signs = ("STATUS_ALLOC_FAILED", "out of memory")
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    )


def symmetric_eigen(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(eigenvalues (D,), eigenvectors (D, D)) of a symmetric matrix, ascending.

    Where the device's algorithm does not converge, the CPU's is tried in float64. Raises Refused
    for a matrix that is not finite.
    """
    if not matrix.isfinite().all():
        raise Refused(
            "a covariance is not finite: the model's gradients overflow, so nothing is stored"
        )
    try:
        return torch.linalg.eigh(matrix)
    except RuntimeError:  # cuSOLVER has failures that are no LinAlgError
        return torch.linalg.eigh(matrix.double().cpu())
