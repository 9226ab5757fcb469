"""Runs kronfluence phase by phase: resumable, in batches of like length, results only where complete.

A phase is one kronfluence call: covariance, eigendecomposition, lambda, pairwise or self scores, the
long ones cut into data partitions. kronfluence writes in place and takes existence for completeness,
so it works in a folder of its own (`influence/kronfluence/`), every finished piece is recorded with
checksums in `finished.json` there, and what is not recorded is deleted and done again. Only complete
results are moved to `influence/factors/` and `influence/scores/`.
"""

import gc
import os
import shutil
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from kronfluence.analyzer import Analyzer
from kronfluence.factor.config import FactorConfig
from kronfluence.factor.eigen import save_eigendecomposition
from kronfluence.module.tracked_module import TrackedModule
from kronfluence.utils import constants as names
from kronfluence.utils.dataset import make_indices_partition
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from attribution.batching import WeighedLoader, batches_within, group_ends, restore_order
from attribution.contractions import accumulator
from attribution.eigenbasis import EigenLinear
from attribution.store import checksums, intact, refuse_if_stale, write_json

PATIENCE = 600.0  # seconds of work between two points from which an interrupted run goes on
CPU_TOKENS = 4096  # of a batch, at most
ROTATE = {"auto": None, "rows": True, "queries": False}  # which side of a pairwise score is rotated
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
        jobs, sharers = [], []
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
            values, vectors = torch.linalg.eigh((matrix + matrix.t()) / 2)
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


def tracked(model) -> list[TrackedModule]:
    """The modules that kronfluence sees."""
    return [module for module in model.modules() if isinstance(module, TrackedModule)]


def parameters_of(model) -> int:
    """Number P of parameters that scores see: weights and biases of the tracked modules."""
    return sum(m.weight.numel() + (0 if m.bias is None else m.bias.numel()) for m in tracked(model))


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on the device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def affordable_tokens(model, device: torch.device, wanted: int) -> int:
    """The token budget, lowered on the CPU to CPU_TOKENS and to what a stated estimate allows.

    To CPU_TOKENS because larger batches need more memory there and no less time; to an estimate because Linux kills
    a process that runs out of memory instead of raising.

    Estimate: a training pass holds about 8 float32 numbers a token for every input and output feature of
    every tracked module; half of the free memory may go there.
    """
    if device.type == "cuda":
        return wanted
    features = sum(sum(module.weight.shape) for module in tracked(model))
    return max(128, min(wanted, CPU_TOKENS, free_memory(device) // 2 // (32 * features)))


def plan_queries(analyzer: EigenAnalyzer, train, queries, batch: int, score_args, force: str = "auto") -> int:
    """How many passes over the training rows the queries need; says for every module which side is rotated.

    Training tokens are rotated, N T (D_in^2 + D_out^2) in every pass, and tokens of queries held, whose gradients are
    formed again for every group of training batches, Q T_q D_in D_out. Or query gradients are rotated back once,
    Q D_in D_out (D_in + D_out), and held. Whatever is held may take half of the free memory; a pass more runs the
    model on all N T training tokens again. The cheaper of the two is taken, unless force (a key of ROTATE) names one;
    low rank always rotates back. batch: query rows a batch.
    """
    model, rank, lengths = analyzer.model, score_args.query_gradient_low_rank, np.sort(queries.lengths)[::-1]
    shapes = [(m.weight.shape[0], m.weight[0].numel() + (m.bias is not None)) for m in tracked(model)]
    size = sum(d_out * d_in for d_out, d_in in shapes)
    kept = sum(rank * sum(shape) if rank and rank < min(shape) else shape[0] * shape[1] for shape in shapes)
    room = free_memory(analyzer.state.device) // 2 / score_args.score_dtype.itemsize
    padded = np.repeat(lengths[::batch], batch)[: len(lengths)]
    holds = {True: int((np.cumsum(padded) * sum(map(sum, shapes)) <= room).sum()), False: int(room // kept)}
    passes = {side: -(-len(lengths) // min(max(held, 1), len(lengths))) for side, held in holds.items()}
    tokens, asked = int(train.lengths.sum()), int(lengths.sum())
    batches = batches_within(train.lengths, analyzer.token_budget)
    groups = sum(group_ends(batches, train.lengths, analyzer.token_budget)) if analyzer.shared else len(batches)
    rotations = sum(d_out**2 + d_in**2 for d_out, d_in in shapes)
    back = len(lengths) * sum(d_out * d_in * (d_out + d_in) for d_out, d_in in shapes)
    costs = {
        True: passes[True] * tokens * (3 * size + rotations) + groups * asked * size,
        False: passes[False] * tokens * 3 * size + asked * size + back,
    }
    rows = ROTATE[force] if ROTATE[force] is not None else costs[True] < costs[False]
    rows = rows and not rank
    for module in tracked(model):
        if isinstance(module, EigenLinear):
            module.rotate_rows = rows
    return passes[rows]


def plan_partitions(model, device: torch.device, rows: int, tokens: int, queries: int) -> dict[str, int]:
    """Phase -> number of data partitions, so that a killed run loses some PATIENCE seconds.

    Multiply-adds: 6 P a token for a factor phase, and P a row and query for pairwise scores; at a tenth of
    the rate that a matrix product reaches here, because an estimate must not be too bright.
    """
    x = torch.randn(1024, 1024, device=device)
    (x @ x).sum().item()
    start = time.perf_counter()
    (x @ x @ x @ x).sum().item()
    rate = 0.1 * 3 * 1024**3 / (time.perf_counter() - start)
    size = parameters_of(model)
    work = {"factors": 6 * size * tokens, "pairwise": size * (rows * queries + 3 * tokens), "self": 6 * size * tokens}
    return {phase: int(min(rows, max(1, -(-madds // (rate * PATIENCE))))) for phase, madds in work.items()}


class Phases:
    """One piece of work in kronfluence's folder: which parts of it are finished, and recorded as such."""

    def __init__(self, folder: Path, fingerprint: dict, what: str, plan: dict, overwrite: bool) -> None:
        self.folder, self.path = folder, folder / "finished.json"
        if overwrite:
            shutil.rmtree(folder, ignore_errors=True)
        record = refuse_if_stale(self.path, fingerprint, what)
        if record is None:  # nothing there, or nothing that says what it is
            shutil.rmtree(folder, ignore_errors=True)
            record = {"fingerprint": fingerprint, "plan": plan, "parts": {}, "seconds": {}}
            write_json(self.path, record)
        self.record, self.plan = record, record["plan"]

    def run(self, part: str, patterns: tuple[str, ...], call) -> None:
        """call(), unless the part is recorded and its files are what was recorded; leftovers are deleted."""
        files = [path for pattern in patterns for path in self.folder.glob(pattern)]
        recorded = self.record["parts"].get(part)
        if recorded is not None and intact(self.folder, recorded):
            return
        if recorded is not None:
            print(f"{self.folder.name}: {part} is damaged and is done again")
        for path in files:
            path.unlink()
        start = time.perf_counter()
        call()
        self.record["parts"][part] = checksums(path for pattern in patterns for path in self.folder.glob(pattern))
        self.record["seconds"][part] = time.perf_counter() - start
        write_json(self.path, self.record)

    def run_partitioned(self, part: str, count: int, prefixes: tuple[str, ...], call, aggregate=None) -> None:
        """The part in `count` partitions, call(targets) for each; then aggregate(), which joins their files."""
        if count == 1:
            self.run(part, tuple(f"{prefix}.safetensors" for prefix in prefixes), lambda: call({}))
            return
        for i in range(count):
            patterns = tuple(f"{prefix}_data_partition{i}_*.safetensors" for prefix in prefixes)
            self.run(f"{part}, partition {i + 1} of {count}", patterns, lambda i=i: call({"target_data_partitions": [i]}))
        if aggregate:
            self.run(f"{part}, joined", tuple(f"{prefix}.safetensors" for prefix in prefixes), aggregate)


def fit_factors(analyzer: FolderAnalyzer, phases: Phases, name: str, dataset, factor_args, loading: dict) -> None:
    """Fits what the strategy needs and moves the complete folder to `influence/factors/<name>`."""
    config = FactorConfig.CONFIGS[factor_args.strategy]
    # What is recorded as finished is not computed again; what is not is leftovers, to be overwritten.
    kwargs = {"factors_name": name, "factor_args": factor_args, "overwrite_output_dir": True}
    count = phases.plan["factors"]

    def fit(phase: str, method):
        def call(targets: dict) -> None:
            analyzer.task.phase = analyzer.description = phase
            analyzer.with_budget(lambda: method(dataset=dataset, **kwargs, **loading, **targets))

        return call

    if config.requires_covariance_matrices:
        phases.run_partitioned(
            "covariance", count, tuple(names.COVARIANCE_FACTOR_NAMES), fit("covariance", analyzer.fit_covariance_matrices),
            lambda: analyzer.aggregate_covariance_matrices(name),
        )  # fmt: skip
    if config.requires_eigendecomposition:
        patterns = tuple(f"{factor}.safetensors" for factor in names.EIGENDECOMPOSITION_FACTOR_NAMES)
        phases.run("eigendecomposition", patterns, lambda: analyzer.perform_eigendecomposition(**kwargs))
    if config.requires_lambda_matrices:
        phases.run_partitioned(
            "lambda", count, tuple(names.LAMBDA_FACTOR_NAMES), fit("lambda", analyzer.fit_lambda_matrices),
            lambda: analyzer.aggregate_lambda_matrices(name),
        )  # fmt: skip
    if not config.requires_covariance_matrices and not config.requires_lambda_matrices:
        fit("identity", analyzer.fit_covariance_matrices)({})  # fits nothing, but leaves the arguments for scoring
    target = analyzer.influence / "factors" / name
    for path in phases.folder.glob("*_data_partition*"):
        path.unlink()
    files = checksums(phases.folder.glob("*.safetensors"))
    write_json(phases.folder / "factors.json", {
        "fingerprint": phases.record["fingerprint"], "files": files, "seconds": phases.record["seconds"],
    })  # fmt: skip
    target.parent.mkdir(exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(phases.folder, target)


def compute_scores(
    analyzer: FolderAnalyzer, phases: Phases, kind: str, name: str, factors_name: str, queries, train, score_args,
    loading: dict,
) -> torch.Tensor:  # fmt: skip
    """Pairwise scores (Q, N) (kind "pairwise") or self scores (N,) (kind "self"), float32, in data set order."""
    fast, count = isinstance(analyzer, EigenAnalyzer), score_args.data_partitions
    prefix = f"{kind}_scores"

    def call(targets: dict) -> None:
        kwargs = {"scores_name": name, "factors_name": factors_name, "train_dataset": train, "score_args": score_args}
        kwargs["overwrite_output_dir"] = True
        if kind == "pairwise":
            analyzer.with_budget(lambda: analyzer.compute_pairwise_scores(query_dataset=queries, **kwargs, **loading, **targets))
        else:
            analyzer.with_budget(lambda: analyzer.compute_self_scores(**kwargs, **loading, **targets))

    if fast:
        analyzer.queries, analyzer.description = (queries if kind == "pairwise" else None), f"{kind} scores"
    phases.run_partitioned(kind, count, (prefix,), call)
    suffixes = [f"_data_partition{i}_module_partition0" for i in range(count)] if count > 1 else [""]
    files = [phases.folder / f"{prefix}{suffix}.safetensors" for suffix in suffixes]
    columns = []
    for path, (start, end) in zip(files, make_indices_partition(len(train), count), strict=True):
        part = load_file(path)[names.ALL_MODULE_NAME].float()
        columns.append(restore_order(part, train.lengths[start:end], part.dim() - 1) if fast else part)
    scores = torch.cat(columns, dim=-1)
    return restore_order(scores, queries.lengths, 0) if fast and kind == "pairwise" else scores
