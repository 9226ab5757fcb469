"""Names of what an analysis stores below influence/: one for each set of arguments that changes the
numbers.
"""

import shlex
from pathlib import Path

from attribution.training.members import Members
from attribution.training.recipe import queries_flag

STRATEGIES = ("identity", "diagonal", "kfac", "ekfac")
DAMPING = 1e-8  # kronfluence's default
# ends the name of scores that retrains have corrected, before what `window_name` adds
CORRECTED = "_corrected"


def factors_name(
    strategy: str, half: bool = False, stock: bool = False, exact: bool = False
) -> str:
    """Name of the folder below influence/factors."""
    return strategy + "_exact" * exact + "_half" * half + "_stock" * stock


def scores_name(
    strategy: str,
    half: bool = False,
    stock: bool = False,
    rank: int | None = None,
    damping: float | None = DAMPING,
    exact: bool = False,
) -> str:
    """Name of the folder below influence/scores; what is at its default is left out.

    damping: None means kronfluence's heuristic. Identity has no curvature, so that nothing is
    damped.
    """
    name = factors_name(strategy, half, stock, exact) + (f"_rank{rank}" if rank else "")
    if damping == DAMPING or strategy == "identity":
        return name
    return name + f"_damping{'heuristic' if damping is None else f'{damping:g}'}"


def is_own(name: str) -> bool:
    """Whether scores of this name are those of somebody's own queries."""
    return "_queries-" in name


def window_name(first_query: int) -> str:
    """What a name of scores says of queries that begin with this validation row."""
    return f"_from{first_query}" if first_query else ""


def without_window(name: str) -> tuple[str, int]:
    """(name without what says where the queries begin, the first query's validation row)."""
    parts = name.split("_")
    found = [part for part in parts if part.startswith("from") and part[4:].isdigit()]
    return "_".join(part for part in parts if part not in found), int(found[0][4:]) if found else 0


def with_members(name: str, members: Members) -> str:
    """The name of the same scores of other members."""
    before = Members.of(name).name
    return (name.replace(before, "") if before else name) + members.name


def flags_of(name: str) -> str:
    """The arguments of analyze.py that store scores under this name."""
    strategy, *parts = name.split("_")
    flags = ["--factor_strategy", strategy]
    for part in parts:
        if part.startswith("rank"):
            flags += ["--query_gradient_rank", part.removeprefix("rank")]
        elif part.startswith(("members", "steps", "share", "start")):
            flags.append(Members.of(part).flags)
        elif part.startswith("from"):
            flags += ["--first_query", part.removeprefix("from")]
        elif part.startswith("damping"):
            flags += ["--damping_factor", part.removeprefix("damping")]
        else:
            flags.append(
                {"half": "--use_half_precision", "exact": "--fisher exact"}.get(part, f"--{part}")
            )
    return " ".join(flags)


def remedy(
    name: str,
    data_name: str,
    checkpoint_dir: Path,
    max_queries: int | None = None,
    again: bool = False,
    more: str = "",
) -> str:
    """The end of a refusal: what stores scores of this name, and for no such name what names there
    are.

    Arguments as of `analyze_command`. more: further arguments of the command.
    """
    if CORRECTED in name:
        where, (score, first) = (
            place_flags(data_name, checkpoint_dir, max_queries),
            without_window(name),
        )
        begin = f" --first_query {first}" * (first > 0)
        return f"make them with: python evaluate_lds.py {where}{begin} --correct {score.removesuffix(CORRECTED)}"
    if name.split("_")[0] not in STRATEGIES:
        return f"scores have names that begin with {', '.join(STRATEGIES)}"
    return f"make them with: {analyze_command(name, data_name, checkpoint_dir, max_queries, again)} {more}".rstrip()


def analyze_command(
    name: str,
    data_name: str,
    checkpoint_dir: Path,
    max_queries: int | None = None,
    again: bool = False,
) -> str:
    """The command that stores scores under this name. max_queries: None for the default. again:
    over what is there.
    """
    where = place_flags(data_name, checkpoint_dir, max_queries)
    return f"python analyze.py {where} {flags_of(name)}{' --overwrite' * again}"


def place_flags(data_name: str, checkpoint_dir: Path, max_queries: int | None) -> str:
    """The arguments that say which run and which queries."""
    return f"--dataset_name {data_name} --checkpoint_dir {shlex.quote(str(checkpoint_dir))}{queries_flag(max_queries)}"
