"""One analysis of one run: names, fingerprints, what is stored, and the way from a model to its scores.

    influence = Influence(folder, run, train, queries, Settings(strategy="ekfac"))
    scores = influence.compute("pairwise")          # (Q, N), stored ones or new ones

Symbols: Q queries, N training rows.
"""

import functools
import logging
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from kronfluence.analyzer import prepare_model as prepare_stock_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.utils.dataset import DataLoaderKwargs
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from attribution.files import (
    Refused,
    environment,
    fingerprint_of_tensors,
    intact,
    refuse_if_stale,
    sha256_of,
    write_json,
    write_tensors,
)
from attribution.influence import eigenbasis, memory, phases
from attribution.influence.analyzer import EigenAnalyzer, FolderAnalyzer
from attribution.influence.names import DAMPING, factors_name, scores_name
from attribution.rows import GlueDataset, collate
from pipeline import InfluenceTask


@dataclass(frozen=True)
class Settings:
    """How scores are computed, and how the computation runs."""

    strategy: str = "ekfac"
    half: bool = False
    stock: bool = False
    covariance_dtype: str | None = "float64"  # None: kronfluence's own
    rank: int | None = None  # of query gradients; None: full
    damping: float | None = DAMPING  # None: kronfluence's heuristic
    seed: int = 0
    tf32: bool = False
    query_batch_size: int = 32
    train_batch_size: int = 64
    data_partitions: int | None = None  # None: so many that each takes some ten minutes
    rotate: str = "auto"  # a key of memory.ROTATE
    overwrite: bool = False
    profile: bool = False

    @property
    def precision(self) -> str:
        """What distinguishes results of one precision from another's."""
        names = ["bfloat16" if self.stock else "bfloat16 gradients"] if self.half else []
        return " and ".join(names + ["tf32"] * self.tf32) or "float32"

    @property
    def factors(self) -> str:
        """Name of the folder below influence/factors."""
        return factors_name(self.strategy, self.half, self.stock)

    @property
    def scores(self) -> str:
        """Name of the folder below influence/scores."""
        return scores_name(self.strategy, self.half, self.stock, self.rank, self.damping)


class Influence:
    """One run under one set of settings: fingerprints, and the work itself.

    folder and run: as `open_run` returns them. arguments: what is recorded beside scores as their command line.
    """

    def __init__(
        self, folder: Path, run: dict, train: GlueDataset, queries: GlueDataset, settings: Settings,
        arguments: dict | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.run, self.train, self.queries = folder, run, train, queries
        self.settings, self.arguments = settings, arguments or {}
        self.influence = folder / "influence"
        self.result = self.influence / "scores" / settings.scores
        identity = settings.strategy == "identity"
        self.factor_parts = {
            "weights": run["weights"], "training rows": run["train_rows"], "strategy": settings.strategy,
            "precision": settings.precision, "covariance type": settings.covariance_dtype,
            "path": "stock" if settings.stock else "eigenbasis", "seed": None if identity else settings.seed,
        }  # fmt: skip
        self.self_parts = self.factor_parts | {"damping": None if identity else repr(settings.damping)}
        self.score_parts = self.self_parts | {
            "query rows": queries.fingerprint(), "rank": settings.rank,
            "rank seed": settings.seed if settings.rank else None,
        }  # fmt: skip
        self._fitted = False  # in this process: overwriting replaces factors once, not for every kind of score

    # --- what is stored ---

    def parts(self, kind: str) -> dict:
        """The fingerprint of scores of kind "pairwise" or "self": its named parts."""
        return self.score_parts if kind == "pairwise" else self.self_parts

    def stored(self, kind: str) -> torch.Tensor | None:
        """Stored scores of kind "pairwise" (Q, N) or "self" (N,), None where there are none or they are damaged.

        Raises Refused where they were made from something else.
        """
        if self.settings.overwrite:
            return None
        record = refuse_if_stale(self.result / f"{kind}_scores.json", self.parts(kind), f"{kind} scores")
        if record is None:
            return None
        if not intact(self.result, record["files"]):
            print(f"{self.result}: {kind} scores are damaged and are computed again", file=sys.stderr)
            return None
        return load_file(self.result / f"{kind}_scores.safetensors")["all_modules"]

    def save(self, kind: str, scores: torch.Tensor, seconds: dict) -> None:
        """Stores complete scores, then the record that makes them count."""
        path = self.result / f"{kind}_scores.safetensors"
        (self.result / f"{kind}_scores.json").unlink(missing_ok=True)
        write_tensors(path, {"all_modules": scores})
        arguments = {name: str(value) for name, value in self.arguments.items()}
        write_json(self.result / f"{kind}_scores.json", {
            "fingerprint": self.parts(kind), "files": {path.name: sha256_of(path)}, "shape": list(scores.shape),
            "seconds": seconds, "arguments": arguments, **environment(self.analyzer.state.device),
        })  # fmt: skip

    # --- what is computed ---

    @functools.cached_property
    def analyzer(self) -> FolderAnalyzer:
        """kronfluence's Analyzer around the trained model, made when something must be computed."""
        settings, task = self.settings, InfluenceTask(self.settings.seed)
        model = AutoModelForSequenceClassification.from_pretrained(self.folder, dtype=torch.float32)
        if fingerprint_of_tensors(model.state_dict()) != self.run["weights"]:
            raise Refused(f"the weights in {self.folder} are not those that run.json describes; train again")
        prepare = prepare_stock_model if settings.stock else eigenbasis.prepare_model
        model = prepare(model, task)
        kwargs = {"folder": self.influence, "model": model, "task": task, "profile": settings.profile}
        kwargs["log_level"] = logging.WARNING
        if settings.stock:
            return FolderAnalyzer(**kwargs)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        budget = memory.affordable_tokens(model, device, settings.train_batch_size * self.run["max_length"])
        return EigenAnalyzer(**kwargs, token_budget=budget)

    def profile(self) -> str | None:
        """The table of actions and their seconds; None where nothing was computed."""
        return self.analyzer.profiler.summary() if "analyzer" in self.__dict__ else None

    def loading(self, **sizes) -> dict:
        """Batch sizes and collation for a kronfluence call; stock pads to the maximum length."""
        width = self.run["max_length"]
        collation = functools.partial(collate, pad_to=width if self.settings.stock else None)
        return sizes | {"dataloader_kwargs": DataLoaderKwargs(collate_fn=collation)}

    def plan(self) -> dict[str, int]:
        """Phase -> number of data partitions."""
        if self.settings.data_partitions:
            count = min(self.settings.data_partitions, len(self.train))
            return {"factors": count, "pairwise": count, "self": count}
        tokens, device = int(self.train.lengths.sum()), self.analyzer.state.device
        return memory.plan_partitions(self.analyzer.model, device, len(self.train), tokens, len(self.queries))

    def phases(self, kind: str, name: str, parts: dict) -> phases.Phases:
        """The work on "factors" or "scores" of this name, as far as an earlier run got."""
        folder = self.influence / "kronfluence" / f"{kind}_{name}"
        return phases.Phases(folder, parts, f"unfinished {kind}", self.plan(), self.settings.overwrite)

    def fit_factors(self) -> dict[str, float]:
        """Fits factors unless they are stored and intact; returns phase -> seconds."""
        name = self.settings.factors
        target = self.influence / "factors" / name
        replace = self.settings.overwrite and not self._fitted
        record = None if replace else refuse_if_stale(target / "factors.json", self.factor_parts, "factors")
        self._fitted = True
        if record and intact(target, record["files"]):
            return {}
        if record:
            print(f"{target}: factors are damaged and are fitted again", file=sys.stderr)
        shutil.rmtree(target, ignore_errors=True)
        work = self.phases("factors", name, self.factor_parts)
        factor_args = make_factor_arguments(self.settings)
        factor_args.covariance_data_partitions = factor_args.lambda_data_partitions = work.plan["factors"]
        loading = self.loading(per_device_batch_size=self.settings.train_batch_size)
        phases.fit_factors(self.analyzer, work, name, self.train, factor_args, loading)
        return work.record["seconds"]

    def compute(self, kind: str) -> torch.Tensor:
        """Stored scores of this kind, or new ones: pairwise (Q, N), self (N,), float32."""
        if (scores := self.stored(kind)) is not None:
            return scores
        start, settings = time.perf_counter(), self.settings
        seconds = self.fit_factors()
        name = f"{settings.scores}_{kind}"
        work = self.phases("scores", name, self.parts(kind))
        score_args = make_score_arguments(settings)
        score_args.data_partitions = work.plan[kind]
        loading = self.loading(per_device_train_batch_size=settings.train_batch_size)
        if kind == "pairwise":
            loading["per_device_query_batch_size"] = self.hold_queries(score_args)
        torch.manual_seed(settings.seed)  # low-rank projections
        scores = phases.compute_scores(
            self.analyzer, work, kind, name, settings.factors, self.queries, self.train, score_args, loading
        )
        seconds |= work.record["seconds"] | {"all": time.perf_counter() - start}
        self.save(kind, scores, seconds)
        shutil.rmtree(work.folder)
        return scores

    def hold_queries(self, score_args: ScoreArguments) -> int:
        """Chooses query batch and passes so that what is held of the queries fits into memory; returns the batch."""
        batch, count = self.settings.query_batch_size, len(self.queries)
        if self.settings.stock:
            return batch
        passes = memory.plan_queries(
            self.analyzer, self.train, self.queries, batch, score_args, self.settings.rotate
        )  # fmt: skip
        score_args.query_gradient_accumulation_steps = steps = -(-count // (passes * batch))
        return -(-count // (passes * steps))


def make_factor_arguments(settings: Settings) -> FactorArguments:
    """kronfluence's arguments. Half precision: per-example gradients and their products are bfloat16.

    Model, covariances and rotations are so in stock only. They cost little, and rounding before a rotation
    spreads noise over directions of small eigenvalue, which the inverse curvature blows up. Most of all in the
    covariances: rounding of sums in float32 turns eigenvectors of close eigenvalues into each other, so that the
    scores of two float32 runs with other batches differ; hence float64 there.
    """
    factor_args = FactorArguments(strategy=settings.strategy)
    if settings.half:
        factor_args.per_sample_gradient_dtype = factor_args.lambda_dtype = torch.bfloat16
    if settings.half and settings.stock:
        factor_args.amp_dtype = torch.bfloat16
        factor_args.activation_covariance_dtype = factor_args.gradient_covariance_dtype = torch.bfloat16
    if settings.covariance_dtype:
        dtype = getattr(torch, settings.covariance_dtype)
        factor_args.activation_covariance_dtype = factor_args.gradient_covariance_dtype = dtype
    return factor_args


def make_score_arguments(settings: Settings) -> ScoreArguments:
    """kronfluence's arguments; half precision as in `make_factor_arguments`."""
    score_args = ScoreArguments(damping_factor=settings.damping, query_gradient_low_rank=settings.rank)
    if settings.half:
        score_args.per_sample_gradient_dtype = score_args.score_dtype = torch.bfloat16
    if settings.half and settings.stock:
        score_args.amp_dtype = score_args.precondition_dtype = torch.bfloat16
    return score_args
