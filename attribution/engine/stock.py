"""Stock kronfluence (`--stock`): factors and scores by its public calls.

Rows are padded to the maximum length. kronfluence writes in place and takes existence for
completeness, so it works in a separate folder; long phases are divided into its data partitions,
each recorded once it is finished.
"""

import functools
import math

import torch
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.factor.config import FactorConfig
from kronfluence.utils import constants as names
from kronfluence.utils.dataset import DataLoaderKwargs
from safetensors.torch import load_file

from attribution.data.dataset import GlueDataset, collate
from attribution.engine.analyzer import FolderAnalyzer
from attribution.engine.memory import PART_MADDS, parameters_of, shapes_of
from attribution.engine.resume import Work


def plan_partitions(
    analyzer: FolderAnalyzer, kind: str, rows: int, tokens: int, queries: int
) -> dict[str, int]:
    """{"partitions"}: data partitions of "factors", "pairwise" or "self": some minutes each.

    Multiply-adds: 6 P a token for a factor phase, and P a row and query for pairwise scores.
    """
    work = 6 * tokens if kind != "pairwise" else rows * queries + 3 * tokens
    madds = parameters_of(shapes_of(analyzer.model)) * work
    parts = math.ceil(madds / PART_MADDS[analyzer.state.device.type])
    return {"partitions": min(rows, max(1, parts))}


def loading(width: int, **batch_sizes: int) -> dict:
    """Keyword arguments of a kronfluence call: batch sizes, and padding to `width` tokens."""
    collation = functools.partial(collate, pad_to=width)
    return batch_sizes | {"dataloader_kwargs": DataLoaderKwargs(collate_fn=collation)}


def run_partitioned(work: Work, phase: str, prefixes: list[str], call, aggregate=None) -> None:
    """Runs a phase in its data partitions, call(targets) for each; then aggregate(), which joins
    their files.
    """
    whole = [f"{prefix}.safetensors" for prefix in prefixes]
    count = work.plan["partitions"]
    if count == 1:
        work.run(phase, whole, lambda: call({}))
        return
    for i in range(count):
        patterns = [f"{prefix}_data_partition{i}_*.safetensors" for prefix in prefixes]
        title = f"{phase}, partition {i + 1} of {count}"
        work.run(title, patterns, functools.partial(call, {"target_data_partitions": [i]}))
    if aggregate:
        work.run(f"{phase}, joined", whole, aggregate)


def fit_factors(
    analyzer: FolderAnalyzer,
    work: Work,
    name: str,
    dataset: GlueDataset,
    factor_args: FactorArguments,
    batches: dict,
) -> None:
    """Fits the factors of the strategy, and moves them to `influence/factors/<name>`.

    batches: of `loading`.
    """
    config = FactorConfig.CONFIGS[factor_args.strategy]
    factor_args.covariance_data_partitions = work.plan["partitions"]
    factor_args.lambda_data_partitions = work.plan["partitions"]
    # Finished phases are not computed again; anything else there is a leftover.
    kwargs = {"factors_name": name, "factor_args": factor_args, "overwrite_output_dir": True}

    def fit(phase: str, method, targets: dict) -> None:
        analyzer.task.phase = phase
        method(dataset=dataset, **kwargs, **batches, **targets)

    if config.requires_covariance_matrices:
        run_partitioned(
            work,
            "covariance",
            names.COVARIANCE_FACTOR_NAMES,
            lambda targets: fit("covariance", analyzer.fit_covariance_matrices, targets),
            lambda: analyzer.aggregate_covariance_matrices(name),
        )
    if config.requires_eigendecomposition:
        patterns = [f"{factor}.safetensors" for factor in names.EIGENDECOMPOSITION_FACTOR_NAMES]
        decompose = functools.partial(analyzer.perform_eigendecomposition, **kwargs)
        work.run("eigendecomposition", patterns, decompose)
    if config.requires_lambda_matrices:
        run_partitioned(
            work,
            "lambda",
            names.LAMBDA_FACTOR_NAMES,
            lambda targets: fit("lambda", analyzer.fit_lambda_matrices, targets),
            lambda: analyzer.aggregate_lambda_matrices(name),
        )
    if not config.requires_covariance_matrices and not config.requires_lambda_matrices:
        # Fits nothing for identity, but leaves the arguments that scoring reads.
        fit("identity", analyzer.fit_covariance_matrices, {})
    for path in work.folder.glob("*_data_partition*"):
        path.unlink()
    rows = min(len(dataset), factor_args.covariance_max_examples or len(dataset))
    work.keep_factors(analyzer.influence / "factors" / name, rows)


def compute_scores(
    analyzer: FolderAnalyzer,
    work: Work,
    kind: str,
    name: str,
    factors_name: str,
    queries: GlueDataset,
    train: GlueDataset,
    score_args: ScoreArguments,
    batches: dict,
) -> torch.Tensor:
    """Pairwise scores (Q, N) (kind "pairwise") or self-influence (N,) (kind "self"), float32.

    batches: of `loading`.
    """
    count = work.plan["partitions"]
    score_args.data_partitions = count
    prefix = f"{kind}_scores"
    kwargs = {
        "scores_name": name,
        "factors_name": factors_name,
        "train_dataset": train,
        "score_args": score_args,
        "overwrite_output_dir": True,
    }
    if kind == "pairwise":
        score = functools.partial(analyzer.compute_pairwise_scores, query_dataset=queries)
    else:
        score = analyzer.compute_self_scores
    run_partitioned(work, kind, [prefix], lambda targets: score(**kwargs, **batches, **targets))
    suffixes = [f"_data_partition{i}_module_partition0" for i in range(count)]
    files = [
        work.folder / f"{prefix}{suffix}.safetensors"
        for suffix in (suffixes if count > 1 else [""])
    ]
    return torch.cat([load_file(path)[names.ALL_MODULE_NAME].float() for path in files], dim=-1)
