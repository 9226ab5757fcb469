"""A store of retrained models' margins: resumable, shared by processes and machines.

    store = Store(folder, retrain.fingerprint(), num_queries)
    margins = run_jobs(store, [Job(rows, seed), ...], retrain, workers=2)      # (jobs, Q)

A job is (kept rows, seed); its result is every query's margin, one small file written atomically below a
folder named by the fingerprint of the recipe, the start, the data and the device: a changed recipe never
meets old results. A process claims a job by locking one byte of a shared file, which the system releases
when the process dies, so no job is done twice at a time, and what a killed process had claimed is free.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pickle
import signal
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import psutil
import safetensors
import safetensors.numpy
import torch.multiprocessing
from tqdm import tqdm

from attribution.files import write_bytes, write_json

RETRAIN_SEED = 100  # the first seed of retrains; scored models have others, or they would share head and row order
POLL = 0.5  # seconds between two looks at what other processes have finished


@dataclass(frozen=True)
class Job:
    """One training run: the rows that are kept, ascending, and the seed of head, order and dropout."""

    rows: np.ndarray
    seed: int

    @cached_property
    def key(self) -> str:
        """The name of the result: 128 bits of a SHA-256 over rows and seed, in hexadecimal."""
        rows = np.ascontiguousarray(self.rows, dtype="<i8").tobytes()
        return hashlib.sha256(rows + f"/{self.seed}".encode()).hexdigest()[:32]


class Store:
    """Results of jobs below `folder`/<fingerprint>/, one file a job."""

    def __init__(self, folder: Path, fingerprint: dict, num_queries: int) -> None:
        digest = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()
        self.folder, self.num_queries = Path(folder) / digest[:16], num_queries
        if not (self.folder / "recipe.json").exists():
            write_json(self.folder / "recipe.json", {"fingerprint": fingerprint, "num_queries": num_queries})
        self._claims = open(self.folder / ".claims", "a+b")  # noqa: SIM115 - closing it would drop all claims

    def path(self, job: Job) -> Path:
        """Where the margins of this retrain are stored."""
        return self.folder / job.key[:2] / f"{job.key}.safetensors"

    def load(self, job: Job) -> np.ndarray | None:
        """Margins (Q,), float32; None where there are none, or they were damaged: then that is said and they go."""
        path = self.path(job)
        try:
            with safetensors.safe_open(path, "np") as file:
                margins, recorded = file.get_tensor("margins"), (file.metadata() or {}).get("sha256")
            if recorded == self._checksum(job, margins) and margins.shape == (self.num_queries,):
                return margins
        except FileNotFoundError:
            return None
        except (safetensors.SafetensorError, OSError, ValueError, TypeError):
            pass  # the file cannot be read as what it should be
        print(f"{path}: a stored retrain is damaged and is done again", file=sys.stderr)
        path.unlink(missing_ok=True)
        return None

    def save(self, job: Job, margins: np.ndarray) -> None:
        """Stores margins (Q,); raises ValueError for another shape."""
        margins = np.ascontiguousarray(margins, dtype=np.float32)
        if margins.shape != (self.num_queries,):
            raise ValueError(f"margins of shape {margins.shape} for {self.num_queries} queries")
        metadata = {"sha256": self._checksum(job, margins)}
        write_bytes(self.path(job), safetensors.numpy.save({"margins": margins}, metadata))

    def _checksum(self, job: Job, margins: np.ndarray) -> str:
        return hashlib.sha256(job.key.encode() + margins.tobytes()).hexdigest()

    def missing(self, jobs: list[Job]) -> list[Job]:
        """The jobs without an intact result, each once, in their order."""
        unique = {job.key: job for job in jobs}
        return [job for job in unique.values() if self.load(job) is None]

    @contextlib.contextmanager
    def claim(self, job: Job):
        """Yields whether this process may do the job: no other process works at it, and it is not done yet."""
        place = int(job.key[:15], 16)  # one byte of a file that has none: a lock needs no content
        try:
            fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            yield False
            return
        try:
            yield not self.path(job).exists()
        finally:
            fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, place)


def launched() -> tuple[int, int]:
    """(rank, number of processes) as a launcher such as accelerate or torchrun says it; (0, 1) without one."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def work(store: Store, jobs: list[Job], retrain, start: float = 0.0, on_done=None) -> None:
    """Does the jobs that nobody else does or has done, beginning at the share `start` of the list."""
    first = int(start * len(jobs))
    for job in jobs[first:] + jobs[:first]:
        if store.path(job).exists():
            continue
        with store.claim(job) as mine:
            if mine:
                store.save(job, retrain(job.rows, job.seed))
        if mine and on_done:
            on_done()


def _worker(index: int, count: int, folder: Path, num_queries: int, jobs: list[Job], retrain: bytes) -> None:
    """A process of `run_jobs`. The retrainer comes pickled by value: shared memory is small in containers."""
    # torch sends this signal when the parent dies; whoever was started in the background of a script ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    fingerprint = json.loads((folder / "recipe.json").read_bytes())["fingerprint"]
    rank, size = launched()
    work(Store(folder.parent, fingerprint, num_queries), jobs, pickle.loads(retrain), (rank + index / count) / size)


def default_workers(device: torch.device, parameters: int) -> int:
    """One process a core on the CPU, as many as half of the free memory holds; one a GPU, or under a launcher.

    Estimate of a process: 1 GB of libraries, and six float32 numbers a parameter (weights, start, gradient, two
    moments, activations).
    """
    if device.type != "cpu" or launched()[1] > 1:
        return 1
    affordable = psutil.virtual_memory().available // 2 // (2**30 + 24 * parameters)
    return max(1, min(len(os.sched_getaffinity(0)), int(affordable)))


def announce(store: Store, jobs: list[Job], retrain, workers: int, dry_run: bool) -> bool:
    """Says how many jobs there are, how many are stored, and how long the rest may take; whether to go on.

    The time is estimated from two of the jobs, done here and kept, after one whose time is not counted; for a few
    jobs it is not worth it.
    """
    missing = store.missing(jobs)
    unique, leader = len({job.key for job in jobs}), launched()[0] == 0
    if leader:
        print(f"{unique:,} retrains, {unique - len(missing):,} of them stored in {store.folder}")
    if leader and len(missing) >= (4 if dry_run else 20):
        seconds = []
        for job in missing[:3]:
            start = time.perf_counter()
            work(store, [job], retrain)
            seconds.append(time.perf_counter() - start)
        each, processes = sum(seconds[1:]) / 2, max(workers, launched()[1])
        minutes = (len(missing) - 3) * each / processes / 60
        print(f"one takes {each:.1f} s here: about {minutes:.0f} minutes with {processes} processes")
    return not dry_run


def run_jobs(store: Store, jobs: list[Job], retrain, workers: int = 1, description: str = "retrains") -> np.ndarray:
    """Margins (jobs, Q), float32, computing with `workers` processes what is not stored.

    retrain(rows, seed) -> margins (Q,); picklable where workers > 1. Under a launcher all processes share the
    jobs, and each returns when every job is done.
    """
    rank, size = launched()
    unique = list({job.key: job for job in jobs}.values())
    while missing := store.missing(unique):
        done = len(unique) - len(missing)
        with tqdm(total=len(unique), initial=done, desc=description, unit=" retrains", disable=rank > 0) as bar:

            def look(bar=bar, missing=missing, done=done) -> int:
                finished = sum(store.path(job).exists() for job in missing)
                bar.update(done + finished - bar.n)
                return finished

            if min(workers, len(missing)) > 1:
                _run_workers(store, missing, retrain, min(workers, len(missing)), look)
            else:
                work(store, missing, retrain, rank / size, look)
            if look() < len(missing):  # others are at work on the rest; what they leave is done in the next round
                time.sleep(POLL)
    margins = np.empty((len(jobs), store.num_queries), np.float32)
    for place, job in zip(margins, jobs, strict=True):
        if (found := store.load(job)) is None:
            raise OSError(f"{store.path(job)} was there and is gone")
        place[:] = found
    return margins


def _run_workers(store: Store, jobs: list[Job], retrain, workers: int, look) -> None:
    arguments = (workers, store.folder, store.num_queries, jobs, pickle.dumps(retrain))
    context = torch.multiprocessing.start_processes(
        _worker, arguments, workers, join=False, daemon=True, start_method="spawn"
    )
    try:
        while not context.join(timeout=POLL):
            look()
    except torch.multiprocessing.ProcessRaisedException as error:
        if os.strerror(errno.ENOSPC) in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise
