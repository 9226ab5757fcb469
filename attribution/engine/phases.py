"""Runs an analysis phase by phase: resumable, results only where complete.

A phase is covariance, eigendecomposition, lambda, pairwise or self scores. Ours go through the data
set in parts (`fitting.py`, `scoring.py`); stock kronfluence's (here) are one kronfluence call each,
the long ones cut into data partitions. It writes in place and takes existence for completeness, so
it works in a folder of its own (`influence/kronfluence/`), every finished piece is recorded with
checksums in `finished.json` there, and what is not recorded is deleted and done again. Only
complete results are moved to `influence/factors/` and `influence/scores/`.
"""

import os
import shutil
import time
from pathlib import Path

import torch
from kronfluence.factor.config import FactorConfig
from kronfluence.utils import constants as names
from safetensors.torch import load_file

from attribution.engine.analyzer import FolderAnalyzer
from attribution.files import Refused, checksums, intact, refuse_if_stale, write_json
from attribution.processes import ALONE, Processes


class Phases:
    """One piece of work in kronfluence's folder: which parts of it are finished, and recorded as
    such.

    make_plan() is called where nothing is there to go on from; else the plan is the one that it was
    begun with. All processes of a launch know the same; the main process writes.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: dict,
        what: str,
        make_plan,
        overwrite: bool,
        processes: Processes = ALONE,
    ) -> None:
        self.folder, self.path, self.processes = folder, folder / "finished.json", processes
        self.earlier = (
            0.0  # seconds that earlier processes have spent on the part that is being run
        )

        def known() -> dict | None:
            if overwrite:
                shutil.rmtree(folder, ignore_errors=True)
            return refuse_if_stale(self.path, fingerprint, what)

        record = processes.from_main(known)
        if record is None:  # nothing there, or nothing that says what it is
            record = {"fingerprint": fingerprint, "plan": make_plan(), "parts": {}, "seconds": {}}
            if processes.main:
                shutil.rmtree(folder, ignore_errors=True)
                write_json(self.path, record)
            processes.meet()
        self.record, self.plan = record, record["plan"]

    def run(self, part: str, patterns: tuple[str, ...], call) -> None:
        """call(), unless the part is recorded and its files are what was recorded; leftovers are
        deleted.
        """
        if self.processes.from_main(lambda: self._finished(part, patterns)):
            return
        start, self.earlier = time.perf_counter(), 0.0
        call()
        if self.processes.main:
            files = (path for pattern in patterns for path in self.folder.glob(pattern))
            self.record["parts"][part] = checksums(files)
            phase, seconds = part.partition(",")[0], self.record["seconds"]  # of all its partitions
            seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - start + self.earlier
            write_json(self.path, self.record)
        self.processes.meet()

    def go_on_with(self, phase: str, plan: dict) -> None:
        """Records what a process went on with where memory ran out, rank -> plan; all processes
        call this.

        plan: what this process went on with, in the words of the stored plan; empty for one that
        kept to it.
        """
        others = {str(rank): one for rank, one in enumerate(self.processes.all_of(plan)) if one}
        if others:
            self.record.setdefault("replanned", {})[phase] = others

    def _finished(self, part: str, patterns: tuple[str, ...]) -> bool:
        recorded = self.record["parts"].get(part)
        if recorded is not None and intact(self.folder, recorded):
            return True
        if recorded is not None:
            print(f"{self.folder.name}: {part} is damaged and is done again")
        for path in [path for pattern in patterns for path in self.folder.glob(pattern)]:
            path.unlink()
        return False

    def run_partitioned(
        self, part: str, count: int, prefixes: tuple[str, ...], call, aggregate=None
    ) -> None:
        """The part in `count` partitions, call(targets) for each; then aggregate(), which joins
        their files.
        """
        if count == 1:
            self.run(part, tuple(f"{prefix}.safetensors" for prefix in prefixes), lambda: call({}))
            return
        for i in range(count):
            patterns = tuple(f"{prefix}_data_partition{i}_*.safetensors" for prefix in prefixes)
            title = f"{part}, partition {i + 1} of {count}"
            self.run(title, patterns, lambda i=i: call({"target_data_partitions": [i]}))
        if aggregate:
            self.run(
                f"{part}, joined", tuple(f"{prefix}.safetensors" for prefix in prefixes), aggregate
            )


def fit_factors(
    analyzer: FolderAnalyzer, phases: Phases, name: str, dataset, factor_args, loading: dict
) -> None:
    """Fits with stock kronfluence what the strategy needs, and moves the folder to
    `influence/factors/<name>`.
    """
    config = FactorConfig.CONFIGS[factor_args.strategy]
    # What is recorded as finished is not computed again; what is not is leftovers, to be
    # overwritten.
    kwargs = {"factors_name": name, "factor_args": factor_args, "overwrite_output_dir": True}
    count = phases.plan["factors"]

    def fit(phase: str, method):
        def call(targets: dict) -> None:
            analyzer.task.phase = phase
            method(dataset=dataset, **kwargs, **loading, **targets)

        return call

    if config.requires_covariance_matrices:
        phases.run_partitioned(
            "covariance",
            count,
            tuple(names.COVARIANCE_FACTOR_NAMES),
            fit("covariance", analyzer.fit_covariance_matrices),
            lambda: analyzer.aggregate_covariance_matrices(name),
        )
    if config.requires_eigendecomposition:
        patterns = tuple(
            f"{factor}.safetensors" for factor in names.EIGENDECOMPOSITION_FACTOR_NAMES
        )
        phases.run(
            "eigendecomposition", patterns, lambda: analyzer.perform_eigendecomposition(**kwargs)
        )
    if config.requires_lambda_matrices:
        phases.run_partitioned(
            "lambda",
            count,
            tuple(names.LAMBDA_FACTOR_NAMES),
            fit("lambda", analyzer.fit_lambda_matrices),
            lambda: analyzer.aggregate_lambda_matrices(name),
        )
    if not config.requires_covariance_matrices and not config.requires_lambda_matrices:
        fit("identity", analyzer.fit_covariance_matrices)(
            {}
        )  # fits nothing, but leaves the arguments for scoring
    rows = min(len(dataset), factor_args.covariance_max_examples or len(dataset))
    keep_factors(phases, analyzer.influence / "factors" / name, rows)


def keep_factors(phases: Phases, target: Path, rows: int) -> None:
    """Moves complete factors to their place, with their record. rows: how many they were fitted on.

    Raises Refused where a factor is not finite.
    """
    for path in phases.folder.glob("*_data_partition*"):
        path.unlink()
    shutil.rmtree(phases.folder / "progress", ignore_errors=True)
    for path in phases.folder.glob("*.safetensors"):
        for module, factor in load_file(path).items():
            if not factor.isfinite().all():
                raise Refused(
                    f"the {path.stem} of {module} is not finite, so no factors are stored; train "
                    "again"
                )
    files = checksums(phases.folder.glob("*.safetensors"))
    write_json(
        phases.folder / "factors.json",
        {
            "fingerprint": phases.record["fingerprint"],
            "files": files,
            "seconds": phases.record["seconds"],
            "factor_rows": rows,
            "plan": phases.plan,
            "replanned": phases.record.get("replanned", {}),
        },
    )
    target.parent.mkdir(exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(phases.folder, target)


def compute_scores(
    analyzer: FolderAnalyzer,
    phases: Phases,
    kind: str,
    name: str,
    factors_name: str,
    queries,
    train,
    score_args,
    loading: dict,
) -> torch.Tensor:
    """Stock kronfluence's pairwise scores (Q, N) (kind "pairwise") or self scores (N,) (kind
    "self"), float32.
    """
    count, prefix = score_args.data_partitions, f"{kind}_scores"

    def call(targets: dict) -> None:
        kwargs = {
            "scores_name": name,
            "factors_name": factors_name,
            "train_dataset": train,
            "score_args": score_args,
        }
        kwargs["overwrite_output_dir"] = True
        if kind == "pairwise":
            kwargs["query_dataset"] = queries
        score = (
            analyzer.compute_pairwise_scores if kind == "pairwise" else analyzer.compute_self_scores
        )
        score(**kwargs, **loading, **targets)

    phases.run_partitioned(kind, count, (prefix,), call)
    suffixes = (
        [f"_data_partition{i}_module_partition0" for i in range(count)] if count > 1 else [""]
    )
    files = [phases.folder / f"{prefix}{suffix}.safetensors" for suffix in suffixes]
    return torch.cat([load_file(path)[names.ALL_MODULE_NAME].float() for path in files], dim=-1)
