"""One analysis of one run: names, fingerprints, what is stored, and the way from a model to its
scores.

    influence = Influence(folder, run, train, queries, Settings(strategy="ekfac"))
    scores = influence.compute("pairwise")          # (Q, N), stored ones or new ones

Symbols: Q queries, N training rows.
"""

import contextlib
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

from attribution.data.dataset import GlueDataset, collate
from attribution.engine import factors, memory, modules, phases, scoring
from attribution.engine.analyzer import EigenAnalyzer, FolderAnalyzer
from attribution.engine.phases import Phases
from attribution.files import (
    Refused,
    exclusive,
    fingerprint_of_tensors,
    intact,
    read_json,
    refuse_if_stale,
)
from attribution.influence import result
from attribution.influence.settings import (
    MAX_FACTOR_ROWS,
    Settings,
    make_factor_arguments,
    make_score_arguments,
)
from attribution.influence.stored import write_scores
from attribution.influence.support import check_attribution
from attribution.processes import ALONE, Processes
from attribution.provenance import environment
from attribution.training.fit import choose_device
from pipeline import InfluenceTask


class Influence:
    """One run under one set of settings: fingerprints, and the work itself.

    folder and run: as `open_run` returns them. arguments: what is recorded beside scores as their
    command line. suffix: of the name of the scores, where they are not those of the validation
    rows. processes: of this launch; they all do the same, and the main process writes.
    """

    def __init__(
        self,
        folder: Path,
        run: dict,
        train: GlueDataset,
        queries: GlueDataset,
        settings: Settings,
        arguments: dict | None = None,
        suffix: str = "",
        processes: Processes = ALONE,
    ) -> None:
        self.processes = processes
        self.folder, self.run, self.train, self.queries = folder, run, train, queries
        self.settings, self.arguments = settings, arguments or {}
        self.influence = folder / "influence"
        self.result = self.influence / "scores" / (settings.scores + suffix)
        identity = settings.strategy == "identity"
        self.factor_parts = {
            "weights": run["weights"],
            "training rows": run["train_rows"],
            "strategy": settings.strategy,
            "precision": settings.precision,
            "covariance type": settings.covariance_dtype,
            "path": "stock" if settings.stock else "eigenbasis",
            "seed": None if identity or settings.exact else settings.seed,
        }
        if settings.exact:
            self.factor_parts["fisher"] = "exact"
        if settings.max_factor_rows < len(train) and settings.max_factor_rows != MAX_FACTOR_ROWS:
            self.factor_parts["factor rows"] = settings.max_factor_rows
        if settings.covariance_products == "float32" and settings.covariance_dtype == "float64":
            self.factor_parts["covariance products"] = "float32"
        self.self_parts = self.factor_parts | {
            "damping": None if identity else repr(settings.damping)
        }
        self.score_parts = self.self_parts | {
            "query rows": queries.fingerprint(),
            "rank": settings.rank,
            "rank seed": settings.seed if settings.rank else None,
        }
        if settings.rank and not settings.stock:
            self.score_parts["rank draws"] = "by seed and module, outside of the eigenbasis"
        self.profiles: list[str] = []  # of what was let go
        self._fitted = (
            False  # in this process: overwriting replaces factors once, not for every kind of score
        )

    # --- what is stored ---

    def parts(self, kind: str) -> dict:
        """The fingerprint of scores of kind "pairwise" or "self": its named parts."""
        return self.score_parts if kind == "pairwise" else self.self_parts

    def stored(self, kind: str) -> torch.Tensor | None:
        """Stored scores of kind "pairwise" (Q, N) or "self" (N,), None where there are none or they
        are damaged.

        Raises Refused where they were made from something else.
        """
        if self.settings.overwrite:
            return None
        self._refuse_earlier_draws(kind)
        record = refuse_if_stale(
            self.result / f"{kind}_scores.json", self.parts(kind), f"{kind} scores"
        )
        if record is None:
            return None
        if not intact(self.result, record["files"]):
            print(
                f"{self.result}: {kind} scores are damaged and are computed again", file=sys.stderr
            )
            return None
        return load_file(self.result / f"{kind}_scores.safetensors")[result.KEY]

    def stored_row(self, query: int) -> torch.Tensor | None:
        """One query's stored pairwise scores (N,), read without the others; None where there are
        none, or damaged ones.

        Raises Refused as `stored` does.
        """
        self._refuse_earlier_draws("pairwise")
        path = self.result / "pairwise_scores.json"
        record = refuse_if_stale(path, self.parts("pairwise"), "pairwise scores")
        if record is None or "rows" not in record:  # an earlier version's
            scores = self.stored("pairwise")
            return None if scores is None else scores[query]
        return result.read_row(path.with_suffix(".safetensors"), record["rows"], query)

    def _refuse_earlier_draws(self, kind: str) -> None:
        """Raises Refused for low-rank scores of an earlier version, whose draws were others."""
        record, drawn = (
            read_json(self.result / f"{kind}_scores.json"),
            self.parts(kind).get("rank draws"),
        )
        if record and drawn and record.get("fingerprint", {}).get("rank draws") != drawn:
            raise Refused(
                f"the low-rank scores in {self.result} are of an earlier version, whose draws "
                "depended on the signs of eigenvectors; they are kept until you pass --overwrite, "
                "which makes factors and scores again"
            )

    def save(
        self, kind: str, scores: torch.Tensor, seconds: dict, work: dict | None = None
    ) -> None:
        """Stores complete scores, then the record that makes them count. work: the record of what
        they came from.
        """
        if not scores.isfinite().all():
            place = ", ".join(map(str, (~scores.isfinite()).nonzero()[0].tolist()))
            raise Refused(
                f"the {kind} scores are not finite (first at {place}), so nothing is stored; raise "
                "--damping_factor, or train with a lower --learning_rate"
            )
        arguments = {name: str(value) for name, value in self.arguments.items()}
        write_scores(
            self.result / f"{kind}_scores.json",
            scores,
            self.parts(kind),
            {
                "seconds": seconds,
                "arguments": arguments,
                **environment(choose_device()),
                **{
                    name: part
                    for name, part in (work or {}).items()
                    if name in ("plan", "replanned")
                },
            },
        )

    # --- what is computed ---

    @functools.cached_property
    def analyzer(self) -> FolderAnalyzer:
        """kronfluence's Analyzer around the trained model, made when something must be computed."""
        settings, outputs = self.settings, self.train.task.num_labels
        task = InfluenceTask(settings.seed, outputs if settings.exact else None)
        model = AutoModelForSequenceClassification.from_pretrained(self.folder, dtype=torch.float32)
        if fingerprint_of_tensors(model.state_dict()) != self.run["weights"]:
            raise Refused(
                f"the weights in {self.folder} are not those that run.json describes; train again"
            )
        device = choose_device()
        check_attribution(model, self.train)
        prepare = prepare_stock_model if settings.stock else modules.prepare_model
        model = prepare(model, task)
        kwargs = {
            "folder": self.influence,
            "model": model,
            "task": task,
            "profile": settings.profile,
        }
        kwargs["log_level"] = logging.WARNING
        if settings.stock:
            return FolderAnalyzer(**kwargs)
        for module in modules.tracked(model):
            module.projection_seed = settings.seed
            module.covariance_products = (
                torch.float32 if "covariance products" in self.factor_parts else None
            )
        budget = memory.affordable_tokens(
            model, device, settings.train_batch_size * self.run["max_length"]
        )
        analyzer = EigenAnalyzer(**kwargs, token_budget=budget, processes=self.processes)
        if analyzer.shared is None and task.columns > 1:
            raise Refused(
                "--fisher exact with more than two classes needs a model of linear layers only"
            )
        return analyzer

    def profile(self) -> str | None:
        """The tables of actions and their seconds; None where nothing was computed."""
        here = [self.analyzer.profiler.summary()] if "analyzer" in self.__dict__ else []
        return "\n".join([*self.profiles, *here]) or None

    def let_go(self) -> None:
        """Frees the model, and what is held beside it; it comes back where something must be
        computed.
        """
        self.profiles = [table] if (table := self.profile()) else []
        self.__dict__.pop("analyzer", None)

    def loading(self, **sizes) -> dict:
        """Batch sizes and collation for a kronfluence call; stock pads to the maximum length."""
        width = self.run["max_length"]
        collation = functools.partial(collate, pad_to=width if self.settings.stock else None)
        return sizes | {"dataloader_kwargs": DataLoaderKwargs(collate_fn=collation)}

    def plan(self, kind: str, score_args: ScoreArguments | None = None) -> dict:
        """How the work on "factors", "pairwise" or "self" is divided: what is stored, and kept on
        resuming.
        """
        settings, train, asked = self.settings, self.train, self.settings.data_partitions
        if settings.stock:
            device, tokens = self.analyzer.state.device, int(train.lengths.sum())
            found = memory.plan_partitions(
                self.analyzer.model, device, len(train), tokens, len(self.queries)
            )
            return {kind: min(asked, len(train)) if asked else found[kind]}
        lengths = train.lengths[: settings.max_factor_rows] if kind == "factors" else train.lengths
        queries = len(self.queries) if kind == "pairwise" else 0
        plan = {"parts": memory.plan_parts(self.analyzer, kind, lengths, queries, asked)}
        if kind == "pairwise":
            self.analyzer.token_budget = plan["parts"]["budget"]
            sizes = (
                self.analyzer,
                train,
                self.queries,
                settings.query_batch_size,
                score_args,
                settings.rotate,
            )
            plan |= memory.plan_passes(*sizes)
            plan["parts"]["group"] = memory.plan_group(
                self.analyzer, train, self.queries, score_args, plan
            )
        return plan

    def phases(self, kind: str, name: str, parts: dict, make_plan) -> Phases:
        """The work on "factors" or "scores" of this name, as far as an earlier run got."""
        folder = self.influence / "kronfluence" / f"{kind}_{name}"
        overwrite = self.settings.overwrite
        work = Phases(folder, parts, f"unfinished {kind}", make_plan, overwrite, self.processes)
        if not self.settings.stock:
            if "parts" not in work.plan:
                raise Refused(
                    f"the unfinished {kind} in {folder} are of an earlier version; delete them"
                )
            self.analyzer.token_budget = work.plan["parts"]["budget"]
        return work

    def fit_factors(self) -> dict[str, float]:
        """Fits factors unless they are stored and intact; returns phase -> seconds."""
        if self.processes.from_main(self._factors_are_stored):
            return {}
        name, settings = self.settings.factors, self.settings
        work = self.phases("factors", name, self.factor_parts, lambda: self.plan("factors"))
        factor_args = make_factor_arguments(settings)
        if settings.stock:
            factor_args.covariance_data_partitions = factor_args.lambda_data_partitions = work.plan[
                "factors"
            ]
            loading = self.loading(per_device_batch_size=settings.train_batch_size)
            phases.fit_factors(self.analyzer, work, name, self.train, factor_args, loading)
        else:
            factors.fit_in_parts(self.analyzer, work, name, self.train, factor_args)
        return work.record["seconds"]

    def _factors_are_stored(self) -> bool:
        """Whether factors are there; what is there and does not count is deleted. Raises Refused
        for others.
        """
        target = self.influence / "factors" / self.settings.factors
        replace = self.settings.overwrite and not self._fitted
        record = (
            None
            if replace
            else refuse_if_stale(target / "factors.json", self.factor_parts, "factors")
        )
        self._fitted = True
        if record and intact(target, record["files"]):
            return True
        if record:
            print(f"{target}: factors are damaged and are fitted again", file=sys.stderr)
        shutil.rmtree(target, ignore_errors=True)
        return False

    def compute(self, kind: str) -> torch.Tensor | None:
        """Stored scores of this kind, or new ones: pairwise (Q, N), self (N,), float32; only on the
        main process.

        Factors that another process is fitting are waited for; scores that it is computing are
        refused.
        """
        scores = self.stored(kind) if self.processes.main else None
        if self.processes.from_main(lambda: scores is not None):
            return scores
        start = time.perf_counter()
        with self._held(f"scores_{self.result.name}_{kind}"):
            scores, seconds, work = self._new_scores(kind)
            if self.processes.main:
                self.save(kind, scores, seconds | {"all": time.perf_counter() - start}, work.record)
                shutil.rmtree(work.folder)
            self.processes.meet()
        return scores

    def _held(self, name: str, wait_for: str | None = None):
        """A context that holds what is stored under this name; the main process does for all."""
        if not self.processes.main:
            return contextlib.nullcontext()
        return exclusive(self.influence / "kronfluence", f".lock_{name}", wait_for=wait_for)

    def _new_scores(self, kind: str) -> tuple:
        """(scores, seconds of phases, the work that they came from)."""
        settings = self.settings
        name, score_args = f"{self.result.name}_{kind}", make_score_arguments(settings)
        with contextlib.ExitStack() as stack:
            stack.enter_context(
                self._held(f"factors_{settings.factors}", f"the {settings.factors} factors")
            )
            seconds = self.fit_factors()
            if not settings.stock:
                with self.analyzer.profiler.profile("Load All Factors"):
                    factors = self.analyzer.load_all_factors(settings.factors)
                self.processes.meet()
                stack.close()
            work = self.phases(
                "scores", name, self.parts(kind), lambda: self.plan(kind, score_args)
            )
            if settings.stock:
                scores = self._stock_scores(kind, name, work, score_args)
            else:
                queries, factor_args = (
                    self.queries if kind == "pairwise" else None,
                    make_factor_arguments(settings),
                )
                sizes = self.analyzer, factors, factor_args, score_args, self.train, queries, work
                scores = scoring.Scorer(*sizes).compute()
        return scores, seconds | work.record["seconds"], work

    def _stock_scores(
        self, kind: str, name: str, work: Phases, score_args: ScoreArguments
    ) -> torch.Tensor:
        settings, score_args.data_partitions = self.settings, work.plan[kind]
        loading = self.loading(per_device_train_batch_size=settings.train_batch_size)
        if kind == "pairwise":
            loading["per_device_query_batch_size"] = settings.query_batch_size
        torch.manual_seed(settings.seed)  # low-rank projections
        return phases.compute_scores(
            self.analyzer,
            work,
            kind,
            name,
            settings.factors,
            self.queries,
            self.train,
            score_args,
            loading,
        )
