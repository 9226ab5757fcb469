"""The processes of one launch (torchrun, accelerate launch): who they are, sums over them, and
waits that end.

    with launched() as processes:            # one process without a launcher
        processes.add([total])               # every process has the sum now

Rows and parts are shared out by the callers. Every wait ends after `WAIT` (or `APART`), or at once
where a process has died.
"""

import contextlib
import datetime
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from attribution.files import Refused

WAIT = datetime.timedelta(hours=2)  # for the slowest process; one that dies is noticed at once
APART = datetime.timedelta(
    days=7
)  # the same where each trains checkpoints of its own: one may have one more
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
        """How many processes of this launch use the device, this one included."""
        return (
            self.local_count
            if device.type == "cpu"
            else -(-self.local_count // torch.cuda.device_count())
        )

    def from_main(self, make: Callable) -> Any:
        """What make() returns on the main process, on every process; it must be picklable."""
        if self.count == 1:
            return make()
        value = [make() if self.main else None]
        dist.broadcast_object_list(value, src=0)
        return value[0]

    def all_of(self, value) -> list:
        """Every process's value, in the order of ranks, on every process."""
        values = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value)
        return values

    def add(self, tensors: list[torch.Tensor]) -> None:
        """Replaces each tensor by its sum over the processes; shapes and types are the same
        everywhere.
        """
        if self.count > 1:
            for tensor in tensors:
                self._through(tensor, lambda x: dist.all_reduce(x, op=dist.ReduceOp.SUM))

    def spread(self, tensor: torch.Tensor, source: int) -> None:
        """Replaces the tensor by that of process `source`."""
        if self.count > 1:
            self._through(tensor, lambda x: dist.broadcast(x, src=source))

    def to_main(self, tensor: torch.Tensor, shapes: list) -> Iterator[tuple[int, torch.Tensor]]:
        """On the main process (rank, tensor) of every process; the others send theirs.

        tensor: on the CPU. shapes: of every rank's tensor. What comes is used before the next one
        is asked for.
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

    @staticmethod
    def _through(tensor: torch.Tensor, call: Callable) -> None:
        """call(tensor); on GPUs that talk to each other a CPU tensor makes the way through the GPU,
        which is faster.
        """
        if tensor.device.type == "cpu" and "nccl" in dist.get_backend_config():
            moved = tensor.cuda()
            call(moved)
            tensor.copy_(moved)
        else:
            call(tensor)


ALONE = Processes()


def here() -> Processes:
    """This process's place, as the launcher's environment variables say. Raises Refused for a
    launcher without them.
    """
    numbers = [
        int(os.environ.get(name, "0"))
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    ]
    rank, count, local_rank, local_count = numbers
    if count > 1 and {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ):
        return Processes(
            rank,
            count,
            local_rank,
            max(1, local_count or min(count, torch.cuda.device_count() or count)),
        )
    if count > 1 or max(int(os.environ.get(name, "1")) for name in OTHER_LAUNCHERS) > 1:
        raise Refused(
            "this launcher does not say what torch needs to know (RANK, WORLD_SIZE); start it with "
            "torchrun"
        )
    return ALONE


def check_launcher(device: torch.device, processes: Processes) -> None:
    """Raises Refused for a launcher's configuration that training could not follow; says what it
    does not follow.
    """
    for name in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() in ("true", "1"):
            raise Refused(
                f"the launcher asks for {name}, which train.py does not know; launch without it"
            )
    if processes.count > 1 and device.type == "cuda" and processes.sharers(device) > 1:
        raise Refused(f"{processes.local_count} processes would share GPUs; start one for each GPU")
    if (precision := os.environ.get("ACCELERATE_MIXED_PRECISION", "no")) != "no":
        print(
            f"the launcher's mixed precision ({precision}) is not used; --use_half_precision asks "
            "for bfloat16"
        )
    if (steps := os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")) not in (
        "1",
        "auto",
    ):
        print(
            f"the launcher's accumulation over {steps} batches is not used; --train_batch_size is "
            "a whole step"
        )


@contextlib.contextmanager
def launched(wait: datetime.timedelta | None = None):
    """A context with this launch's `Processes`, connected; only the main process prints to standard
    output.

    wait: after which a process that does not come is given up, and an error raised (WAIT). Gloo
    connects CPUs and processes that share a GPU, NCCL processes with a GPU each.
    """
    processes = here()
    if processes.count == 1:
        yield processes
        return
    own_gpu = torch.cuda.is_available() and processes.local_count <= torch.cuda.device_count()
    if own_gpu:
        torch.cuda.set_device(processes.local_rank)
    dist.init_process_group("cpu:gloo,cuda:nccl" if own_gpu else "gloo", timeout=wait or WAIT)
    try:
        with contextlib.ExitStack() as stack:
            if not processes.main:
                stack.enter_context(
                    contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w")))
                )
            yield processes
            processes.meet()
    except BaseException:
        # NCCL's end waits for all processes; one that fails just exits, and the launcher ends the
        # rest
        if not own_gpu:
            end_group()
        raise
    end_group()


def end_group() -> None:
    """Leaves the group of processes."""
    time.sleep(
        0.1
    )  # torch 2.6's gloo may lock up if its thread is still letting go of the last message
    dist.destroy_process_group()


def share_out(weights: list[float], count: int) -> list[list[int]]:
    """Numbers of the weights, shared out to `count` processes so that each has about the same sum;
    each in order.

    The heaviest first, each to the process that has least; the same everywhere.
    """
    shares: list[list[int]] = [[] for _ in range(count)]
    loads = [0.0] * count
    for i in sorted(range(len(weights)), key=lambda i: (-weights[i], i)):
        least = loads.index(min(loads))
        shares[least].append(i)
        loads[least] += weights[i]
    return [sorted(share) for share in shares]
