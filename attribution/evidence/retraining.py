"""Retrains many times: resumable, shared by processes and machines, each with the bits of one
process.

    store = Store(folder, retrain.fingerprint(), queries.digests())
    results = run_jobs(store, [Job.of(rows, seed), ...], retrain, workers=2)      # margins (J, Q),
    and more

A process claims a job in the store, does it and saves it, so that launches and machines can come
and go. No job is done twice at a time, and what a killed process had claimed is free.
"""

import errno
import os
import pickle
import signal
import time
from pathlib import Path

import numpy as np
import torch.multiprocessing
from tqdm import tqdm

from attribution.evidence.store import Job, Results, Store
from attribution.files import read_json
from attribution.machine import free_host_memory, num_cores

# the first seed of retrains; scored models have others, or they would share head and row order
RETRAIN_SEED = 100
POLL = 0.5  # seconds between two looks at what other processes have finished


def launched() -> tuple[int, int]:
    """(rank, number of processes) as a launcher such as accelerate or torchrun says it; (0, 1)
    without one.
    """
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def work(store: Store, jobs: list[Job], retrain, start: float = 0.0, on_done=None) -> None:
    """Does the jobs that nobody else does or has done, beginning at the share `start` of the list."""
    first = int(start * len(jobs))
    for job in jobs[first:] + jobs[:first]:
        if store.load(job) is not None:
            continue
        with store.claim(job) as mine:
            if mine:
                store.save(job, retrain(job.rows, job.seed))
        if mine and on_done:
            on_done()


def _worker(
    index: int, count: int, folder: Path, digests: np.ndarray, jobs: list[Job], retrain: bytes
) -> None:
    """A process of `run_jobs`. The retrainer comes pickled by value: shared memory is small in
    containers.
    """
    # torch sends this signal when the parent dies; whoever was started in the background of a
    # script ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    recipe, (rank, size) = read_json(folder / "recipe.json"), launched()
    assert recipe is not None  # the parent process has just read it
    store = Store(folder.parent, recipe["fingerprint"], digests)
    work(store, jobs, pickle.loads(retrain), (rank + index / count) / size)


def default_workers(device: torch.device, parameters: int) -> int:
    """One process a core on the CPU, as many as half of the free memory holds; one a GPU, or under
    a launcher.

    Estimate of a process: 1 GB of libraries, and six float32 numbers a parameter (weights, start,
    gradient, two moments, activations).
    """
    if device.type != "cpu" or launched()[1] > 1:
        return 1
    affordable = free_host_memory() // 2 // (2**30 + 24 * parameters)
    return max(1, min(num_cores(), int(affordable)))


def announce(store: Store, jobs: list[Job], retrain, workers: int, dry_run: bool) -> bool:
    """Says how many jobs there are, how many are stored, and how long the rest may take; whether to
    go on.

    The time is estimated from two of the jobs, done here and kept, after one whose time is not
    counted; for a few jobs it is not worth it.
    """
    missing = store.missing(jobs)
    unique, leader = len({job.key for job in jobs}), launched()[0] == 0
    if leader:
        print(f"{unique:,} retrains, {unique - len(missing):,} of them stored in {store.folder}")
        if partly := sum(store.path(job).exists() for job in missing):
            print(
                f"{partly:,} of the others do not know all of these queries; they are done again "
                "and joined"
            )
    if leader and len(missing) >= (4 if dry_run else 20):
        seconds = []
        for job in missing[:3]:
            start = time.perf_counter()
            work(store, [job], retrain)
            seconds.append(time.perf_counter() - start)
        each, processes = sum(seconds[1:]) / 2, max(workers, launched()[1])
        minutes = (len(missing) - 3) * each / processes / 60
        some = f"about {minutes:.0f} minutes" if minutes >= 1.5 else "under 2 minutes"
        print(f"one takes {each:.1f} s here: {some} with {processes} processes")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the processes that follow share the GPU
    return not dry_run


def run_jobs(
    store: Store, jobs: list[Job], retrain, workers: int = 1, description: str = "retrains"
) -> Results:
    """Results of the jobs for the store's queries, computing with `workers` processes what is not
    stored.

    retrain(rows, seed) -> Result; picklable where workers > 1. Under a launcher all processes share
    the jobs, and each returns when every job is done.
    """
    rank, size = launched()
    unique = len({job.key for job in jobs})
    while missing := store.missing(jobs):
        left = {job.key: job for job in missing}
        done = unique - len(left)
        with tqdm(
            total=unique, initial=done, desc=description, unit=" retrains", disable=rank > 0
        ) as bar:
            seen: dict[str, int] = {}

            def look(bar=bar, left=left, seen=seen) -> None:
                for key in store.changed(left, seen):
                    if store.load(left[key]) is not None:
                        del left[key]
                        bar.update()

            if min(workers, len(missing)) > 1:
                _run_workers(store, missing, retrain, min(workers, len(missing)), look)
            else:
                work(store, missing, retrain, rank / size, look)
            look()
            if left:  # others are at work on the rest; what they leave is done in the next round
                time.sleep(POLL)
    return collect(store, jobs)


def collect(store: Store, jobs: list[Job]) -> Results:
    """The stored results of the jobs, in their order. Raises OSError where one is not there."""
    shape = len(jobs), len(store.digests)
    results = Results(
        np.empty(shape, np.float32), np.empty(shape, bool), np.empty(shape, np.float32)
    )
    for i, job in enumerate(jobs):
        if (found := store.load(job)) is None:
            raise OSError(f"{store.path(job)} was there and is gone")
        results.margins[i], results.correct[i], results.predictions[i] = found.columns()[1:]
    return results


def _run_workers(store: Store, jobs: list[Job], retrain, workers: int, look) -> None:
    arguments = (workers, store.folder, store.digests, jobs, pickle.dumps(retrain))
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
