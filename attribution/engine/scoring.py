"""Scores in parts: what is held of the queries is made once a pass, then every part of this process
meets it.

Around kronfluence's inner functions (`compute_dot_products_with_loader`,
`compute_self_scores_with_loaders`), one call a part. Queries are in the order of `order_by_length`;
a pass is a run of them that fits into memory. Symbols: Q queries, N training rows, n rows of a
part.
"""

import time

import torch
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.module.tracked_module import ModuleMode
from kronfluence.module.utils import (
    accumulate_iterations,
    get_tracked_module_names,
    prepare_modules,
    set_factors,
    set_mode,
    update_factor_args,
    update_score_args,
)
from kronfluence.score.dot_product import compute_dot_products_with_loader
from kronfluence.score.self import compute_self_scores_with_loaders
from kronfluence.utils import constants as names
from torch.amp import GradScaler

from attribution.data.dataset import GlueDataset
from attribution.engine.analyzer import EigenAnalyzer, is_out_of_memory
from attribution.engine.batching import order_by_length, runs_within
from attribution.engine.modules import tracked
from attribution.engine.parts import SMALLEST_BUDGET, Kept, Part, divide
from attribution.engine.phases import Phases

DONE = "done"  # key of a file: (parts, Q) which queries a part has met

STORED = torch.float32  # type of scores as they are kept


class QueryPassFull(Exception):
    """Memory ran out while the queries of a pass were gone through."""


class Scorer:
    """Scores of one kind for all rows of `train`: queries (Q) is the query data set, or None for
    self scores.

    factors: as `load_all_factors` returns them, on the CPU. plan: of `phases`; what a process
    changes when its memory runs out is its own.
    """

    def __init__(
        self,
        analyzer: EigenAnalyzer,
        factors: dict,
        factor_args: FactorArguments,
        score_args: ScoreArguments,
        train: GlueDataset,
        queries: GlueDataset | None,
        phases: Phases,
    ) -> None:
        self.analyzer, self.factors, self.factor_args, self.score_args = (
            analyzer,
            factors,
            factor_args,
            score_args,
        )
        self.train, self.queries, self.phases, self.plan = train, queries, phases, phases.plan
        self.count = 1 if queries is None else len(queries)
        self.parts = divide(train.lengths, **self.plan["parts"])
        self.pass_queries, self.query_batch = (
            self.plan.get("pass_queries", 1),
            self.plan.get("query_batch", 1),
        )
        self.blocks: dict[int, torch.Tensor] = {}  # part -> scores (Q, n)
        self.done: dict[int, torch.Tensor] = {}  # part -> (Q,) bool

    @property
    def kind(self) -> str:
        """As scores of this kind are called."""
        return "self" if self.queries is None else "pairwise"

    def compute(self) -> torch.Tensor | None:
        """All scores on the main process, float32, in the data sets' order: (Q, N), or (N,); None
        on the others.
        """
        start = time.perf_counter()
        kept = Kept(self.phases.folder / "progress", self.kind, self.analyzer.processes)
        self.run(kept)
        earlier, scores = kept.earlier(), self.together()
        sizes = {"budget": self.analyzer.token_budget}
        if self.queries is not None:
            sizes |= {"pass_queries": self.pass_queries, "query_batch": self.query_batch}
        planned = self.phases.plan["parts"] | self.phases.plan
        changed = any(planned[name] != size for name, size in sizes.items())
        self.phases.go_on_with(self.kind, sizes if changed else {})
        self.phases.record["seconds"][self.kind] = earlier + time.perf_counter() - start
        return scores

    def run(self, kept: Kept) -> None:
        """Computes this process's parts; where memory runs out, everything is released and planned
        again.
        """
        self.take_over(kept)
        for i in kept.remaining([self.weight(part) for part in self.parts]):
            self.blocks[i] = torch.zeros(self.count, len(self.parts[i].rows), dtype=STORED)
            self.done[i] = torch.zeros(self.count, dtype=torch.bool)
        while True:
            try:
                action = (
                    "Compute Self-Influence Score"
                    if self.queries is None
                    else "Compute Pairwise Score"
                )
                with self.analyzer.profiler.profile(action):
                    return self.run_self(kept) if self.queries is None else self.run_pairwise(kept)
            except Exception as error:
                if not (full := isinstance(error, QueryPassFull)) and not is_out_of_memory(error):
                    raise
                if not self.shrink(full):
                    raise
            self.analyzer.release()
            self.parts = [
                part.within(self.train.lengths, self.analyzer.token_budget) for part in self.parts
            ]

    def weight(self, part: Part) -> float:
        """Multiply-adds over P: some 6 a token for the model, gradient and rotations, one a row and
        query.
        """
        return 6.0 * float(self.train.lengths[part.rows].sum()) + self.count * len(part.rows)

    def shrink(self, in_query_pass: bool) -> bool:
        """Smaller batches and fewer queries a pass; False where there is nothing left to make
        smaller.
        """
        if in_query_pass and self.query_batch > 1:
            self.query_batch //= 2
            print(f"out of memory; going on with query batches of {self.query_batch:,}")
            return True
        if self.analyzer.token_budget <= SMALLEST_BUDGET and self.pass_queries == 1:
            return False
        self.pass_queries = max(1, self.pass_queries // 2)
        self.analyzer.token_budget = max(SMALLEST_BUDGET, self.analyzer.token_budget // 2)
        size = f"{self.analyzer.token_budget:,} tokens"
        print(
            f"out of memory; going on with batches of {size} and {self.pass_queries:,} queries a "
            "pass"
        )
        return True

    # --- one kind and the other ---

    def run_pairwise(self, kept: Kept) -> None:
        """All passes over the queries; a pass skips the parts that have met its queries."""
        for start in range(0, self.count, self.pass_queries):
            chosen = slice(start, min(start + self.pass_queries, self.count))
            todo = [i for i in sorted(self.blocks) if not self.done[i][chosen].all()]
            if not todo:
                continue
            try:
                held = self.hold(chosen)
            except Exception as error:
                if is_out_of_memory(error):
                    raise QueryPassFull from None
                raise
            for i in todo:
                for module, value in held:
                    module.storage[names.ACCUMULATED_PRECONDITIONED_GRADIENT_NAME] = value
                scores = compute_dot_products_with_loader(
                    train_loader=self.loader(self.parts[i]),
                    scaler=GradScaler(enabled=False),
                    disable_tqdm=True,
                    tracked_module_names=get_tracked_module_names(self.analyzer.model),
                    **self.shared(),
                    score_args=self.score_args,
                )
                self.finish(i, chosen, scores[names.ALL_MODULE_NAME], kept)
            del held
        self.analyzer.release()

    def shared(self) -> dict:
        """What kronfluence's inner functions have in common."""
        analyzer = self.analyzer
        return {
            "model": analyzer.model,
            "state": analyzer.state,
            "task": analyzer.task,
            "factor_args": self.factor_args,
        }

    def hold(self, chosen: slice) -> list[tuple]:
        """(module, what it holds of these queries, as positions in their order), for every module."""
        model, state, queries = self.analyzer.model, self.analyzer.state, self.queries
        assert queries is not None  # self scores hold none
        every, order = get_tracked_module_names(model), order_by_length(queries.lengths)[chosen]
        self.prepare(ModuleMode.PRECONDITION_GRADIENT)
        for module in tracked(model):
            module.pass_queries, module.rotate_rows = len(order), self.plan["rotate_rows"]
        for batch in runs_within(
            queries.lengths[order], self.analyzer.token_budget, self.query_batch
        ):
            values = {
                name: value.to(state.device) for name, value in queries.batch(order[batch]).items()
            }
            model.zero_grad(set_to_none=True)
            self.analyzer.task.compute_measurement(batch=values, model=model).backward()
            accumulate_iterations(model=model, tracked_module_names=every)
        model.zero_grad(set_to_none=True)
        return [
            (m, m.storage[names.ACCUMULATED_PRECONDITIONED_GRADIENT_NAME]) for m in tracked(model)
        ]

    def prepare(self, mode: ModuleMode) -> None:
        """Puts the factors into the modules and makes the inverse curvature and the bases of them."""
        model = self.analyzer.model
        update_factor_args(model=model, factor_args=self.factor_args)
        update_score_args(model=model, score_args=self.score_args)
        every = get_tracked_module_names(model)
        set_mode(model=model, mode=mode, tracked_module_names=every, release_memory=True)
        for name, factors in self.factors.items():
            set_factors(model=model, factor_name=name, factors=factors)
        prepare_modules(model=model, tracked_module_names=every, device=self.analyzer.state.device)

    def run_self(self, kept: Kept) -> None:
        """Self-influence of the parts that are missing: each row against itself, (1, n) a part."""
        for i in [i for i in sorted(self.blocks) if not self.done[i].all()]:
            scores = compute_self_scores_with_loaders(
                loaded_factors=self.factors,
                train_loader=self.loader(self.parts[i]),
                disable_tqdm=True,
                tracked_module_names=None,
                score_args=self.score_args,
                **self.shared(),
            )
            self.finish(i, slice(0, 1), scores[names.ALL_MODULE_NAME][None], kept)
        self.analyzer.release()

    def loader(self, part: Part):
        """The part's batches as kronfluence iterates over them, with the progress bar of this kind
        of scores.
        """
        weights = [self.weight(Part([batch], [True])) for batch in part.batches]
        return self.analyzer.loader(
            self.train, part.batches, part.ends, weights, f"{self.kind} scores"
        )

    # --- what is kept ---

    def finish(self, part: int, chosen: slice, scores: torch.Tensor, kept: Kept) -> None:
        """Takes the scores (queries, n) of a part; saves what there is where it is time."""
        self.blocks[part][chosen] = scores.to(STORED)
        self.done[part][chosen] = True
        if kept.due:
            held = [i for i in sorted(self.blocks) if self.done[i].any()]
            tensors = {str(i): self.blocks[i] for i in held} | {
                DONE: torch.stack([self.done[i] for i in held])
            }
            kept.save(tensors, held)

    def take_over(self, kept: Kept) -> None:
        """Goes on from what this process had saved, or from what it took over."""
        for tensors in kept.loaded:
            numbers = sorted(int(name) for name in tensors if name != DONE)
            for i, done in zip(numbers, tensors[DONE], strict=True):
                self.blocks[i], self.done[i] = tensors[str(i)], done

    def together(self) -> torch.Tensor | None:
        """The blocks of all processes in the data sets' order, on the main process; None on the
        others.
        """
        numbers = sorted(self.blocks)
        every = self.analyzer.processes.all_of(numbers)
        sizes = [(self.count, sum(len(self.parts[i].rows) for i in share)) for share in every]
        nothing = torch.empty(self.count, 0, dtype=STORED)
        own = torch.cat([nothing, *(self.blocks.pop(i) for i in numbers)], dim=1)
        full = torch.empty(
            self.count, len(self.train) if self.analyzer.processes.main else 0, dtype=STORED
        )
        for rank, columns in self.analyzer.processes.to_main(own, sizes):
            rows = torch.tensor(
                [row for i in every[rank] for row in self.parts[i].rows], dtype=torch.long
            )
            full[:, rows] = columns
        if not self.analyzer.processes.main:
            return None
        if self.queries is None:
            return full[0]
        scores = torch.empty_like(full)
        scores[torch.from_numpy(order_by_length(self.queries.lengths).copy())] = full
        return scores
