"""The store of retrains: one small file a job, named by its rows and seed, with a checksum.

A job is (kept rows, seed). Its result has, for each query row that it knows, margin and
correctness, and for a regression the prediction. The folder is named by the fingerprint of the
recipe, the start, the training rows and the device: a changed recipe never meets old results. Each
query row is known by its fingerprint, so that a study of more queries finds stored results.

Symbols: N training rows, Q queries, J jobs.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from attribution.files import NO_LOCKS, write_bytes, write_json


@dataclass(frozen=True)
class Job:
    """One training run: which rows are kept, and the seed of head, order and dropout."""

    kept: bytes  # a bit a row, from the first on; see `of`
    seed: int

    @classmethod
    def of(cls, rows: np.ndarray, seed: int) -> "Job":
        """The job that keeps these rows (numbers, each once)."""
        mask = np.zeros(int(rows.max()) + 1, bool)
        mask[rows] = True
        return cls(np.packbits(mask).tobytes(), seed)

    @property
    def rows(self) -> np.ndarray:
        """The kept rows, ascending, int64."""
        return np.flatnonzero(np.unpackbits(np.frombuffer(self.kept, np.uint8)))

    @functools.cached_property
    def key(self) -> str:
        """The name of the result: 128 bits of a SHA-256 over rows and seed, in hexadecimal."""
        rows = self.rows.astype("<i8").tobytes()
        return hashlib.sha256(rows + f"/{self.seed}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Result:
    """Margins, correctness and predictions of query rows after one retrain."""

    digests: np.ndarray  # (Q, 16) uint8: the rows, as `GlueDataset.digests` names them
    margins: np.ndarray  # (Q,) float32, NaN where training diverged
    correct: np.ndarray  # (Q,) bool: whether the label's logit is the largest; False for regression
    predictions: np.ndarray  # (Q,) float32: a regression's outputs; NaN for classes

    def of(self, digests: np.ndarray) -> "Result | None":
        """Result of these rows (Q', 16); None if one of them is not known."""
        if np.array_equal(self.digests[: len(digests)], digests):
            return self.take(np.arange(len(digests)))
        places = {digest.tobytes(): place for place, digest in enumerate(self.digests)}
        found = [places.get(digest.tobytes(), -1) for digest in digests]
        return None if -1 in found else self.take(np.array(found, dtype=np.int64))

    def take(self, places: np.ndarray) -> "Result":
        """Result of the rows at these places."""
        return Result(*(values[places] for values in vars(self).values()))

    def joined(self, other: "Result") -> "Result":
        """Result of these rows, and of those of the other result that are not among them."""
        known = {digest.tobytes() for digest in self.digests}
        places = [i for i, digest in enumerate(other.digests) if digest.tobytes() not in known]
        more = other.take(np.array(places, dtype=np.int64))
        pairs = zip(vars(self).values(), vars(more).values(), strict=True)
        return Result(*(np.concatenate(pair) for pair in pairs))


@dataclass(frozen=True)
class Results:
    """Margins, correctness and predictions of the same Q query rows after J retrains."""

    margins: np.ndarray  # (J, Q) float32
    correct: np.ndarray  # (J, Q) bool
    predictions: np.ndarray  # (J, Q) float32


class Store:
    """Results of jobs below `folder`/<fingerprint>/, one file a job, for the query rows with these
    digests (Q, 16).
    """

    def __init__(self, folder: Path, fingerprint: dict, digests: np.ndarray) -> None:
        name = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()
        self.folder = folder / name[:16]
        self.digests = digests
        if not (self.folder / "recipe.json").exists():
            write_json(self.folder / "recipe.json", {"fingerprint": fingerprint})
        self._claims = open(self.folder / ".claims", "a+b")  # noqa: SIM115 - closing it would drop all claims

    def path(self, job: Job) -> Path:
        """Where the result of this retrain is stored."""
        return self.folder / job.key[:2] / f"{job.key}.safetensors"

    def read(self, job: Job) -> Result | None:
        """Result in the job's file; None if it is missing or damaged.

        A damaged file is deleted, which is printed. Damaged means read and wrong; an error of the
        file system is raised.
        """
        path = self.path(job)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            tensors = safetensors.numpy.load(content)
            if tensors["checksum"].tobytes() == checksum(job, tensors):
                return Result(
                    tensors["rows"],
                    tensors["margins"],
                    tensors["correct"] > 0,
                    tensors["predictions"],
                )
        except (safetensors.SafetensorError, KeyError, ValueError, TypeError):
            pass  # it cannot be read as what it should be
        print(f"{path}: a stored retrain is damaged and is done again", file=sys.stderr)
        path.unlink(missing_ok=True)
        return None

    def load(self, job: Job) -> Result | None:
        """Job's result for the store's query rows; None if it is missing, or lacks one of them."""
        result = self.read(job)
        return None if result is None else result.of(self.digests)

    def save(self, job: Job, result: Result) -> None:
        """Stores a result, joined with that of other query rows in the job's file."""
        before = self.read(job)
        result = result if before is None else result.joined(before)
        tensors = {
            "rows": result.digests,
            "margins": result.margins.astype(np.float32),
            "correct": result.correct.astype(np.uint8),
            "predictions": result.predictions.astype(np.float32),
            "kept": np.frombuffer(job.kept, np.uint8),
            "seed": np.array([job.seed], np.int64),
        }
        tensors["checksum"] = np.frombuffer(checksum(job, tensors), np.uint8)
        write_bytes(self.path(job), safetensors.numpy.save(tensors))

    def missing(self, jobs: list[Job]) -> list[Job]:
        """The jobs without an intact result for all wanted rows, each once, in their order."""
        unique = {job.key: job for job in jobs}
        return [job for job in unique.values() if self.load(job) is None]

    @contextlib.contextmanager
    def claim(self, job: Job):
        """Yields whether this process may do the job: no other process works at it, and it is not
        done yet.

        A claim is a lock on one byte of a shared file, which the system releases when the process
        dies. On a file system without locks every process may do every job, which is printed.
        """
        place = int(job.key[:15], 16)  # the file is empty: a lock needs no content
        try:
            fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except OSError as error:
            if error.errno in NO_LOCKS:
                warn_no_locks(self.folder)
            elif error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            yield error.errno in NO_LOCKS and self.load(job) is None
            return
        try:
            yield self.load(job) is None
        finally:
            fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, place)


def checksum(job: Job, tensors: dict[str, np.ndarray]) -> bytes:
    """SHA-256 over the job's key and all tensors but the checksum itself."""
    digest = hashlib.sha256(job.key.encode())
    for name in sorted(set(tensors) - {"checksum"}):
        digest.update(
            f"|{name}|{tensors[name].dtype}|{tensors[name].shape}|".encode()
            + tensors[name].tobytes()
        )
    return digest.digest()


@functools.cache
def warn_no_locks(folder: Path) -> None:
    """Prints, once for each folder, that its file system has no locks."""
    print(
        f"{folder} is on a file system without locks: processes may do the same retrain twice",
        file=sys.stderr,
    )
