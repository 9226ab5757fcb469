"""Retrains: a run's model trained again on some of its rows, many times, resumable, shared by
processes and machines, each with the bits of one process.

    store = Store(folder, retrain.fingerprint(), queries.digests())
    results = run_jobs(store, [Job.of(rows, seed), ...], retrain, workers=2)   # margins (J, Q) etc.

A process claims a job in the store, does it and saves it, so that launches and machines can come
and go. No job is done twice at a time, and a claim of a killed process is free. Symbols: J jobs, Q
queries.
"""

import errno
import os
import pickle
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing
from tqdm import tqdm

from attribution.cli import about_minutes
from attribution.data.dataset import GlueDataset
from attribution.data.tasks import MARGIN
from attribution.evidence.store import Job, Result, Results, Store
from attribution.files import Refused, read_json
from attribution.models import fingerprint_of_start
from attribution.processes import free_host_memory, num_cores, rank_and_size
from attribution.tensors import fingerprint_of_tensors
from attribution.training.fit import Diverged, fit, predict
from attribution.training.run import Run
from pipeline import compute_correct, compute_margin, construct_bert, quiet_libraries

POLL = 0.5  # seconds between two looks at finished jobs of other processes


# --- one retrain --------------------------------------------------------------------------------


def open_start(run: Run, start: str | None) -> torch.nn.Module:
    """Start model of the run, with some head if it has none; `drawn` names that head's weights.

    start: its folder or hub id, None for the default. Raises Refused if its weights have changed.
    """
    model = construct_bert(
        run.dataset_name, start, 0, run.num_hidden_layers, run.new_head or None, task=run.task
    )
    if fingerprint_of_start(model) != run.start:
        raise Refused(
            f"the start model {start or 'of the demo'} has other weights than the one that the run "
            "was trained from; name that one with --model_name_or_path"
        )
    return model


def behaviour(config) -> dict:
    """Dropout, epsilon and activation of a model's configuration that differ from the defaults of
    its class.
    """
    usual = type(config)().to_dict()
    parts = ("drop", "eps", "act")
    return {
        name: value
        for name, value in config.to_dict().items()
        if any(part in name for part in parts) and value != usual.get(name)
    }


class Retrainer:
    """Trains a run's model again on some of its rows: a job of the retraining store, called as
    (rows, seed).

    Start weights and tokens are read once, and go to other processes by pickling. The head that
    the start lacks is drawn from the job's seed, so that all rows and the seed of the run give the
    model of the run. start: folder or hub id of the start model, None for the default. Raises
    Refused if the start is not the one that the run was trained from.
    """

    def __init__(
        self,
        run: Run,
        start: str | None,
        train: GlueDataset,
        queries: GlueDataset,
        recipe: dict,
        device: torch.device,
    ) -> None:
        self.train = train
        self.queries = queries
        self.recipe = recipe
        self.device = device
        self.digests = queries.digests()
        self.start_parts = run.start_parts()
        model = open_start(run, start)
        self.kind = type(model)
        self.config = model.config
        self.behaviour = behaviour(model.config) if start else {}
        self.start = {
            name: value for name, value in model.state_dict().items() if name not in model.drawn
        }
        self.num_parameters = model.num_parameters()

    def __setstate__(self, state: dict) -> None:
        quiet_libraries()  # this process is a child of one that is
        self.__dict__.update(state)

    def fingerprint(self) -> dict:
        """Named parts of everything that changes a margin; only another torch or processor may
        round otherwise.

        Queries are not among them: the store knows each query row by its digest.
        """
        device = "cpu, one thread"
        if self.device.type != "cpu":
            device = torch.cuda.get_device_name(self.device)
        shape = {"layers": self.config.num_hidden_layers, "labels": self.config.num_labels}
        return {
            "start": fingerprint_of_tensors(self.start),
            "shape": shape | self.behaviour,
            "recipe": self.recipe,
            "training rows": self.train.fingerprint(),
            "device": device,
            "margin": MARGIN,
        }

    def model(self, seed: int) -> torch.nn.Module:
        """The start, with a head drawn from the seed as `construct_bert` draws it."""
        start = {name: value.clone() for name, value in self.start.items()}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.kind.from_pretrained(
                None, config=self.config, state_dict=start, dtype=torch.float32
            )
        return model.to(self.device)

    def __call__(self, rows: np.ndarray, seed: int) -> Result:
        """Result of the queries after training on these rows (ascending) with this seed; NaN if it
        diverged.

        On the CPU in one thread, whatever the process has: several processes then give the same
        bits as one.
        """
        threads = torch.get_num_threads()
        if self.device.type == "cpu":
            torch.set_num_threads(1)
        try:
            logits = predict(
                fit(self.model(seed), self.train, rows, seed=seed, **self.recipe), self.queries
            )
        except Diverged:
            logits = torch.full((len(self.queries), self.config.num_labels), torch.nan)
        finally:
            torch.set_num_threads(threads)
        labels = torch.from_numpy(self.queries.labels)
        outputs = torch.full((len(labels),), torch.nan)
        if self.queries.task.regression:
            outputs = logits.squeeze(-1)
        return Result(
            self.digests,
            compute_margin(logits, labels).numpy(),
            compute_correct(logits, labels).numpy(),
            outputs.numpy(),
        )


# --- many retrains ------------------------------------------------------------------------------


def work(store: Store, jobs: list[Job], retrain, start: float = 0.0, on_done=None) -> None:
    """Does the jobs that are neither done nor claimed, from the share `start` of the list on."""
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
    # torch sends this signal when the parent dies; a process started in the background of a
    # script ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not torch.multiprocessing.parent_process().is_alive():
        return  # it died before this process could take the signal
    rank, size = rank_and_size()
    recipe = read_json(folder / "recipe.json")
    assert recipe is not None  # the parent process has just read it
    store = Store(folder.parent, recipe["fingerprint"], digests)
    work(store, jobs, pickle.loads(retrain), (rank + index / count) / size)


def default_workers(device: torch.device, parameters: int) -> int:
    """One process a core on the CPU, as many as half of the free memory holds; one a GPU, or under
    a launcher.

    Estimate of a process: 1 GB of libraries, and six float32 numbers a parameter (weights, start,
    gradient, two moments, activations).
    """
    if device.type != "cpu" or rank_and_size()[1] > 1:
        return 1
    affordable = free_host_memory() // 2 // (2**30 + 24 * parameters)
    return max(1, min(num_cores(), int(affordable)))


def announce(
    store: Store,
    jobs: list[Job],
    dry_run: bool,
    seconds: float = 0.0,
    workers: int = 1,
    seconds_a_row: float | None = None,
) -> bool:
    """Whether to go on, after the numbers of jobs and stored results, and the time of the rest, are
    printed.

    seconds: of the run's own training, from which the time is estimated before retrains have told
    their seconds for each kept row; 0: not known. workers: processes that this one starts.
    """
    rank, size = rank_and_size()
    if rank == 0:
        missing = store.missing(jobs)
        unique = len({job.key for job in jobs})
        print(f"{unique:,} retrains, {unique - len(missing):,} of them stored in {store.folder}")
        if missing and seconds_a_row:
            rows = sum(len(job.rows) for job in missing)
            print(f"{about_minutes(rows * seconds_a_row)}, as fast as retrains were before")
        elif missing and seconds:
            processes = max(workers, size)
            some = about_minutes(len(missing) * seconds / processes)
            print(
                f"{some} with {processes} processes; the run's own training took {seconds:,.0f} s"
            )
        if partly := sum(store.path(job).exists() for job in missing):
            print(
                f"{partly:,} more are stored, but without some of these queries, so they are "
                "trained again"
            )
    return not dry_run


def run_jobs(
    store: Store,
    jobs: list[Job],
    retrain,
    workers: int = 1,
    description: str = "retrains",
    keep_time: Callable[[list[Job], float], None] | None = None,
) -> Results:
    """Results of the jobs for the store's queries; `workers` processes compute missing ones.

    retrain(rows, seed) -> Result; picklable where workers > 1. keep_time: takes the jobs that were
    missing, and the seconds after which none of them is. Under a launcher all processes share the
    jobs, and each returns when every job is done.
    """
    rank, size = rank_and_size()
    unique = len({job.key for job in jobs})
    begin = time.perf_counter()
    trained: list[Job] = []  # here or by other processes
    while missing := store.missing(jobs):
        trained = trained or missing
        done = unique - len(missing)
        with tqdm(
            total=unique, initial=done, desc=description, unit=" retrains", disable=rank > 0
        ) as bar:

            def look(bar=bar, missing=missing) -> None:
                bar.n = unique - sum(not store.path(job).exists() for job in missing)
                bar.refresh()  # its clock goes on while all retrains are under way

            processes = min(workers, len(missing))
            if processes > 1:
                arguments = (processes, store.folder, store.digests, missing, pickle.dumps(retrain))
                context = torch.multiprocessing.start_processes(
                    _worker, arguments, processes, join=False, daemon=True, start_method="spawn"
                )
                try:
                    while not context.join(timeout=POLL):
                        look()
                except torch.multiprocessing.ProcessRaisedException as error:
                    if os.strerror(errno.ENOSPC) in str(error):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
                    raise
            else:
                work(store, missing, retrain, rank / size, look)
            look()
        if store.missing(missing):  # other processes work on the rest
            time.sleep(POLL)  # the next round does what they leave
    if trained and keep_time:
        keep_time(trained, time.perf_counter() - begin)
    shape = len(jobs), len(store.digests)
    results = Results(
        np.empty(shape, np.float32), np.empty(shape, bool), np.empty(shape, np.float32)
    )
    for i, job in enumerate(jobs):
        if (found := store.load(job)) is None:
            raise OSError(f"{store.path(job)} was there and is gone")
        results.margins[i] = found.margins
        results.correct[i] = found.correct
        results.predictions[i] = found.predictions
    return results
