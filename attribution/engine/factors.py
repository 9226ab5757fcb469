"""Factors in parts: sums over the rows of all processes, kept in memory and on the disk while they
grow.

Around kronfluence's inner functions (`fit_covariance_matrices_with_loader`,
`fit_lambda_matrices_with_loader`): one call a phase and process, over all parts of the process. The
sums stay in the modules; a snapshot is a flat dictionary whose keys name a factor and the modules
that share it, `factor|module|module`.
"""

import json

import torch
from kronfluence.arguments import FactorArguments
from kronfluence.factor.config import FactorConfig
from kronfluence.factor.covariance import fit_covariance_matrices_with_loader
from kronfluence.factor.eigen import fit_lambda_matrices_with_loader
from kronfluence.utils import constants as names

from attribution.data.dataset import GlueDataset
from attribution.engine.analyzer import EigenAnalyzer, is_out_of_memory
from attribution.engine.modules import tracked
from attribution.engine.parts import SMALLEST_BUDGET, Kept, Part, divide
from attribution.engine.phases import Phases, keep_factors
from attribution.files import write_bytes, write_tensors


def fit_in_parts(
    analyzer: EigenAnalyzer,
    phases: Phases,
    name: str,
    dataset: GlueDataset,
    factor_args: FactorArguments,
) -> None:
    """Fits what the strategy needs, on the first rows of the data set, and moves it to
    `influence/factors/<name>`.

    All processes of the launch take part; the main process writes.
    """
    config, processes = FactorConfig.CONFIGS[factor_args.strategy], analyzer.processes
    rows = dataset.first(factor_args.covariance_max_examples or len(dataset))
    shared = {
        "model": analyzer.model,
        "state": analyzer.state,
        "task": analyzer.task,
        "factor_args": factor_args,
    }
    if processes.main:
        content = json.dumps(
            factor_args.to_dict()
        )  # in kronfluence's format, which knows no checksum
        write_bytes(phases.folder / "factor_arguments.json", content.encode())
    if config.requires_covariance_matrices:

        def covariance(loader):
            with analyzer.profiler.profile("Fit Covariance"):
                fit_covariance_matrices_with_loader(loader=loader, disable_tqdm=True, **shared)

        sum_up(analyzer, phases, "covariance", rows, names.COVARIANCE_FACTOR_NAMES, covariance)
    if config.requires_eigendecomposition:
        patterns = tuple(
            f"{factor}.safetensors" for factor in names.EIGENDECOMPOSITION_FACTOR_NAMES
        )
        decompose = lambda: analyzer.perform_eigendecomposition(name, factor_args)  # noqa: E731
        phases.run("eigendecomposition", patterns, decompose)
    if config.requires_lambda_matrices:
        eigen = (
            analyzer.load_eigendecomposition(name)
            if config.requires_eigendecomposition_for_lambda
            else None
        )

        def lambdas(loader):
            with analyzer.profiler.profile("Fit Lambda"):
                fit_lambda_matrices_with_loader(
                    loader=loader, eigen_factors=eigen, disable_tqdm=True, **shared
                )

        sum_up(analyzer, phases, "lambda", rows, names.LAMBDA_FACTOR_NAMES, lambdas)
    if processes.main:
        keep_factors(phases, analyzer.influence / "factors" / name, len(rows))
    processes.meet()


def sum_up(
    analyzer: EigenAnalyzer,
    phases: Phases,
    phase: str,
    dataset: GlueDataset,
    factors: list[str],
    fit,
) -> None:
    """One phase: sums of these factors over all rows, stored as kronfluence stores them.
    fit(loader) runs a loader.
    """

    def call() -> None:
        analyzer.task.phase, budget = phase, analyzer.token_budget
        kept = Kept(phases.folder / "progress", phase, analyzer.processes)
        sums = add_parts(
            analyzer, kept, divide(dataset.lengths, **phases.plan["parts"]), dataset, factors, fit
        )
        phases.earlier = kept.earlier()
        phases.go_on_with(
            phase, {"budget": analyzer.token_budget} if analyzer.token_budget < budget else {}
        )
        sums = over_processes(analyzer, sums)
        if analyzer.processes.main:
            store(phases, factors, sums)
        kept.remove()

    phases.run(phase, tuple(f"{factor}.safetensors" for factor in factors), call)


def add_parts(
    analyzer: EigenAnalyzer,
    kept: Kept,
    parts: list[Part],
    dataset: GlueDataset,
    factors: list[str],
    fit,
) -> dict[str, torch.Tensor]:
    """Sums over what this process had and over its share of the parts that are left, flat, on the
    CPU; {} for nothing.

    Where memory runs out, everything is released, and it goes on from what was saved with smaller
    batches.
    """
    mine = kept.remaining([float(dataset.lengths[part.rows].sum()) for part in parts])
    while True:
        try:
            return run_parts(analyzer, kept, {i: parts[i] for i in mine}, dataset, factors, fit)
        except Exception as error:
            if not is_out_of_memory(error) or analyzer.token_budget <= SMALLEST_BUDGET:
                raise
        analyzer.release()
        kept.load()
        mine = [i for i in mine if i not in kept.parts]
        analyzer.token_budget //= 2
        print(f"out of memory; going on with batches of {analyzer.token_budget:,} tokens")
        parts = [part.within(dataset.lengths, analyzer.token_budget) for part in parts]


def run_parts(
    analyzer: EigenAnalyzer,
    kept: Kept,
    parts: dict[int, Part],
    dataset: GlueDataset,
    factors: list[str],
    fit,
) -> dict[str, torch.Tensor]:
    """What `add_parts` returns, in one go. The sums of a part go on from those of the parts before
    it, bit for bit.
    """
    start = merged(kept.loaded)
    kept.loaded = []
    if not parts:
        return start
    columns = analyzer.task.columns
    batches = [(i, *one) for i, part in parts.items() for one in part.passes(columns)]
    sums: dict[str, torch.Tensor] = {}

    def before(number: int) -> None:
        analyzer.task.column = batches[number][1]
        if analyzer.shared is not None:
            analyzer.shared.first = analyzer.task.column == 0
        if number == 0:
            put(analyzer, start)
            start.clear()
        elif batches[number][0] != (done := batches[number - 1][0]):
            kept.parts.append(done)
            if kept.due and analyzer.shared is not None:
                kept.save(flat(analyzer, factors), kept.parts)

    def after() -> None:
        sums.update(
            {key: value.to("cpu", copy=True) for key, value in flat(analyzer, factors).items()}
        )
        for module in tracked(analyzer.model):
            for factor in factors:
                module.storage[factor] = torch.zeros(
                    ()
                )  # instead of what kronfluence would copy to the CPU again

    chosen = [batch for _, _, batch, _ in batches]
    weights = [float(dataset.lengths[batch].sum()) for batch in chosen]
    ends = [end for *_, end in batches]
    fit(analyzer.loader(dataset, chosen, ends, weights, analyzer.task.phase, before, after))
    return sums


def flat(analyzer: EigenAnalyzer, factors: list[str]) -> dict[str, torch.Tensor]:
    """The sums in the modules, each once: modules that share one stand in its key."""
    known: dict[tuple[str, int], list[str]] = {}
    tensors = {}
    for module in tracked(analyzer.model):
        for factor in factors:
            tensor = module.storage[factor]
            known.setdefault((factor, tensor.data_ptr()), []).append(module.name)
            tensors[factor, tensor.data_ptr()] = tensor
    return {
        "|".join([factor, *known[factor, place]]): tensor
        for (factor, place), tensor in tensors.items()
    }


def put(analyzer: EigenAnalyzer, sums: dict[str, torch.Tensor]) -> None:
    """Puts flat sums into the modules, which go on from them; counters stay on the CPU."""
    modules = {module.name: module for module in tracked(analyzer.model)}
    for key, value in sums.items():
        factor, *owners = key.split("|")
        tensor = value if value.dtype == torch.int64 else value.to(analyzer.state.device)
        for owner in owners:
            modules[owner].storage[factor] = tensor


def merged(several: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The sum of several flat dictionaries with the same keys; {} for none."""
    total: dict[str, torch.Tensor] = dict(several[0]) if several else {}
    for other in several[1:]:
        for key, value in other.items():
            total[key] += value
    return total


def over_processes(
    analyzer: EigenAnalyzer, sums: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The sum over all processes; one without parts takes part with zeros."""
    processes = analyzer.processes
    layouts = processes.all_of(
        {key: (tuple(value.shape), value.dtype) for key, value in sums.items()}
    )
    layout = next(layout for layout in layouts if layout)
    if any(other not in ({}, layout) for other in layouts):
        raise RuntimeError(
            "modules share an input in one process and not in another; pass --stock in one process"
        )
    for key, (shape, dtype) in layout.items():
        sums.setdefault(key, torch.zeros(shape, dtype=dtype))
    processes.add([sums[key] for key in sorted(layout)])
    return sums


def store(phases: Phases, factors: list[str], sums: dict[str, torch.Tensor]) -> None:
    """Writes one file a factor, module -> tensor, lambda in float32."""
    for factor in factors:
        tensors: dict[str, torch.Tensor] = {}
        for key, value in sums.items():
            name, *owners = key.split("|")
            if name == factor:
                value = value.float() if factor == names.LAMBDA_MATRIX_NAME else value
                tensors |= {
                    owner: value if owner == owners[0] else value.clone() for owner in owners
                }
        write_tensors(phases.folder / f"{factor}.safetensors", tensors)
