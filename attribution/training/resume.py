"""Training that is shared by processes, and that continues after the last finished epoch.

Every step is one on the whole batch: each process computes the gradients of the summed loss of its
rows, divided by the rows of the whole batch, and these are added over the processes. Symbols: B
rows of a batch.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from attribution.files import describe_parts, differing_parts
from attribution.processes import ALONE, Processes
from attribution.tensors import read_snapshot, write_snapshot

SEEDS_APART = 1_000_003  # between the seeds of two processes' dropout masks


def share_of(rows: np.ndarray, lengths: np.ndarray, processes: Processes) -> np.ndarray:
    """Rows of a batch (B,) that this process computes, possibly none. lengths: of all rows, in
    tokens.

    Rows are distributed from the longest to the shortest, so that all processes have about the same
    number of tokens.
    """
    if processes.count == 1:
        return rows
    return rows[np.argsort(-lengths[rows], kind="stable")][processes.rank :: processes.count]


def add_up(
    parameters: list[torch.nn.Parameter], loss: torch.Tensor, processes: Processes
) -> torch.Tensor:
    """Replaces gradients by their sums over the processes; returns the sum of the losses, a scalar.

    A process without rows adds zeros; a parameter without a gradient in any process keeps none.
    """
    if processes.count == 1:
        return loss
    used = torch.tensor(
        [float(p.grad is not None) for p in parameters], dtype=loss.dtype, device=loss.device
    )
    counts = torch.cat([loss[None], used])
    processes.add([counts])
    shared = [p for p, count in zip(parameters, counts[1:].tolist(), strict=True) if count]
    flat = torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in shared]
    )
    processes.add([flat])
    for p, gradient in zip(shared, flat.split([p.numel() for p in shared]), strict=True):
        p.grad = gradient.view_as(p)
    return counts[0]


@dataclass(frozen=True)
class Progress:
    """Snapshot of model, optimizer, schedule and random states at the end of an epoch."""

    path: Path  # in a folder of its own
    fingerprint: dict  # parts that training depends on: it starts anew if the stored ones differ
    processes: Processes = ALONE
    epochs: list[dict] = field(default_factory=list)  # the finished ones, which the caller adds

    def restore(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, schedule) -> int:
        """Restores the states after the last finished epoch; returns the number of these epochs."""
        if not self.processes.from_main(self._usable):
            return 0
        snapshot = read_snapshot(self.path)
        assert snapshot is not None  # the main process has just read it
        record, states = snapshot
        model.load_state_dict(states["model"])
        optimizer.load_state_dict(states["optimizer"])
        schedule.load_state_dict(states["schedule"])
        random = states["random"][self.processes.rank]
        torch.set_rng_state(random["cpu"])
        if "cuda" in random:
            torch.cuda.set_rng_state(random["cuda"], next(model.parameters()).device)
        self.epochs[:] = record["epochs"]
        print(f"going on after epoch {record['finished']}")
        return record["finished"]

    def save(
        self, finished: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, schedule
    ) -> None:
        """Stores the states after this number of finished epochs; the main process writes."""
        device = next(model.parameters()).device
        random = {"cpu": torch.get_rng_state()}
        if device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(device)
        states = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "random": self.processes.all_of(random),
        }
        if self.processes.main:
            record = {"fingerprint": self.fingerprint, "finished": finished, "epochs": self.epochs}
            write_snapshot(self.path, record, states)

    def remove(self) -> None:
        """Removes the folder, once the run is stored."""
        if self.processes.main:
            shutil.rmtree(self.path.parent, ignore_errors=True)

    def _usable(self) -> bool:
        """Whether there are intact states of this training; others are deleted."""
        snapshot = read_snapshot(self.path)
        parts = differing_parts(snapshot[0]["fingerprint"], self.fingerprint) if snapshot else []
        if parts:
            print(f"the unfinished training had {describe_parts(parts)}; training starts anew")
        elif snapshot:
            return True
        shutil.rmtree(self.path.parent, ignore_errors=True)
        return False
