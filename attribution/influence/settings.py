"""Settings of an analysis. Each field is a command line argument, with its part in the name and in
the fingerprint of stored results.

`ScoreSpec` has the settings that name stored scores, `Settings` all of them. Fingerprints have
named parts in three steps: factors depend on the fields marked "factors", self-influence also on
those marked "self", pairwise scores also on those marked "pairwise".
"""

import dataclasses
from dataclasses import dataclass, replace

from attribution.cli import check_numbers, flags_of, option, shown_value
from attribution.files import Refused
from attribution.training.arguments import command_of, queries_flag
from attribution.training.members import Members, members_command, members_on_the_way
from attribution.training.run import Run

STRATEGIES = ("identity", "diagonal", "kfac", "ekfac", "replay")
# Settings of factors and of scores with them, which a replay does not have.
OF_CURVATURE = {
    "fisher",
    "damping_factor",
    "use_half_precision",
    "stock",
    "query_gradient_rank",
    "covariance_dtype",
    "tf32",
    "max_factor_rows",
}
KINDS = ("factors", "self", "pairwise")
REPLAY_VERSION = 6  # of everything in a replay that changes numbers
MAX_FACTOR_ROWS = 100_000  # kronfluence's own limit
RUNNING = "how it runs"
# Fields in the names of factors, and the further ones in the names of scores.
OF_FACTORS = ("fisher", "use_half_precision", "stock")
OF_SCORES = (
    "query_gradient_rank",
    "damping_factor",
    "num_members",
    "member_steps",
    "member_share",
    "first_query",
)


def parse_damping(text: str) -> float | None:
    """Damping as a number, or None for kronfluence's heuristic. Raises Refused for other texts."""
    if text == "heuristic":
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise Refused(f"--damping_factor must be a number from 0 up or 'heuristic', not {text!r}")
    return value


@dataclass(frozen=True)
class ScoreSpec(Members):
    """Settings in the name of scores: strategy, precision, rank, damping, members, first query."""

    factor_strategy: str = option(
        "ekfac",
        "approximation of the curvature (ekfac), or training replayed, in log-odds",
        choices=STRATEGIES,
        fingerprint="factors",
    )
    fisher: str | None = option(
        None,
        "labels behind the factors: exact, the mean over all, or sampled with --seed, as in "
        "kronfluence (exact for two classes and regressions)",
        choices=("sampled", "exact"),
        type=str,
        name="{}",
        fingerprint="factors",
    )
    use_half_precision: bool = option(
        False,
        "gradients of rows and their products in bfloat16; the model, rotations and sums stay in "
        "float32 or above",
        name="half",
        fingerprint="factors",
    )
    stock: bool = option(
        False,
        "run stock kronfluence, with rows padded to the maximum length",
        rare=True,
        name="stock",
        fingerprint="factors",
    )
    query_gradient_rank: int | None = option(
        None,
        "low rank of stored query gradients (full rank)",
        rare=True,
        type=int,
        name="rank{}",
        fingerprint="pairwise",
    )
    damping_factor: float | None = option(
        1e-8,
        "number added to eigenvalues (1e-8, kronfluence's default), or 'heuristic' for a tenth of "
        "their mean",
        type=parse_damping,
        name="damping{}",
        fingerprint="self",
    )
    first_query: int = option(
        0,
        "first validation row among the queries, to choose settings on other queries than those of "
        "a result (0)",
        group="data",
        name="from{}",
    )

    @property
    def unused(self) -> set[str]:
        """Names of the fields that have no effect: those of a curvature where there is none."""
        if self.factor_strategy == "replay":
            return set(OF_CURVATURE)
        return {"fisher", "damping_factor"} if self.factor_strategy == "identity" else set()

    def name_of(self, *fields: str) -> str:
        """Name made of the strategy and of those of these fields that are not at their default."""
        parts = [self.factor_strategy]
        for field in fields:
            value = getattr(self, field)
            described = self.__dataclass_fields__[field]
            if value != described.default and field not in self.unused:
                parts.append(described.metadata["name"].format(shown_value(value)))
        return "_".join(parts)

    @property
    def factors_name(self) -> str:
        """Name of the factors: their folder in influence/factors/."""
        return self.name_of(*OF_FACTORS)

    @property
    def name(self) -> str:
        """Name of the scores: their folder in influence/scores/."""
        return self.name_of(*OF_FACTORS, *OF_SCORES)

    @property
    def flags(self) -> str:
        """Arguments of analyze.py that store scores under this name."""
        rest = ScoreSpec(**spec_record(self) | {"factor_strategy": "ekfac"})
        return f"--factor_strategy {self.factor_strategy} {flags_of(rest)}".strip()

    @property
    def of_one_checkpoint(self) -> "ScoreSpec":
        """The same scores of a single checkpoint."""
        return replace(self, **vars(Members()))

    @property
    def of_self(self) -> "ScoreSpec":
        """The settings of self-influence, which depends on no query."""
        return replace(self, first_query=0, query_gradient_rank=None)


@dataclass(frozen=True)
class Settings(ScoreSpec):
    """All settings of an analysis: those of its scores, and how it runs."""

    seed: int = option(
        0,
        "seed of sampled labels, projections and sketches (0)",
        fingerprint="factors",
    )
    covariance_dtype: str | None = option(
        None,
        "dtype in which covariances are accumulated (float64; with --stock float32); "
        "mixed: float32 products added up in float64, for GPUs slow in float64; below float64, "
        "scores of fewer rows than a layer's width depend on the batches",
        rare=True,
        choices=("float32", "float64", "mixed"),
        type=str,
        fingerprint="factors",
    )
    tf32: bool = option(
        False,
        "multiply matrices in TF32 on Ampere GPUs and later",
        rare=True,
        fingerprint="factors",
    )
    max_factor_rows: int = option(
        MAX_FACTOR_ROWS,
        f"fit factors on the first training rows, at most this many ({MAX_FACTOR_ROWS:,}, as in "
        "kronfluence)",
        group=RUNNING,
        rare=True,
        fingerprint="factors",
    )
    query_batch_size: int = option(
        32, "query rows a batch; lowered if memory is short (32)", group=RUNNING
    )
    train_batch_size: int = option(
        64,
        "training rows a batch, if of maximum length; shorter rows make batches of as many "
        "tokens, on a CPU at most 1,024 (64)",
        group=RUNNING,
    )
    overwrite: bool = option(
        False, "replace stored results made from something else", group=RUNNING
    )
    profile: bool = option(
        False,
        "print the table of actions with mean, calls, total and percentage",
        group=RUNNING,
        rare=True,
    )

    num_labels: int = 0  # of the run, which `for_run` knows

    def for_run(self, run: Run) -> "Settings":
        """The settings as they are meant for this run."""
        return replace(self, num_labels=run.num_labels)

    def check(self) -> None:
        """Raises Refused for values that no analysis can use."""
        super().check()
        positive = ("query_batch_size", "train_batch_size", "max_factor_rows")
        check_numbers(vars(self), *positive, "query_gradient_rank")
        if self.factor_strategy == "replay":
            for field in dataclasses.fields(self):
                if field.name in OF_CURVATURE and getattr(self, field.name) != field.default:
                    raise Refused(f"--{field.name} has no effect on a replay; leave it out")
        if self.stock and self.covariance_dtype == "mixed":
            raise Refused("--covariance_dtype mixed is ours; with --stock it is float32 or float64")
        if self.stock and self.fisher == "exact":
            raise Refused(
                "--fisher exact is ours; kronfluence samples labels, so leave out one of --stock "
                "and --fisher"
            )

    @property
    def exact(self) -> bool:
        """Whether factors are the mean over all labels; without factors there are no labels.

        By default where that costs nothing: where one output is all that counts.
        """
        if self.factor_strategy in ("identity", "replay"):
            return False
        if self.fisher is None:
            return 1 <= self.num_labels <= 2 and not self.stock
        return self.fisher == "exact"

    @property
    def precision(self) -> str:
        """Precision of gradients and products, in words."""
        half = "bfloat16" if self.stock else "bfloat16 gradients"
        names = [half] * self.use_half_precision + ["tf32"] * self.tf32
        return " and ".join(names) or "float32"

    @property
    def covariances(self) -> str | None:
        """Covariance dtype; None for kronfluence's own and for strategies without covariances."""
        if self.factor_strategy not in ("kfac", "ekfac"):
            return None
        return self.covariance_dtype or (None if self.stock else "float64")

    def parts(self, kind: str, num_rows: int) -> dict:
        """Named parts of the fingerprint of results of this kind, one of KINDS.

        num_rows: training rows N. Fields without an effect on the numbers have no part.
        """
        kinds = KINDS[: KINDS.index(kind) + 1]
        unused = self.unused
        if self.exact or self.factor_strategy == "identity":
            unused.add("seed")
        used = vars(self) | {
            "fisher": "exact" if self.exact else "sampled",
            "covariance_dtype": self.covariances,
            "max_factor_rows": min(self.max_factor_rows, num_rows),
        }
        values = {
            field.name: used[field.name]
            for field in dataclasses.fields(self)
            if field.metadata.get("fingerprint") in kinds and field.name not in unused
        }
        if kind == "pairwise" and self.query_gradient_rank:
            values["seed_of_low_rank"] = self.seed
        return {name.replace("_", " "): value for name, value in values.items()}


def spec_record(spec: ScoreSpec) -> dict:
    """Fields of a ScoreSpec, also from Settings, for the JSON beside the scores."""
    return {field.name: getattr(spec, field.name) for field in dataclasses.fields(ScoreSpec)}


def analyze_command(
    run: Run, spec: ScoreSpec, max_queries: int | None = None, more: str = ""
) -> str:
    """Command that stores scores of the run. max_queries: None for the default. more: arguments."""
    command = command_of("analyze.py", run.dataset_name, run.folder.parent)
    command += queries_flag(max_queries)
    return f"{command} {spec.flags} {more}".rstrip()


# --- members of a replay --------------------------------------------------------------------------


def halves_commands(run: Run, max_queries: int | None = None, more: str = "") -> list[str]:
    """Commands that train members on halves of the rows, and score their replay; none where nobody
    said how the run was trained. max_queries, more: see `analyze_command`.
    """
    if run.seed is None or run.recipe is None:
        return []
    replay = analyze_command(run, ScoreSpec(factor_strategy="replay"), max_queries, more)
    return [members_command(run), replay]


def with_members(settings: Settings, run: Run) -> Settings:
    """Settings of a replay that names no members: with those that serve it best, which it says."""
    if settings.factor_strategy != "replay" or not settings.single:
        return settings
    members = members_on_the_way(run)
    if not members.single:
        print(f"replay takes the checkpoints on the way of these members: {flags_of(members)}")
    return replace(settings, **vars(members))
