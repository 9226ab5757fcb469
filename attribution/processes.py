"""Rank, world size and collectives of a torchrun launch, with timeouts; this process's device,
cores and memory.

    with launched() as processes:            # one process without a launcher
        processes.add([total])               # every process has the sum now

Callers distribute rows and parts. A collective ends after `TIMEOUT` (or `TRAINING_TIMEOUT`), or at
once when a process has died.
"""

import contextlib
import datetime
import glob
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist

from attribution.files import Refused

TIMEOUT = datetime.timedelta(hours=2)  # for the slowest process; a dead one is noticed at once
# The same if each process trains other checkpoints, one of them perhaps one more than the rest.
TRAINING_TIMEOUT = datetime.timedelta(days=7)
CONTROL_GROUPS = Path("/sys/fs/cgroup")  # memory limits of containers and cluster jobs, on Linux
LAUNCH = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # torch reads them all
OTHER_LAUNCHERS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


@dataclass(frozen=True)
class Processes:
    """This process's place among those of its launch."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0  # on this machine
    local_count: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes results."""
        return self.rank == 0

    def sharers(self, device: torch.device) -> int:
        """Number of processes of this launch that use the device, this one included."""
        if device.type == "cpu":
            return self.local_count
        return -(-self.local_count // torch.cuda.device_count())

    def from_main(self, make: Callable) -> Any:
        """Result of make() on the main process, for every process; it must be picklable.

        Raises Refused on every process if make() does.
        """
        if self.count == 1:
            return make()
        value: list = [None]
        if self.main:
            try:
                value = [make()]
            except Refused as refusal:
                value = [refusal]
        dist.broadcast_object_list(value, src=0)
        if isinstance(value[0], Refused):
            raise value[0]
        return value[0]

    def all_of(self, value) -> list:
        """Values of all processes, in the order of ranks, for every process."""
        values = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value)
        return values

    def add(self, tensors: list[torch.Tensor]) -> None:
        """Replaces each tensor by its sum over the processes; shapes and types are the same
        everywhere. If the GPUs are connected, a CPU tensor goes through the GPU, which is faster.
        """
        if self.count == 1:
            return
        for tensor in tensors:
            slow = tensor.device.type == "cpu" and "nccl" in dist.get_backend_config()
            moved = tensor.cuda() if slow else tensor
            dist.all_reduce(moved)  # its default is the sum
            tensor.copy_(moved)

    def to_main(self, tensor: torch.Tensor, shapes: list) -> Iterator[tuple[int, torch.Tensor]]:
        """(rank, tensor) of every process, on the main one; the rest send theirs and yield nothing.

        tensor: on the CPU. shapes: of every rank's tensor. One tensor is received at a time.
        """
        if not self.main:
            dist.send(tensor.contiguous(), dst=0)
            return
        yield 0, tensor
        for rank in range(1, self.count):
            other = tensor.new_empty(shapes[rank])
            dist.recv(other, src=rank)
            yield rank, other

    def meet(self) -> None:
        """Waits until every process has come here."""
        self.all_of(None)


ALONE = Processes()


def rank_and_size() -> tuple[int, int]:
    """Rank and number of processes of this launch, from the launcher's RANK and WORLD_SIZE.

    Raises Refused if there is no such rank.
    """
    rank, count = number_in("RANK", 0), number_in("WORLD_SIZE", 1)
    if rank >= count:
        size = os.environ.get("WORLD_SIZE", "not set")
        raise Refused(f"RANK is {rank}, but WORLD_SIZE is {size}; start it with torchrun")
    return rank, count


def number_in(variable: str, default: int) -> int:
    """Number in a launcher's environment variable. Raises Refused for another value."""
    value = os.environ.get(variable, str(default))
    if not value.isdecimal():
        raise Refused(f"the environment variable {variable} must be a number, not {value!r}")
    return int(value)


def here() -> Processes:
    """Place of this process in its launch. Raises Refused if the launcher does not tell it."""
    given = [name for name in LAUNCH if name in os.environ]
    missing = [name for name in LAUNCH if name not in os.environ]
    lonely = "RANK" in given and "WORLD_SIZE" in missing
    if missing and (lonely or number_in("WORLD_SIZE", 1) > 1):
        raise Refused(
            f"a launcher sets all of {', '.join(LAUNCH)}; here are {', '.join(given)}, missing are "
            f"{', '.join(missing)}; start it with torchrun, or unset them"
        )
    rank, count = rank_and_size()
    if count > 1:
        gpus = torch.cuda.device_count()
        local_count = number_in("LOCAL_WORLD_SIZE", min(count, gpus or count))
        return Processes(rank, count, number_in("LOCAL_RANK", 0), local_count)
    if max(number_in(name, 1) for name in OTHER_LAUNCHERS) > 1:
        raise Refused(
            "this launcher does not say what torch needs to know (RANK, WORLD_SIZE); start it with "
            "torchrun"
        )
    return ALONE


def choose_device() -> torch.device:
    """GPU of this process (LOCAL_RANK modulo the visible ones), made current; else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number = number_in("LOCAL_RANK", 0) % torch.cuda.device_count()
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    return device


def name_of(device: torch.device) -> str:
    """Name of the device for the screen; warns if the machine has a GPU that torch cannot find."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    name = f"cpu ({torch.get_num_threads()} threads)"
    if torch.version.cuda and glob.glob("/dev/nvidia[0-9]*"):
        name += (
            f"; this machine has a GPU, but torch {torch.__version__} finds none: check its driver"
        )
    return name


def check_launcher(device: torch.device, processes: Processes) -> None:
    """Raises Refused for a launcher's configuration that training cannot follow; prints the
    settings that it ignores.
    """
    for name in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() in ("true", "1"):
            raise Refused(
                f"the launcher asks for {name}, which train.py does not know; launch without it"
            )
    if processes.count > 1 and device.type == "cuda" and processes.sharers(device) > 1:
        raise Refused(f"{processes.local_count} processes would share GPUs; start one for each GPU")
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision != "no":
        print(
            f"the launcher's mixed precision ({precision}) is not used; --use_half_precision asks "
            "for bfloat16"
        )
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps not in ("1", "auto"):
        print(
            f"the launcher's accumulation over {steps} batches is not used; --train_batch_size is "
            "a whole step"
        )


@contextlib.contextmanager
def launched(timeout: datetime.timedelta = TIMEOUT):
    """Context with the connected `Processes` of this launch; only the main process prints to
    standard output.

    timeout: longest wait for a process, after which an error is raised. Gloo connects CPUs and
    processes that share a GPU; NCCL connects processes with a GPU each.
    """
    processes = here()
    if processes.count == 1:
        yield processes
        return
    own_gpu = torch.cuda.is_available() and processes.local_count <= torch.cuda.device_count()
    if own_gpu:
        torch.cuda.set_device(processes.local_rank)
    dist.init_process_group("cpu:gloo,cuda:nccl" if own_gpu else "gloo", timeout=timeout)
    try:
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(sys.stdout if processes.main else nowhere),
        ):
            yield processes
            processes.meet()
    except BaseException:
        # NCCL's end waits for all processes: one that fails exits without it, and the launcher ends
        # the rest.
        if not own_gpu:
            end_group()
        raise
    end_group()


def end_group() -> None:
    """Leaves the group of processes."""
    # gloo of torch 2.6 may lock up while its thread still releases the last message
    time.sleep(0.1)
    dist.destroy_process_group()


def share_out(weights: list[float], count: int) -> list[list[int]]:
    """Indices of the weights, in ascending order, for each of `count` processes, so that their sums
    are about the same.

    The heaviest is assigned first, always to the process with the least; the result is the same on
    every process.
    """
    shares: list[list[int]] = [[] for _ in range(count)]
    loads = [0.0] * count
    for i in sorted(range(len(weights)), key=lambda i: -weights[i]):
        least = loads.index(min(loads))
        shares[least].append(i)
        loads[least] += weights[i]
    return [sorted(share) for share in shares]


# --- cores and memory ----------------------------------------------------------------------------


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_host_memory() -> int:
    """Bytes of host memory that this process may still take: free, and within its limits."""
    return max(0, min([psutil.virtual_memory().available, *map(left_in, control_groups())]))


def control_groups(
    groups: Path = CONTROL_GROUPS, own: Path = Path("/proc/self/cgroup")
) -> list[Path]:
    """Folders of the memory control groups that hold this process, inner ones first (versions 1 and
    2).
    """
    found: list[Path] = []
    with contextlib.suppress(OSError, ValueError):
        for line in own.read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds == "" or "memory" in kinds.split(","):
                root = groups / "memory" if kinds else groups
                place = root / path.lstrip("/")
                found += [one for one in (place, *place.parents) if one.is_relative_to(root)]
    return found


def left_in(group: Path) -> float:
    """Bytes that a control group has left; infinite if it has no limit, or cannot be read.

    Pages of files that were not used lately count as free: the kernel gives them back.
    """
    names = (
        ("memory.max", "memory.current"),  # version 2
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    )
    for limit, used in names:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            free = int((group / limit).read_text()) - int((group / used).read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            return free + int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
    return float("inf")
