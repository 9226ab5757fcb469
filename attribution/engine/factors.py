"""Factors fitted in parts: sums over the rows of all processes, in memory and on the disk.

Around kronfluence's inner functions (`fit_covariance_matrices_with_loader`,
`fit_lambda_matrices_with_loader`): one call a phase and process, over all parts of the process. The
sums stay in the modules; a snapshot is a flat dictionary whose keys name a factor and a module,
`factor|module`.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass

import torch
from kronfluence.arguments import FactorArguments
from kronfluence.factor.config import FactorConfig
from kronfluence.factor.covariance import fit_covariance_matrices_with_loader
from kronfluence.factor.eigen import fit_lambda_matrices_with_loader
from kronfluence.utils import constants as names

from attribution.data.dataset import GlueDataset
from attribution.engine.analyzer import EigenAnalyzer, is_out_of_memory
from attribution.engine.batching import Part
from attribution.engine.contractions import accumulator
from attribution.engine.memory import SMALLEST_BUDGET, Plan
from attribution.engine.modules import tracked
from attribution.engine.resume import PartialResults, Work
from attribution.files import write_bytes
from attribution.tensors import write_tensors

Sums = dict[str, torch.Tensor]  # flat, see above


def fit_factors(
    analyzer: EigenAnalyzer,
    work: Work,
    name: str,
    dataset: GlueDataset,
    factor_args: FactorArguments,
) -> None:
    """Fits the factors of the strategy on the first rows of the data set, and moves them to
    `influence/factors/<name>`.

    All processes of the launch take part; the main process writes.
    """
    config = FactorConfig.CONFIGS[factor_args.strategy]
    processes = analyzer.processes
    rows = dataset.first(factor_args.covariance_max_examples or len(dataset))
    shared = analyzer.arguments() | {"factor_args": factor_args}
    if processes.main:  # in kronfluence's format, which knows no checksum
        content = json.dumps(factor_args.to_dict())
        write_bytes(work.folder / "factor_arguments.json", content.encode())
    if config.requires_covariance_matrices:
        fit = functools.partial(fit_covariance_matrices_with_loader, **shared)
        Phase(analyzer, work, "covariance", rows, names.COVARIANCE_FACTOR_NAMES, fit).run()
    if config.requires_eigendecomposition:
        work.run(
            "eigendecomposition",
            [f"{factor}.safetensors" for factor in names.EIGENDECOMPOSITION_FACTOR_NAMES],
            lambda: analyzer.perform_eigendecomposition(name, factor_args),
        )
    if config.requires_lambda_matrices:
        eigen = None
        if config.requires_eigendecomposition_for_lambda:
            eigen = analyzer.load_eigendecomposition(name)
        fit = functools.partial(fit_lambda_matrices_with_loader, eigen_factors=eigen, **shared)
        stored = accumulator(factor_args.lambda_dtype)
        Phase(analyzer, work, "lambda", rows, names.LAMBDA_FACTOR_NAMES, fit, stored).run()
    if processes.main:
        work.keep_factors(analyzer.influence / "factors" / name, len(rows))
    processes.meet()


@dataclass
class Phase:
    """Sums of some factors over all rows, stored as kronfluence stores them.

    fit(loader=...): kronfluence's function, which runs the model over a loader. lambda_dtype: of
    the stored lambda matrix, which is summed in float64.
    """

    analyzer: EigenAnalyzer
    work: Work
    name: str
    dataset: GlueDataset
    factors: list[str]
    fit: Callable
    lambda_dtype: torch.dtype = torch.float32

    def run(self) -> None:
        """Fits and stores what is not stored."""
        files = [f"{factor}.safetensors" for factor in self.factors]
        self.work.run(self.name, files, self._compute)

    def _compute(self) -> None:
        analyzer = self.analyzer
        analyzer.task.phase = self.name
        plan = Plan(**self.work.plan)
        partial = PartialResults(self.work.folder / "progress" / self.name, analyzer.processes)
        sums, budget = self._sum_parts(partial, plan)
        self.work.earlier = partial.earlier()
        changed = {"budget": budget} if budget < plan.budget else {}
        self.work.record_replanned(self.name, changed)
        sums = self._sum_over_processes(sums)
        if analyzer.processes.main:
            self._store(sums)
        partial.remove()

    def _sum_parts(self, partial: PartialResults, plan: Plan) -> tuple[Sums, int]:
        """(sums over this process's parts, on the CPU, {} for none; final budget of a batch).

        When memory runs out, everything is released, and it continues from the snapshot with
        smaller batches.
        """
        lengths = self.dataset.lengths
        budget = plan.budget
        parts = plan.parts(lengths)
        mine = partial.remaining([float(lengths[part.rows].sum()) for part in parts])
        while True:
            try:
                return self._run_parts(partial, {i: parts[i] for i in mine}), budget
            except Exception as error:
                if not is_out_of_memory(error) or budget <= SMALLEST_BUDGET:
                    raise
            self.analyzer.release()
            partial.load()
            mine = [i for i in mine if i not in partial.parts]
            budget //= 2
            print(f"out of memory; going on with batches of {budget:,} tokens")
            parts = [part.within(lengths, budget) for part in parts]

    def _run_parts(self, partial: PartialResults, parts: dict[int, Part]) -> Sums:
        """Sums over the parts in one go; each continues the sums of the parts before it, bit for
        bit.
        """
        start = merged(partial.taken)
        partial.taken = []
        if not parts:
            return start
        analyzer = self.analyzer
        columns = analyzer.task.columns
        batches = [(i, *one) for i, part in parts.items() for one in part.passes(columns)]
        sums: Sums = {}

        def before(number: int) -> None:
            part, column, *_ = batches[number]
            analyzer.task.column = column
            analyzer.shared.first = column == 0
            if number == 0:
                self._put(start)
                start.clear()
            elif part != (done := batches[number - 1][0]):
                partial.parts.append(done)
                if partial.due:
                    partial.save(self._flat(), partial.parts)

        def after() -> None:
            sums.update(self._flat())
            for module in tracked(analyzer.model):
                for factor in self.factors:
                    # In place of the sums that kronfluence would copy to the CPU again.
                    module.storage[factor] = torch.zeros(())

        chosen = [batch for _, _, batch, _ in batches]
        ends = [end for *_, end in batches]
        loader = analyzer.loader(self.dataset, chosen, ends, self.name, before, after)
        with analyzer.profiler.profile(f"Fit {self.name.title()}"):
            self.fit(loader=loader)
        return sums

    def _flat(self) -> Sums:
        """Copies of the sums in the modules, on the CPU."""
        return {
            f"{factor}|{module.name}": module.storage[factor].to("cpu", copy=True)
            for module in tracked(self.analyzer.model)
            for factor in self.factors
        }

    def _put(self, sums: Sums) -> None:
        """Puts flat sums into the modules, which continue them; counters stay on the CPU."""
        modules = {module.name: module for module in tracked(self.analyzer.model)}
        for key, value in sums.items():
            factor, name = key.split("|")
            counter = value.dtype == torch.int64
            modules[name].storage[factor] = (
                value if counter else value.to(self.analyzer.state.device)
            )

    def _sum_over_processes(self, sums: Sums) -> Sums:
        """Sums over all processes; a process without parts takes part with zeros."""
        processes = self.analyzer.processes
        layouts = processes.all_of({key: (value.shape, value.dtype) for key, value in sums.items()})
        for key, (shape, dtype) in next(filter(None, layouts)).items():
            processes.add([sums.setdefault(key, torch.zeros(shape, dtype=dtype))])
        return sums

    def _store(self, sums: Sums) -> None:
        """Writes one file a factor, module -> tensor."""
        for factor in self.factors:
            tensors = {
                key.partition("|")[2]: value
                for key, value in sums.items()
                if key.startswith(f"{factor}|")
            }
            if factor == names.LAMBDA_MATRIX_NAME:
                tensors = {name: value.to(self.lambda_dtype) for name, value in tensors.items()}
            write_tensors(self.work.folder / f"{factor}.safetensors", tensors)


def merged(several: list[Sums]) -> Sums:
    """Sum of flat dictionaries with the same keys; {} for none."""
    total: Sums = dict(several[0]) if several else {}
    for other in several[1:]:
        for key, value in other.items():
            total[key] += value
    return total
