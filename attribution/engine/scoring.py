"""Scores in parts: in every pass some queries are preconditioned, and meet this process's parts of
the training rows.

Around kronfluence's inner functions (`compute_dot_products_with_loader`,
`compute_self_scores_with_loaders`), one call a part. Queries are in the order of `order_by_length`;
a pass has as many as fit into memory. Symbols: Q queries, N training rows, n rows of a part.
"""

import time
from dataclasses import dataclass, replace

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
from attribution.engine.batching import Part, order_by_length, runs_within
from attribution.engine.memory import SMALLEST_BUDGET, Plan
from attribution.engine.modules import tracked
from attribution.engine.resume import PartialResults, Work

DONE = "done"  # key of a snapshot: (parts, Q) queries that a part has met
STORED = torch.float32  # dtype of stored scores
# Fields of the plan that a process makes smaller when memory runs out.
SHRINKING = ("budget", "pass_queries", "query_batch")


@dataclass
class Scorer:
    """Scores of one kind for all training rows.

    factors: of `load_all_factors`, on the CPU. queries: the data set of queries (Q), or None for
    self-influence. The plan is that of `work`; a process that runs out of memory changes its own.
    """

    analyzer: EigenAnalyzer
    factors: dict
    factor_args: FactorArguments
    score_args: ScoreArguments
    train: GlueDataset
    queries: GlueDataset | None
    work: Work

    def __post_init__(self) -> None:
        self.kind = "self" if self.queries is None else "pairwise"
        self.count = 1 if self.queries is None else len(self.queries)
        self.plan = Plan(**self.work.plan)
        self.parts = self.plan.parts(self.train.lengths)
        self.blocks: dict[int, torch.Tensor] = {}  # part -> scores (Q, n)
        self.done: dict[int, torch.Tensor] = {}  # part -> (Q,) bool
        self.preconditioning = False  # whether queries are preconditioned at the moment

    def compute(self) -> torch.Tensor | None:
        """All scores on the main process, float32, in the order of the data sets: (Q, N) or (N,);
        None on other processes.
        """
        start = time.perf_counter()
        partial = PartialResults(self.work.folder / "progress" / self.kind, self.analyzer.processes)
        self.run(partial)
        earlier = partial.earlier()
        scores = self.gathered()
        changed = {name: getattr(self.plan, name) for name in SHRINKING}
        planned = {name: self.work.plan[name] for name in SHRINKING}
        self.work.record_replanned(self.kind, changed if changed != planned else {})
        self.work.record["seconds"][self.kind] = earlier + time.perf_counter() - start
        return scores

    def run(self, partial: PartialResults) -> None:
        """Computes this process's parts; when memory runs out, everything is released and planned
        again.
        """
        for tensors in partial.taken:
            numbers = sorted(int(name) for name in tensors if name != DONE)
            for i, done in zip(numbers, tensors[DONE], strict=True):
                self.blocks[i] = tensors[str(i)]
                self.done[i] = done
        for i in partial.remaining([self.madds(part.rows) for part in self.parts]):
            self.blocks[i] = torch.zeros(self.count, len(self.parts[i].rows), dtype=STORED)
            self.done[i] = torch.zeros(self.count, dtype=torch.bool)
        what = "Self-Influence" if self.queries is None else "Pairwise"
        while True:
            self.preconditioning = False
            try:
                with self.analyzer.profiler.profile(f"Compute {what} Score"):
                    if self.queries is None:
                        return self.run_self(partial)
                    return self.run_pairwise(partial)
            except Exception as error:
                if not is_out_of_memory(error) or not self.shrink():
                    raise
            self.analyzer.release()
            lengths = self.train.lengths
            self.parts = [part.within(lengths, self.plan.budget) for part in self.parts]

    def madds(self, rows: list[int]) -> float:
        """Multiply-adds over P of some rows: 6 a token for the model, gradient and rotations, one a
        row and query.
        """
        return 6.0 * float(self.train.lengths[rows].sum()) + self.count * len(rows)

    def shrink(self) -> bool:
        """Makes batches and passes smaller; False if they cannot be."""
        plan = self.plan
        if self.preconditioning and plan.query_batch > 1:
            self.plan = replace(plan, query_batch=plan.query_batch // 2)
            print(f"out of memory; going on with query batches of {self.plan.query_batch:,}")
            return True
        if plan.budget <= SMALLEST_BUDGET and plan.pass_queries == 1:
            return False
        budget = max(SMALLEST_BUDGET, plan.budget // 2)
        pass_queries = max(1, plan.pass_queries // 2)
        self.plan = replace(plan, budget=budget, pass_queries=pass_queries)
        print(
            f"out of memory; going on with batches of {budget:,} tokens and {pass_queries:,} "
            "queries a pass"
        )
        return True

    def run_pairwise(self, partial: PartialResults) -> None:
        """All passes over the queries; a pass skips the parts that have met its queries."""
        step = self.plan.pass_queries
        starts = range(0, self.count, step)
        for number, start in enumerate(starts):
            chosen = slice(start, min(start + step, self.count))
            todo = [i for i in sorted(self.blocks) if not self.done[i][chosen].all()]
            if not todo:
                continue
            self.preconditioning = True
            preconditioned = self.precondition(chosen)
            self.preconditioning = False
            for place, i in enumerate(todo):
                begin = (number + place / len(todo)) / len(starts)
                end = (number + (place + 1) / len(todo)) / len(starts)
                for module, value in preconditioned:
                    module.storage[names.ACCUMULATED_PRECONDITIONED_GRADIENT_NAME] = value
                scores = compute_dot_products_with_loader(
                    train_loader=self.loader(self.parts[i], (begin, end)),
                    scaler=GradScaler(enabled=False),
                    tracked_module_names=get_tracked_module_names(self.analyzer.model),
                    factor_args=self.factor_args,
                    score_args=self.score_args,
                    **self.analyzer.arguments(),
                )
                self.finish(i, chosen, scores[names.ALL_MODULE_NAME], partial)
            del preconditioned
        self.analyzer.release()

    def fresh_factors(self) -> dict:
        """The factors, with copies of float64 lambda matrices, which are inverted in place."""
        lambdas = self.factors.get(names.LAMBDA_MATRIX_NAME) or {}
        copies = {name: x.clone() for name, x in lambdas.items() if x.dtype == torch.float64}
        return self.factors | ({names.LAMBDA_MATRIX_NAME: copies} if copies else {})

    def precondition(self, chosen: slice) -> list[tuple]:
        """(module, its preconditioned queries) of these queries, as positions in their order."""
        plan = self.plan
        model = self.analyzer.model
        device = self.analyzer.state.device
        queries = self.queries
        assert queries is not None  # self-influence has no queries
        every = get_tracked_module_names(model)
        order = order_by_length(queries.lengths)[chosen]
        update_factor_args(model=model, factor_args=self.factor_args)
        update_score_args(model=model, score_args=self.score_args)
        set_mode(
            model=model,
            mode=ModuleMode.PRECONDITION_GRADIENT,
            tracked_module_names=every,
            release_memory=True,
        )
        for name, factors in self.fresh_factors().items():
            set_factors(model=model, factor_name=name, factors=factors)
        prepare_modules(model=model, tracked_module_names=every, device=device)
        for module in tracked(model):
            module.pass_queries = len(order)
            module.rotate_rows = plan.rotate_rows
        self.analyzer.take_rotated(plan.rotate_rows)
        for batch in runs_within(queries.lengths[order], plan.budget, plan.query_batch):
            values = {name: x.to(device) for name, x in queries.batch(order[batch]).items()}
            model.zero_grad(set_to_none=True)
            self.analyzer.task.compute_measurement(batch=values, model=model).backward()
            accumulate_iterations(model=model, tracked_module_names=every)
        model.zero_grad(set_to_none=True)
        key = names.ACCUMULATED_PRECONDITIONED_GRADIENT_NAME
        return [(module, module.storage[key]) for module in tracked(model)]

    def run_self(self, partial: PartialResults) -> None:
        """Self-influence of the missing parts: each row against itself, (1, n) a part."""
        self.analyzer.take_rotated(True)
        todo = sorted(i for i, done in self.done.items() if not done.all())
        for place, i in enumerate(todo):
            part = place / len(todo), (place + 1) / len(todo)
            scores = compute_self_scores_with_loaders(
                loaded_factors=self.fresh_factors(),
                train_loader=self.loader(self.parts[i], part),
                tracked_module_names=None,
                factor_args=self.factor_args,
                score_args=self.score_args,
                **self.analyzer.arguments(),
            )
            self.finish(i, slice(0, 1), scores[names.ALL_MODULE_NAME][None], partial)
        self.analyzer.release()

    def loader(self, part: Part, share: tuple[float, float]):
        """The part's batches as kronfluence iterates over them. share: of the phase."""
        phase = f"{self.kind} scores"
        return self.analyzer.loader(self.train, part.batches, part.ends, phase, part=share)

    def finish(
        self, part: int, chosen: slice, scores: torch.Tensor, partial: PartialResults
    ) -> None:
        """Takes the scores (queries, n) of a part; saves a snapshot if it is due."""
        self.blocks[part][chosen] = scores.to(STORED)
        self.done[part][chosen] = True
        if partial.due:
            parts = sorted(i for i, done in self.done.items() if done.any())
            tensors = {str(i): self.blocks[i] for i in parts}
            partial.save(tensors | {DONE: torch.stack([self.done[i] for i in parts])}, parts)

    def gathered(self) -> torch.Tensor | None:
        """Scores of all processes in the order of the data sets, on the main process."""
        processes = self.analyzer.processes
        numbers = sorted(self.blocks)
        every = processes.all_of(numbers)
        sizes = [(self.count, sum(len(self.parts[i].rows) for i in share)) for share in every]
        nothing = torch.empty(self.count, 0, dtype=STORED)
        own = torch.cat([nothing, *(self.blocks.pop(i) for i in numbers)], dim=1)
        full = torch.empty(self.count, len(self.train) if processes.main else 0, dtype=STORED)
        for rank, columns in processes.to_main(own, sizes):
            rows = [row for i in every[rank] for row in self.parts[i].rows]
            full[:, torch.tensor(rows, dtype=torch.long)] = columns
        if not processes.main:
            return None
        if self.queries is None:
            return full[0]
        scores = torch.empty_like(full)
        scores[torch.from_numpy(order_by_length(self.queries.lengths))] = full
        return scores
