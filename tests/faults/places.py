"""Trials of the place: no room, no right, a folder that goes, another folder, several processes of
a launch.
"""

import os
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch
from faults.chain import STEPS, Running, contents, run
from faults.trials import (
    Outcome,
    Trial,
    damaged,
    damaged_part,
    different_at_once,
    interrupted,
    killed,
    twice,
)
from processes import free_port
from safetensors.torch import load_file


def full_disk(trial: Trial) -> Outcome:
    """No file may become larger than a random size: one sentence, and the same command goes on once
    there is room.
    """
    number = trial.draws.randrange(len(STEPS))
    step, limit = trial.begin_from(number), int(10 ** trial.draws.uniform(2, 5.8))

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    status, text = run(step, trial.folder, prepare)
    if status not in (0, 2) or "Traceback" in text:
        return Outcome(
            False, step.name, f"files of at most {limit} bytes: status {status}: {text[-500:]}"
        )
    return trial.finish(number, f"{step.name}: one sentence, then as without it")


def read_only(trial: Trial) -> Outcome:
    """The run's folder may not be written to, by a user who is not root: one sentence, before the
    work.
    """
    number = trial.draws.choice([0, 1, 6, 7])
    step = trial.begin_from(number)
    if os.geteuid() != 0:
        return Outcome(None, "this user cannot become another one")
    folder = trial.folder / "checkpoints"
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    for parent in trial.folder.parents:
        if parent != Path("/") and not parent.stat().st_mode & 0o001:
            return Outcome(None, "another user cannot see the folder")
    status, text = run(step, trial.folder, lambda: os.setuid(65534))
    if status != 2 or "error: " not in text or "Traceback" in text:
        return Outcome(False, step.name, f"status {status}: {text[-500:]}")
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return trial.finish(number, f"{step.name}: one sentence, then as without it")


def removed(trial: Trial) -> Outcome:
    """A folder that the command works in is removed in mid-run: no traceback, and the same command
    does all again.
    """
    number = trial.draws.choice([1, 2, 6, 7])
    step = trial.begin_from(number)
    running = Running(step, trial.folder)
    time.sleep(trial.draws.uniform(0.1, trial.reference.seconds[number]))
    name = "influence" if number < 3 else "retraining"
    shutil.rmtree(trial.folder / "checkpoints/demo" / name, ignore_errors=True)
    status, text = running.end()
    if status not in (0, 2):
        return Outcome(False, step.name, f"{name} removed: status {status}: {text[-500:]}")
    shutil.rmtree(trial.folder)
    trial.begin_from(number)
    return trial.finish(number, f"{step.name}: ends without a traceback")


def elsewhere(trial: Trial) -> Outcome:
    """The whole chain in a folder of another name, with a space and a letter that is not ASCII: the
    same bits.
    """
    folder = trial.folder / "an anderem Ort, größer"
    (folder / "checkpoints").mkdir(parents=True)
    for step in STEPS:
        status, text = run(step, folder)
        if status:
            return Outcome(False, step.name, f"status {status} in {folder.name}: {text[-500:]}")
    expected, found = (
        contents(trial.reference.state(len(STEPS)), trial.folder),
        contents(folder, folder),
    )
    different = sorted(
        name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
    )
    return Outcome(
        not different, "the whole chain: the same bits", f"differs: {', '.join(different[:5])}"
    )


# --- several processes of a launch ----------------------------------------------------------------


def launch(trial: Trial, number: int, count: int = 2) -> list[Running]:
    """The step, started as `count` processes of one launch."""
    port = free_port()

    def joins(rank: int) -> Callable[[], None]:
        places = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}
        places |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        return lambda: os.environ.update({name: str(value) for name, value in places.items()})

    return [Running(STEPS[number], trial.folder, joins(rank)) for rank in range(count)]


def launched(trial: Trial) -> Outcome:
    """kill -9 of one process of two, whereupon a launcher ends the other; then the same launch to
    its end.

    Scores are then those of one process up to rounding, and what retrains find is the same bit for
    bit.
    """
    number, victim = trial.draws.choice((1, 2, 6, 7)), trial.draws.randrange(2)
    step = trial.begin_from(number)
    both = launch(trial, number)
    time.sleep(trial.draws.uniform(0, trial.reference.seconds[number]))
    both[victim].kill()
    time.sleep(0.2)
    both[1 - victim].kill()
    ended = [process.end() for process in launch(trial, number)]
    what = f"{step.name}: one of two killed, then as one process"
    if any(status for status, _ in ended):
        return Outcome(
            False, what, " / ".join(f"{status}: {text[-250:]}" for status, text in ended)
        )
    if step.script != "analyze":
        return trial.compare(number + 1, what)
    expected = trial.reference.state(number + 1)
    if missing := sorted(contents(expected).keys() ^ contents(trial.folder).keys()):
        return Outcome(False, what, f"differs: {', '.join(missing[:5])}")
    paths = [
        path.relative_to(expected)
        for path in expected.glob("checkpoints/demo/influence/scores/*/*_scores.safetensors")
    ]
    apart = max(difference(trial.folder / path, expected / path) for path in paths)
    return Outcome(apart < 1e-4, what, f"scores differ by {apart:.1e} of a query's largest")


def difference(path: Path, other: Path) -> float:
    """The largest difference of two files of scores, as a share of a query's largest score (of all,
    for one a row).
    """
    found, expected = (load_file(place)["all_modules"].double() for place in (path, other))
    largest = expected.abs().amax(-1, keepdim=True)
    return ((found - expected).abs() / torch.where(largest > 0, largest, 1.0)).max().item()


TRIALS: dict[str, tuple[Callable[[Trial], Outcome], int]] = {  # name -> (trial, how often of 100)
    "killed": (killed, 30),
    "interrupted": (interrupted, 10),
    "damaged": (damaged, 33),
    "damaged part": (damaged_part, 6),
    "full disk": (full_disk, 9),
    "read-only": (read_only, 4),
    "removed": (removed, 4),
    "elsewhere": (elsewhere, 1),
    "launched": (launched, 8),
    "twice at once": (twice, 5),
    "different at once": (different_at_once, 3),
}
