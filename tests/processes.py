"""Runs a script's main in several processes of one launch, as a launcher would, without starting
Python again.
"""

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from attribution.cli import run_script


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def in_process(rank: int, count: int, port: int, call: Callable, output: Path | None) -> None:
    """call() as process `rank` of `count`; the exit status is that of a script."""
    places = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}
    os.environ.update({name: str(value) for name, value in places.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    with open(output or os.devnull, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = (
            os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2)
        )
        try:
            status = run_script(lambda _: call())
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def together(
    count: int, call: Callable, output: Path | None = None, seconds: float = 100
) -> list[int]:
    """The exit statuses of `count` processes that each run call(). As with torchrun, one that dies
    ends them all.

    output: file that takes what they print.
    """
    return statuses(begin(count, call, output), seconds)


def begin(count: int, call: Callable, output: Path | None = None) -> list:
    """The processes of a launch as in `together`, started."""
    fork = multiprocessing.get_context("fork")
    port = free_port()
    children = [
        fork.Process(target=in_process, args=(rank, count, port, call, output))
        for rank in range(count)
    ]
    for child in children:
        child.start()
    return children


def statuses(children: list, seconds: float = 100) -> list[int]:
    """The exit statuses of the processes of a launch, once they have ended."""
    end = time.monotonic() + seconds
    while any(child.is_alive() for child in children):
        if time.monotonic() > end or any(child.exitcode not in (0, None) for child in children):
            time.sleep(0.2)  # for the output of the other processes
            for child in children:
                child.kill()
        time.sleep(0.01)
    return [child.exitcode for child in children]
