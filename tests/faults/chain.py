"""The chain of scripts that faults happen to: each step's command, and a process that runs it
without a new Python.

A step is run in a fork of this process, which has imported everything and has one thread; so a
trial takes a second.
"""

import contextlib
import fcntl
import hashlib
import json
import multiprocessing
import os
import re
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import analyze
import attribution.commands.analyze
import attribution.commands.evaluate_lds
import attribution.commands.run_counterfactual
import attribution.commands.train  # noqa: F401  before a fault: another user may not read libraries
import evaluate_lds
import run_counterfactual
import train
from attribution.cli import run_script
from attribution.engine import memory, resume
from attribution.files import CHECKSUM

PLAN = memory.plan_parts
SMALL = ["--max_train_samples", "60", "--num_train_epochs", "2"]
QUICK = ["--max_queries", "6", "--damping_factor", "1e-4"]
CUT = ["--train_batch_size", "2", "--query_batch_size", "3"]
STUDY = ["--max_queries", "6", "--retrain_queries", "6", "--jobs_per_device", "1"]
LDS = ["--num_masks", "3", "--num_repeats", "2", "--num_bootstrap", "20"]
FLIPS = [
    "--strategies",
    "ekfac_damping0.0001",
    "random",
    "--num_targets",
    "3",
    "--removals",
    "5",
    "10",
    "--num_base_seeds",
    "1",
    "--num_retrain_seeds",
    "2",
]
SCRIPTS = {
    "train": train,
    "analyze": analyze,
    "evaluate_lds": evaluate_lds,
    "run_counterfactual": run_counterfactual,
}
# What differs between two runs of the same command on the same machine.
TIMES = {"seconds", "epochs", "commit", "versions", "device", CHECKSUM, "host", "cpu", "started"}


@dataclass(frozen=True)
class Step:
    """One command of the chain."""

    name: str
    script: str
    arguments: list[str]

    def argv(self, folder: Path) -> list[str]:
        """Its command line in a folder, below which everything lies that it reads and writes."""
        argv = [
            "--dataset_name",
            "demo",
            "--checkpoint_dir",
            str(folder / "checkpoints"),
            *self.arguments,
        ]
        if self.script in ("evaluate_lds", "run_counterfactual"):
            figure = folder / "figure" / f"{self.script}.png"
            argv += ["--results_dir", str(folder / "results"), "--figure_path", str(figure)]
        return argv


STEPS = [
    Step("training", "train", [*SMALL, "--member_steps", "2"]),
    Step("scores", "analyze", [*QUICK, *CUT]),
    Step("self-influence", "analyze", [*QUICK, *CUT, "--self_influence"]),
    Step("own query", "analyze", [*QUICK, "--query_text", "A fine soup."]),
    Step("members", "train", [*SMALL, "--num_members", "2"]),
    Step("member scores", "analyze", [*QUICK, "--num_members", "2", "--fisher", "exact"]),
    Step("lds", "evaluate_lds", [*STUDY, *LDS]),
    Step("flips", "run_counterfactual", [*STUDY, *FLIPS]),
    Step("report", "analyze", [*QUICK, "--report"]),
]


def work(script: str, argv: list[str], output: int, prepare) -> None:
    """Runs a script in this process, a fork, and ends it with the script's status; 1 and a
    traceback for an error.

    output: number of the open file that takes what it prints.
    """
    os.setsid()
    torch.set_num_threads(1)
    resume.PATIENCE = 0.0  # a snapshot after every part, so that there is one to continue from
    memory.plan_parts = lambda *given: replace(PLAN(*given), count=4)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = (
        os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2)
    )
    status = 1
    try:
        if prepare:
            prepare()
        status = run_script(SCRIPTS[script].main, argv)
    except KeyboardInterrupt:  # before the script has begun
        status = 130
    except BaseException as error:
        print(f"Traceback: {type(error).__name__}: {error}", file=sys.stderr)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


class Running:
    """A step that was started. What it prints goes through a pipe: a limit on the size of files
    does not reach it.
    """

    def __init__(self, step: Step, folder: Path, prepare=None) -> None:
        self.reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 2**20)  # all that a step prints
        fork = multiprocessing.get_context("fork")
        self.process = fork.Process(
            target=work, args=(step.script, step.argv(folder), writer, prepare)
        )
        self.process.start()
        os.close(writer)

    def kill(self) -> None:
        """kill -9, and whatever it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.end()

    def end(self, seconds: float = 100) -> tuple[int, str]:
        """(status, what was printed, without progress bars); killed after so many seconds, with a
        status of -99.
        """
        self.process.join(seconds)
        late = self.process.is_alive()
        self.process.kill()
        self.process.join()
        os.set_blocking(self.reader, False)
        content = b""
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self.reader, 2**20):
                content += piece
        os.close(self.reader)
        lines = content.decode(errors="replace").splitlines()
        return -99 if late else self.process.exitcode, "\n".join(
            re.sub(r".*\r", "", line) for line in lines
        )


def run(step: Step, folder: Path, prepare=None) -> tuple[int, str]:
    """(status, what was printed) of the step, run to its end in the folder. prepare(): called in
    its process before.
    """
    return Running(step, folder, prepare).end()


# --- what is left behind --------------------------------------------------------------------------


# What is not compared: what is unfinished (the last is safetensors' own), and the time of retrains,
# which a launch that finds all of them done does not write.
UNFINISHED = re.compile(
    r"\.lock|/kronfluence/|/\.training|\.tmp$|/retraining/time\.json$|/\.tmp[^/]*$"
)


def contents(folder: Path, place: Path | None = None) -> dict[str, str]:
    """Relative path -> digest of every file that a step leaves: bytes, or JSON without times.

    Locks, and what is unfinished (UNFINISHED), do not count. place: where the chain ran, whose name
    does not count either.
    """
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if UNFINISHED.search(f"/{name}"):
            continue
        found[name] = hashlib.sha256(plain(path, place)).hexdigest()
    return found


def plain(path: Path, place: Path | None) -> bytes:
    """A file's content without what differs from run to run."""
    content = path.read_bytes()
    if path.suffix == ".json":
        with contextlib.suppress(ValueError):
            content = json.dumps(
                without_times(json.loads(content)), sort_keys=True, ensure_ascii=False
            ).encode()
    if path.suffix == ".md" and b"| seconds |" in content:  # the last column
        content = re.sub(rb"[^|\n]*\|$", b"", content, flags=re.MULTILINE)
    if path.suffix == ".html":
        content = re.sub(rb"\d+ s for factors and scores", b"", content)
        content = re.sub(rb"(?<=\d retrains), [a-z0-9 ]+minutes( with one process)?", b"", content)
    return content.replace(str(place).encode(), b"") if place else content


def without_times(value):
    """The JSON value without the keys in TIMES."""
    if isinstance(value, dict):
        return {key: without_times(part) for key, part in value.items() if key not in TIMES}
    return [without_times(part) for part in value] if isinstance(value, list) else value
