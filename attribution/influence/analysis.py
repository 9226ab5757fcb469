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
from pathlib import Path

import torch
from kronfluence.analyzer import prepare_model as prepare_stock_model
from kronfluence.arguments import ScoreArguments
from kronfluence.utils.dataset import DataLoaderKwargs
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from attribution.files import (
    Refused,
    environment,
    fingerprint_of_tensors,
    intact,
    read_json,
    refuse_if_stale,
    sha256_of,
    write_json,
    write_tensors,
)
from attribution.influence import eigenbasis, memory, phases
from attribution.influence.analyzer import EigenAnalyzer, FolderAnalyzer
from attribution.influence.settings import MAX_FACTOR_ROWS, Settings, make_factor_arguments, make_score_arguments
from attribution.influence.support import check_attribution
from attribution.rows import GlueDataset, collate
from attribution.training.fit import choose_device
from pipeline import InfluenceTask


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
        if settings.max_factor_rows < len(train) and settings.max_factor_rows != MAX_FACTOR_ROWS:
            self.factor_parts["factor rows"] = settings.max_factor_rows
        self.self_parts = self.factor_parts | {"damping": None if identity else repr(settings.damping)}
        self.score_parts = self.self_parts | {
            "query rows": queries.fingerprint(), "rank": settings.rank,
            "rank seed": settings.seed if settings.rank else None,
        }  # fmt: skip
        if settings.rank and not settings.stock:
            self.score_parts["rank draws"] = "by seed and module"
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
        self._refuse_earlier_draws(kind)
        record = refuse_if_stale(self.result / f"{kind}_scores.json", self.parts(kind), f"{kind} scores")
        if record is None:
            return None
        if not intact(self.result, record["files"]):
            print(f"{self.result}: {kind} scores are damaged and are computed again", file=sys.stderr)
            return None
        return load_file(self.result / f"{kind}_scores.safetensors")["all_modules"]

    def _refuse_earlier_draws(self, kind: str) -> None:
        """Raises Refused for low-rank scores of an earlier version, whose draws depended on batches and partitions."""
        record = read_json(self.result / f"{kind}_scores.json")
        if record and "rank draws" in self.parts(kind) and "rank draws" not in record.get("fingerprint", {}):
            raise Refused(
                f"the low-rank scores in {self.result} are of an earlier version, whose draws depended on how the work "
                "was cut up; they are kept until you pass --overwrite, which makes factors and scores again"
            )

    def save(self, kind: str, scores: torch.Tensor, seconds: dict) -> None:
        """Stores complete scores, then the record that makes them count."""
        if not scores.isfinite().all():
            place = ", ".join(map(str, (~scores.isfinite()).nonzero()[0].tolist()))
            raise Refused(
                f"the {kind} scores are not finite (first at {place}), so nothing is stored; raise --damping_factor, "
                "or train with a lower --learning_rate"
            )
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
        device = choose_device()
        check_attribution(model, self.train)
        prepare = prepare_stock_model if settings.stock else eigenbasis.prepare_model
        model = prepare(model, task)
        kwargs = {"folder": self.influence, "model": model, "task": task, "profile": settings.profile}
        kwargs["log_level"] = logging.WARNING
        if settings.stock:
            return FolderAnalyzer(**kwargs)
        for module in eigenbasis.tracked(model):
            module.projection_seed = settings.seed
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
