"""Runs kronfluence phase by phase: resumable, results only where complete.

A phase is one kronfluence call: covariance, eigendecomposition, lambda, pairwise or self scores, the
long ones cut into data partitions. kronfluence writes in place and takes existence for completeness,
so it works in a folder of its own (`influence/kronfluence/`), every finished piece is recorded with
checksums in `finished.json` there, and what is not recorded is deleted and done again. Only complete
results are moved to `influence/factors/` and `influence/scores/`.
"""

import os
import shutil
import time
from pathlib import Path

import torch
from kronfluence.factor.config import FactorConfig
from kronfluence.utils import constants as names
from kronfluence.utils.dataset import make_indices_partition
from safetensors.torch import load_file

from attribution.files import Refused, checksums, intact, refuse_if_stale, write_json
from attribution.influence.analyzer import EigenAnalyzer, FolderAnalyzer
from attribution.influence.batching import restore_order


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
            title = f"{part}, partition {i + 1} of {count}"
            self.run(title, patterns, lambda i=i: call({"target_data_partitions": [i]}))
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
            "covariance", count, tuple(names.COVARIANCE_FACTOR_NAMES),
            fit("covariance", analyzer.fit_covariance_matrices),
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
    rows = min(len(dataset), factor_args.covariance_max_examples or len(dataset))
    keep_factors(phases, analyzer.influence / "factors" / name, rows)


def keep_factors(phases: Phases, target: Path, rows: int) -> None:
    """Moves complete factors to their place, with their record. rows: how many they were fitted on.

    Raises Refused where a factor is not finite.
    """
    for path in phases.folder.glob("*_data_partition*"):
        path.unlink()
    for path in phases.folder.glob("*.safetensors"):
        for module, factor in load_file(path).items():
            if not factor.isfinite().all():
                raise Refused(f"the {path.stem} of {module} is not finite, so no factors are stored; train again")
    files = checksums(phases.folder.glob("*.safetensors"))
    write_json(phases.folder / "factors.json", {
        "fingerprint": phases.record["fingerprint"], "files": files, "seconds": phases.record["seconds"],
        "factor_rows": rows,
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
            kwargs["query_dataset"] = queries
        score = analyzer.compute_pairwise_scores if kind == "pairwise" else analyzer.compute_self_scores
        analyzer.with_budget(lambda: score(**kwargs, **loading, **targets))

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
