"""How scores are computed: one frozen set of settings, and what kronfluence makes of it."""

from dataclasses import dataclass

import torch
from kronfluence.arguments import FactorArguments, ScoreArguments

from attribution.influence.names import DAMPING, factors_name, scores_name

MAX_FACTOR_ROWS = 100_000  # kronfluence's own limit
FISHER = ("sampled", "exact")


@dataclass(frozen=True)
class Settings:
    """How scores are computed, and how the computation runs."""

    strategy: str = "ekfac"
    half: bool = False
    stock: bool = False
    fisher: str = "sampled"  # a member of FISHER
    covariance_dtype: str | None = "float64"  # None: kronfluence's own
    covariance_products: str = "float64"  # type of what is added up
    rank: int | None = None  # of query gradients; None: full
    damping: float | None = DAMPING  # None: kronfluence's heuristic
    seed: int = 0
    tf32: bool = False
    query_batch_size: int = 32
    train_batch_size: int = 64
    max_factor_rows: int = (
        MAX_FACTOR_ROWS  # training rows that factors are fitted on: the first so many
    )
    data_partitions: int | None = (
        None  # None: as the work needs, see memory.plan_parts; stock: by the time
    )
    rotate: str = "auto"  # a key of memory.ROTATE
    overwrite: bool = False
    profile: bool = False

    @property
    def precision(self) -> str:
        """What distinguishes results of one precision from another's."""
        names = ["bfloat16" if self.stock else "bfloat16 gradients"] if self.half else []
        return " and ".join(names + ["tf32"] * self.tf32) or "float32"

    @property
    def exact(self) -> bool:
        """Whether factors are the mean over all labels; without curvature there are no labels."""
        return self.fisher == "exact" and self.strategy != "identity"

    @property
    def factors(self) -> str:
        """Name of the folder below influence/factors."""
        return factors_name(self.strategy, self.half, self.stock, self.exact)

    @property
    def scores(self) -> str:
        """Name of the folder below influence/scores."""
        return scores_name(
            self.strategy, self.half, self.stock, self.rank, self.damping, self.exact
        )


def make_factor_arguments(settings: Settings) -> FactorArguments:
    """kronfluence's arguments. Half precision: per-example gradients and their products are
    bfloat16.

    Model, covariances and rotations are so in stock only. They cost little, and rounding before a
    rotation spreads noise over directions of small eigenvalue, which the inverse curvature blows
    up. Most of all in the covariances: rounding of sums in float32 turns eigenvectors of close
    eigenvalues into each other, so that the scores of two float32 runs with other batches differ;
    hence float64 there.
    """
    factor_args = FactorArguments(strategy=settings.strategy)
    factor_args.covariance_max_examples = factor_args.lambda_max_examples = settings.max_factor_rows
    if settings.half:
        factor_args.per_sample_gradient_dtype = factor_args.lambda_dtype = torch.bfloat16
    if settings.half and settings.stock:
        factor_args.amp_dtype = torch.bfloat16
        factor_args.activation_covariance_dtype = factor_args.gradient_covariance_dtype = (
            torch.bfloat16
        )
    if settings.covariance_dtype:
        dtype = getattr(torch, settings.covariance_dtype)
        factor_args.activation_covariance_dtype = factor_args.gradient_covariance_dtype = dtype
    return factor_args


def make_score_arguments(settings: Settings) -> ScoreArguments:
    """kronfluence's arguments; half precision as in `make_factor_arguments`."""
    score_args = ScoreArguments(
        damping_factor=settings.damping, query_gradient_low_rank=settings.rank
    )
    if settings.half:
        score_args.per_sample_gradient_dtype = score_args.score_dtype = torch.bfloat16
    if settings.half and settings.stock:
        score_args.amp_dtype = score_args.precondition_dtype = torch.bfloat16
    return score_args
