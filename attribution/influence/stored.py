"""Stored scores: their files, and the rules by which they count for a run.

A folder `influence/scores/NAME/` has pairwise_scores.safetensors (Q, N) or self_scores.safetensors
(N,), and beside each a JSON with the fingerprint, the ScoreSpec and a checksum of every row. In the
NAME of self scores nothing concerns queries, so that they are stored once. Symbols: Q queries, N
training rows.
"""

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
from safetensors.numpy import load_file

from attribution.data.tasks import MARGIN
from attribution.files import (
    Refused,
    describe_parts,
    differing_parts,
    exclusive,
    intact,
    read_json,
    refuse_if_stale,
    write_arrays,
    write_json,
)
from attribution.influence.settings import (
    REPLAY_VERSION,
    STRATEGIES,
    ScoreSpec,
    Settings,
    analyze_command,
    spec_record,
)
from attribution.training.members import end_of, fingerprint_of_members
from attribution.training.run import Run

KEY = "all_modules"
OUTPUTS = "outputs"  # beside self scores of a replay
TOP = 10  # rows of a query that count as its largest


@dataclass(frozen=True)
class ScoreFolder:
    """Scores of one spec, and the fingerprints under which they count.

    folder: of all scores of a run. suffix: end of the name of scores of custom queries.
    """

    folder: Path
    spec: ScoreSpec
    parts: dict[str, dict]  # kind ("pairwise" or "self") -> named parts of the fingerprint
    suffix: str = ""

    @property
    def path(self) -> Path:
        """Folder of the pairwise scores."""
        return self.place("pairwise")

    def place(self, kind: str) -> Path:
        """Folder of the scores of this kind."""
        if kind == "self":
            return self.folder / self.spec.of_self.name
        return self.folder / (self.spec.name + self.suffix)

    def load(self, kind: str) -> np.ndarray | None:
        """Stored scores, pairwise (Q, N) or self (N,); None if missing, or damaged (printed).

        Raises Refused if they were made from something else.
        """
        record = self.record(kind)
        if record is None:
            return None
        place = self.place(kind)
        if not intact(place, record["files"]):
            print(f"{place}: {kind} scores are damaged and are computed again", file=sys.stderr)
            return None
        return load_file(place / f"{kind}_scores.safetensors")[KEY]

    def load_row(self, query: int) -> np.ndarray | None:
        """One query's stored scores (N,), read without the rest and checked by its checksum."""
        record = self.record("pairwise")
        if record is None:
            return None
        try:
            with safetensors.safe_open(self.path / "pairwise_scores.safetensors", "np") as file:
                row = file.get_slice(KEY)[query : query + 1][0]
        except (OSError, safetensors.SafetensorError):
            return None
        return row if row_checksums(row[None]) == [record["rows"][query]] else None

    def replaceable(self, kind: str) -> bool:
        """Whether stored work on scores of this kind counts as missing, and is not refused, if it
        was made from something else: that of a custom query.
        """
        return kind == "pairwise" and bool(self.suffix)

    def record(self, kind: str) -> dict | None:
        """JSON beside the scores; None if missing. Raises Stale if their fingerprint differs; a
        custom query's are then missing.
        """
        path = self.place(kind) / f"{kind}_scores.json"
        return refuse_if_stale(path, self.parts[kind], f"{kind} scores", self.replaceable(kind))

    def save(self, kind: str, arrays: dict[str, np.ndarray], about: dict) -> None:
        """Writes scores, then the JSON that makes them count, while no other process writes either.

        arrays: the scores under KEY, and what is stored beside them. about: further entries of the
        JSON. Raises Refused, and stores nothing, for scores that are not finite.
        """
        scores = arrays[KEY]
        if not np.isfinite(scores).all():
            place = ", ".join(map(str, np.argwhere(~np.isfinite(scores))[0]))
            raise Refused(
                f"the {kind} scores are not finite (first at {place}), so nothing is stored; raise "
                "--damping_factor, or train with a lower --learning_rate"
            )
        path = self.place(kind) / f"{kind}_scores.json"
        tensor = path.with_suffix(".safetensors")
        record = {
            "fingerprint": self.parts[kind],
            "shape": list(scores.shape),
            "rows": row_checksums(scores) if scores.ndim == 2 else None,
            "spec": spec_record(self.spec.of_self if kind == "self" else self.spec),
        }
        with exclusive(path.parent, wait_for=f"the {kind} scores in {path.parent}"):
            path.unlink(missing_ok=True)
            digest = write_arrays(tensor, arrays)
            write_json(path, record | about | {"files": {tensor.name: digest}})


def folder_of(
    run: Run, settings: Settings, num_rows: int, query_rows: str, suffix: str = ""
) -> ScoreFolder:
    """Scores of one checkpoint under these settings.

    num_rows: training rows N. query_rows: fingerprint of the queries. suffix: see `ScoreFolder`.
    Raises Refused for a checkpoint to be replayed whose training is gone.
    """
    settings = settings.for_run(run)
    made: dict = run.trained
    if settings.factor_strategy == "replay":
        made |= {"replay": REPLAY_VERSION, "end of training": end_of(run).weights}
    asked = {"query rows": query_rows, "margin": MARGIN}
    parts = {
        "self": made | settings.parts("self", num_rows),
        "pairwise": made | settings.parts("pairwise", num_rows) | asked,
    }
    return ScoreFolder(
        run.folder / "influence" / "scores", settings.of_one_checkpoint, parts, suffix
    )


def folder_of_mean(run: Run, settings: Settings, first: ScoreFolder) -> ScoreFolder:
    """Means over the members of these settings. first: scores of the first checkpoint."""
    made = run.trained | fingerprint_of_members(settings, run)
    parts = {kind: one | made for kind, one in first.parts.items()}
    return ScoreFolder(run.folder / "influence" / "scores", settings, parts, first.suffix)


def row_checksums(scores: np.ndarray) -> list[str]:
    """SHA-256 of every row of scores (Q, N), float32."""
    return [hashlib.sha256(np.ascontiguousarray(row).data).hexdigest() for row in scores]


# --- scores of a run ----------------------------------------------------------------------------


@dataclass(frozen=True)
class StoredScores:
    """Pairwise scores found in a run's folder."""

    path: Path  # of their JSON
    spec: ScoreSpec
    stale: str | None  # why they do not count; None if they do
    divisors: tuple[float, ...] = (1.0,)  # of the members, if they are a mean

    def values(self) -> np.ndarray:
        """The scores (Q, N)."""
        return read_scores(self.path)


def read_scores(path: Path) -> np.ndarray:
    """Scores beside their JSON: pairwise (Q, N) or self (N,)."""
    return load_file(path.with_suffix(".safetensors"))[KEY]


def find_scores(run: Run, query_rows: str, first_query: int = 0) -> dict[str, StoredScores]:
    """Stored scores of the run's validation rows: name -> StoredScores; no scores are read.

    query_rows: fingerprint of the queries. Names leave out where the queries begin; scores of
    custom queries, and of validation rows from another one than first_query on, are not among them.
    """
    found = {}
    for path in sorted(run.folder.glob("influence/scores/*/pairwise_scores.json")):
        record = read_json(path) or {}
        if "spec" not in record or record.get("custom_queries"):
            continue
        spec = ScoreSpec(**record["spec"])
        if spec.first_query == first_query:
            name = path.parent.name.removesuffix(f"_from{first_query}")
            stale = why_stale(path, run, query_rows)
            divisors = tuple(record.get("divisors", (1.0,)))
            found[name] = StoredScores(path, spec, stale, divisors)
    return found


def seconds_of(run: Run, spec: ScoreSpec) -> float | None:
    """Seconds of all phases behind scores of this spec, of all its members; None if not recorded.

    Training is not among them.
    """
    name = spec.of_one_checkpoint.name
    paths = (place / f"influence/scores/{name}/pairwise_scores.json" for place in spec.places(run))
    records = [read_json(path) for path in paths if path.exists()]
    phases = [one["seconds"] for one in records if one and one.get("seconds")]
    if not phases:
        return None
    return sum(took for one in phases for phase, took in one.items() if phase != "all")


def remedy(
    run: Run,
    name: str,
    found: dict[str, StoredScores],
    max_queries: int | None = None,
    more: str = "",
) -> str:
    """End of a refusal: the command that stores scores of this name, or the names that there are.

    found: of `find_scores`. max_queries: None for the default. more: arguments of the command, of a
    custom query, whose stale scores need no --overwrite.
    """
    if name in found:
        spec = found[name].spec
        more = more or "--overwrite"
    elif name in STRATEGIES:
        spec = ScoreSpec(factor_strategy=name)
    else:
        known = ", ".join(found) or "none"
        return f"stored are {known}; names begin with {', '.join(STRATEGIES)}, see analyze.py"
    return f"make them with: {analyze_command(run, spec, max_queries, more)}"


def scores_named(run: Run, name: str, query_rows: str) -> np.ndarray | None:
    """Stored scores (Q, N) in the folder of this name; None if missing, stale or damaged."""
    path = run.folder / f"influence/scores/{name}/pairwise_scores.json"
    return None if why_stale(path, run, query_rows) else read_scores(path)


def read_outputs(folder: Path) -> np.ndarray:
    """Outputs (N, O) of the training rows where they were left out, beside self scores of a replay
    in this folder.
    """
    return load_file(folder / "self_scores.safetensors")[OUTPUTS]


def replayed_self_scores(run: Run) -> tuple[str, np.ndarray] | None:
    """(name, values (N,)) of the stored self scores of a replay, those of the most members; None
    without any that count.
    """
    best: tuple[int, str, Path] | None = None
    for path in run.folder.glob("influence/scores/replay*/self_scores.json"):
        if why_stale(path, run) is None:
            members = (read_json(path) or {})["spec"]["num_members"]
            best = max(best or (0, "", path), (members, path.parent.name, path))
    return best and (best[1], read_scores(best[2]))


def recorded_queries(run: Run, name: str) -> int | None:
    """The --max_queries of the stored scores of this name; None if unknown."""
    path = run.folder / f"influence/scores/{name}/pairwise_scores.json"
    given = (read_json(path) or {}).get("arguments", {}).get("max_queries", "")
    return int(given) if given.isdigit() else None


def why_stale(path: Path, run: Run, query_rows: str | None = None) -> str | None:
    """Reason why stored scores do not count for this run; None if they do.

    path: of their JSON. query_rows: fingerprint of the queries; None for self-influence.
    """
    record = read_json(path) or {}
    made = record.get("fingerprint", {})
    wanted: dict = run.trained
    if query_rows:
        wanted["query rows"] = query_rows
    if "replay" in made:
        wanted["replay"] = REPLAY_VERSION
    if parts := differing_parts({part: made.get(part) for part in wanted}, wanted):
        return f"its scores were made from {describe_parts(parts)}"
    if "members" in made:
        members = fingerprint_of_members(ScoreSpec(**record["spec"]), run)
        if made["members"] != members["members"]:
            return "its scores were made from other members"
        if made.get("mean") != members.get("mean"):
            return "its mean over members was taken in another way; run analyze.py --overwrite"
    if intact(path.parent, record.get("files")):
        return None
    return "its file is damaged; run analyze.py again"


def seeds_of(run: Run, specs) -> list[int]:
    """Seeds of the models behind scores of these specs."""
    count = max((spec.num_members for spec in specs), default=1)
    return [] if run.seed is None else list(range(run.seed, run.seed + count))


def most_helpful(scores: np.ndarray, direction: str = "helpful") -> np.ndarray:
    """Training rows from the highest score (N,) to the lowest, or of harmful rows from the lowest
    on; ties by row number.
    """
    sign = -1 if direction == "helpful" else 1
    return np.argsort(sign * scores.astype(np.float64), kind="stable")
