"""Scores of one checkpoint: factors of its curvature, scores with them, and their fingerprints.

Symbols: Q queries, N training rows.
"""

import contextlib
import dataclasses
import functools
import logging
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from kronfluence.analyzer import prepare_model as prepare_stock_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.utils.constants import GRADIENT_EIGENVALUES_NAME

from attribution.data.dataset import GlueDataset
from attribution.engine import factors, memory, modules, scoring, stock
from attribution.engine.analyzer import EigenAnalyzer, FolderAnalyzer
from attribution.engine.resume import Work
from attribution.engine.task import InfluenceTask
from attribution.files import Refused, exclusive, intact, refuse_if_stale
from attribution.influence.settings import Settings
from attribution.influence.stored import KEY, ScoreFolder, folder_of
from attribution.processes import ALONE, Processes, choose_device
from attribution.provenance import environment
from attribution.tensors import fingerprint_of_tensors
from attribution.training.run import Run
from attribution.training.support import check_attribution

# Strategy -> phases of its factors.
PHASES = {
    "identity": (),
    "diagonal": ("lambda",),
    "kfac": ("covariance", "eigendecomposition"),
    "ekfac": ("covariance", "eigendecomposition", "lambda"),
}


@dataclass(eq=False)
class Scored:
    """Rows, queries and settings of which there are scores.

    arguments: command line recorded beside scores. suffix: end of the name of scores of custom
    queries. processes: of this launch; all of them do the same, and the main process writes.
    """

    run: Run
    train: GlueDataset
    queries: GlueDataset
    settings: Settings
    arguments: dict = field(default_factory=dict)
    suffix: str = ""
    processes: Processes = ALONE
    scores: ScoreFolder = field(init=False)
    # Kinds of scores computed here: overwriting replaces them once in a process.
    computed: set[str] = field(init=False, default_factory=set)

    def stored_unless_overwritten(self, kind: str) -> np.ndarray | None:
        """Stored scores on the main process; None on other processes, without any, or to
        overwrite.
        """
        overwrite = self.settings.overwrite and kind not in self.computed
        return None if overwrite or not self.processes.main else self.scores.load(kind)


@dataclass(eq=False)
class Analysis(Scored):
    """Factors and scores of one checkpoint under one set of settings."""

    def __post_init__(self) -> None:
        self.settings = settings = self.settings.for_run(self.run)
        self.folder = self.run.folder / "influence"
        rows = len(self.train)
        self.factor_parts = self.run.trained | settings.parts("factors", rows)
        self.scores = folder_of(self.run, settings, rows, self.queries.fingerprint(), self.suffix)
        self.about = {
            "arguments": {name: str(value) for name, value in self.arguments.items()},
            "custom_queries": bool(self.suffix),
        }
        self.profiles: list[str] = []  # of models that were released
        # Overwriting replaces factors once in a process, not again for another kind of score.
        self._fitted = False

    def checked_model(self) -> torch.nn.Module:
        """Trained model. Raises Refused if its weights are not those of run.json, or if scores of
        such a model would be wrong.
        """
        model = self.run.model()
        if fingerprint_of_tensors(model.state_dict()) != self.run.weights:
            raise Refused(
                f"the weights in {self.run.folder} are not those that run.json describes; train "
                "again"
            )
        check_attribution(model, self.train)
        return model

    @functools.cached_property
    def analyzer(self) -> FolderAnalyzer:
        """kronfluence's Analyzer around the trained model, made when something must be computed."""
        settings = self.settings
        model = self.checked_model()
        task = InfluenceTask(settings.seed, model.num_labels if settings.exact else None)
        common = {"profile": settings.profile, "log_level": logging.WARNING}
        if settings.stock:
            model = prepare_stock_model(model, task)
            return FolderAnalyzer(self.folder, model, task, **common)
        all_rows = settings.max_factor_rows >= len(self.train)
        spanned = all_rows, all_rows and not self.few_labels
        model = modules.prepare_model(model, task)
        for module in modules.tracked(model):
            module.projection_seed = settings.seed
            mixed = settings.covariances == "mixed"
            module.covariance_products = torch.float32 if mixed else None
            module.spanned = spanned
        one_output = self.run.num_labels <= 2
        return EigenAnalyzer(self.folder, model, task, self.processes, one_output, **common)

    def logits_of_rows(self) -> torch.Tensor | None:
        """Logits (N, C) of the training rows, as they passed in this process; None unless all did
        and were kept.
        """
        analyzer = self.__dict__.get("analyzer")
        tape = analyzer.shared.tape if isinstance(analyzer, EigenAnalyzer) else None
        return None if tape is None else tape.logits(len(self.train))

    @property
    def few_labels(self) -> bool:
        """Whether the gradients behind the factors are of some of a row's labels only: those of two
        labels are multiples of one another, those of more labels are not.
        """
        return not self.settings.exact and self.run.num_labels > 2

    def undetermined(self, loaded: dict) -> bool:
        """Whether these factors leave scores undetermined, so that they depend on rounding; printed
        where such factors were asked for, and recorded beside the scores.

        Where no gradient of a sampled label reaches, any eigenvectors are as good as others, but
        lambda, from other labels, gives each its own eigenvalue; scores depend on the choice.
        """
        settings = self.settings
        if settings.factor_strategy != "ekfac" or not self.few_labels:
            return False
        values = loaded[GRADIENT_EIGENVALUES_NAME].values()
        if not any(modules.unreached(one).sum() > 1 for one in values):
            return False
        rows = min(settings.max_factor_rows, len(self.train))
        asked = settings.fisher == "sampled" or rows < len(self.train)
        if asked and self.processes.main:
            print(
                f"the labels sampled for {rows:,} rows leave part of the curvature undetermined: "
                "scores differ by some percent with the batch size and the number of processes; "
                "--fisher exact determines all of it",
                file=sys.stderr,
            )
        return True

    def tables(self) -> list[str]:
        """Tables of actions and their seconds, of every model that computed something."""
        here = [self.analyzer.profiler.summary()] if "analyzer" in self.__dict__ else []
        return [*self.profiles, *filter(None, here)]

    def release(self) -> None:
        """Frees the model; it is opened again if something must be computed."""
        self.profiles = self.tables()
        self.__dict__.pop("analyzer", None)

    def plan(self, kind: str) -> dict:
        """Division of work on "factors", "pairwise" or "self" scores: stored, kept on resuming."""
        settings = self.settings
        lengths = self.train.lengths
        if settings.stock:
            tokens = int(lengths.sum())
            sizes = len(lengths), tokens, len(self.queries)
            return stock.plan_partitions(self.analyzer, kind, *sizes)
        if kind == "factors":
            lengths = lengths[: settings.max_factor_rows]
        assert isinstance(self.analyzer, EigenAnalyzer)
        device = self.analyzer.state.device
        shapes = memory.shapes_of(self.analyzer.model)
        where = shapes, device, self.processes
        wanted = settings.train_batch_size * self.run.max_length
        budget = memory.affordable_tokens(memory.features_of(shapes), device, wanted)
        queries = len(self.queries) if kind == "pairwise" else 0
        plan = memory.plan_parts(*where, kind, budget, lengths, queries)
        if kind == "pairwise":
            plan = memory.plan_pairwise(
                plan,
                *where,
                lengths,
                self.queries.lengths,
                settings.query_batch_size,
                make_score_arguments(settings),
                self.analyzer.shared.tape is not None,
            )
        return dataclasses.asdict(plan)

    def work(self, kind: str, name: str, parts: dict, plan_kind: str) -> Work:
        """Work on "factors" or "scores" of this name, as far as an earlier run got.

        parts: its fingerprint. plan_kind: kind of its plan, see `plan`.
        """
        folder = self.folder / "kronfluence" / f"{kind}_{name}"
        plan = functools.partial(self.plan, plan_kind)
        how = plan, self.settings.overwrite, self.processes
        replaceable = kind == "scores" and bool(self.suffix)
        return Work(folder, parts, f"unfinished {kind}", *how, replaceable=replaceable)

    def fit_factors(self) -> dict[str, float]:
        """Seconds of each phase of fitting the factors, which are stored if they are not yet."""
        stored = self.processes.from_main(self._stored_factors)
        if stored is not None:
            return stored["seconds"]
        name = self.settings.factors_name
        work = self.work("factors", name, self.factor_parts, "factors")
        factor_args = make_factor_arguments(self.settings)
        if self.settings.stock:
            size = self.settings.train_batch_size
            batches = stock.loading(self.run.max_length, per_device_batch_size=size)
            stock.fit_factors(self.analyzer, work, name, self.train, factor_args, batches)
        else:
            factors.fit_factors(self.analyzer, work, name, self.train, factor_args)
        return work.record["seconds"]

    def _stored_factors(self) -> dict | None:
        """Record of intact stored factors; deletes damaged ones, and those to be overwritten."""
        target = self.folder / "factors" / self.settings.factors_name
        record = None
        if self._fitted or not self.settings.overwrite:
            record = refuse_if_stale(target / "factors.json", self.factor_parts, "factors")
        self._fitted = True
        if record and intact(target, record["files"]):
            return record
        if record:
            print(f"{target}: factors are damaged and are fitted again", file=sys.stderr)
        shutil.rmtree(target, ignore_errors=True)
        return None

    def compute(self, kind: str) -> np.ndarray | None:
        """Stored scores of this kind, or new ones: pairwise (Q, N), self (N,), float32.

        None on all processes but the main one. Waits for factors that another process is fitting;
        raises Refused for scores that another process is computing.
        """
        scores = self.stored_unless_overwritten(kind)
        if self.processes.from_main(lambda: scores is not None):
            return scores
        start = time.perf_counter()
        with self._held(f"scores_{self.scores.place(kind).name}_{kind}"):
            found, made, folder = self._new_scores(kind)
            if self.processes.main:
                arrays = {name: values.numpy() for name, values in found.items()}
                scores = arrays[KEY]
                made["seconds"] |= {"all": time.perf_counter() - start}
                # Self-influence is no part of a custom query, and is not forgotten with it.
                about = {} if kind == "self" and self.suffix else self.about
                self.scores.save(kind, arrays, about | environment(choose_device()) | made)
                if folder is not None:
                    shutil.rmtree(folder)
            self.computed.add(kind)
            self.processes.meet()
        return scores

    def phases(self, kind: str) -> dict[str, float]:
        """Phases of scores of this kind, by weights: about how long they take, see `progress`.

        A mean over members takes self scores too.
        """
        names = [*PHASES[self.settings.factor_strategy], f"{kind} scores"]
        if not self.settings.single:
            names.append("self scores")
        return dict.fromkeys(names, float(len(self.train)))

    def divisor(self) -> float | None:
        """Number by which a mean over members divides this checkpoint's scores of any queries: its
        mean self-influence. None on all processes but the main one.
        """
        scores = self.compute("self")
        return None if scores is None else float(scores.mean(dtype=np.float64))

    def _held(self, name: str, wait_for: str | None = None):
        """Context in which the main process holds the lock of results of this name, for all."""
        if not self.processes.main:
            return contextlib.nullcontext()
        return exclusive(self.folder / "kronfluence", f".lock_{name}", wait_for=wait_for)

    def _new_scores(self, kind: str) -> tuple[dict[str, torch.Tensor], dict, Path | None]:
        """(arrays to be stored, scores under KEY; entries of their JSON; folder of unfinished work
        that they end).
        """
        scores, seconds, work = self._with_factors(kind)
        if not self.processes.main:
            return {}, {}, None
        known = ("plan", "replanned", "undetermined")
        made = {name: work.record[name] for name in known if name in work.record}
        return {KEY: scores}, made | {"seconds": seconds | work.record["seconds"]}, work.folder

    def _with_factors(self, kind: str) -> tuple[torch.Tensor, dict[str, float], Work]:
        """(scores, seconds of fitting factors, work from which they came)."""
        settings = self.settings
        score_args = make_score_arguments(settings)
        factors_name = settings.factors_name
        name = f"{self.scores.place(kind).name}_{kind}"
        with self._held(f"factors_{factors_name}", f"the {factors_name} factors"):
            seconds = self.fit_factors()
            if settings.stock:
                work = self.work("scores", name, self.scores.parts[kind], kind)
                batches = {"per_device_train_batch_size": settings.train_batch_size}
                if kind == "pairwise":
                    batches["per_device_query_batch_size"] = settings.query_batch_size
                torch.manual_seed(settings.seed)  # of low-rank projections
                scores = stock.compute_scores(
                    self.analyzer,
                    work,
                    kind,
                    name,
                    factors_name,
                    self.queries,
                    self.train,
                    score_args,
                    stock.loading(self.run.max_length, **batches),
                )
                return scores, seconds, work
            with self.analyzer.profiler.profile("Load All Factors"):
                loaded = self.analyzer.load_all_factors(factors_name)
            undetermined = kind == "pairwise" and self.undetermined(loaded)
            self.processes.meet()
        work = self.work("scores", name, self.scores.parts[kind], kind)
        if undetermined:
            work.record["undetermined"] = True
        scorer = scoring.Scorer(
            self.analyzer,
            loaded,
            make_factor_arguments(settings),
            score_args,
            self.train,
            self.queries if kind == "pairwise" else None,
            work,
        )
        return scorer.compute(), seconds, work


def make_factor_arguments(settings: Settings) -> FactorArguments:
    """kronfluence's arguments. Half precision: gradients of rows and their products in bfloat16.

    Model, covariances and rotations are in bfloat16 with stock kronfluence only. They cost little,
    and rounding before a rotation spreads noise over directions of small eigenvalue, which the
    inverse curvature blows up. Covariances suffer most: rounding of sums in float32 turns
    eigenvectors of close eigenvalues into each other, so that the scores of two float32 runs with
    other batches differ; hence float64 there.
    """
    factor_args = FactorArguments(strategy=settings.factor_strategy)
    factor_args.covariance_max_examples = settings.max_factor_rows
    factor_args.lambda_max_examples = settings.max_factor_rows
    if settings.use_half_precision:
        factor_args.per_sample_gradient_dtype = torch.bfloat16
        factor_args.lambda_dtype = torch.bfloat16
    covariances = settings.covariances
    if settings.use_half_precision and settings.stock:
        factor_args.amp_dtype = torch.bfloat16
        covariances = covariances or "bfloat16"
    if covariances:
        dtype = torch.float64 if covariances == "mixed" else getattr(torch, covariances)
        factor_args.activation_covariance_dtype = dtype
        factor_args.gradient_covariance_dtype = dtype
    return factor_args


def make_score_arguments(settings: Settings) -> ScoreArguments:
    """kronfluence's arguments; half precision as in `make_factor_arguments`."""
    score_args = ScoreArguments(
        damping_factor=settings.damping_factor,
        query_gradient_low_rank=settings.query_gradient_rank,
    )
    if settings.use_half_precision:
        score_args.per_sample_gradient_dtype = torch.bfloat16
        score_args.score_dtype = torch.bfloat16
    if settings.use_half_precision and settings.stock:
        score_args.amp_dtype = torch.bfloat16
        score_args.precondition_dtype = torch.bfloat16
    return score_args
