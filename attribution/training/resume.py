"""Training that is shared by processes and that goes on after the last finished epoch.

Every step is a step on the whole batch: each process adds the gradients of its rows' summed loss,
the sums are added over the processes and have been divided by the rows of the whole batch. Symbols:
B rows of a batch.
"""

import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from attribution.files import (
    describe_parts,
    differing_parts,
    intact,
    read_json,
    sha256_of,
    write_json,
    write_tensors,
)
from attribution.processes import ALONE, Processes

SEEDS_APART = 1_000_003  # between the seeds of two processes' dropout masks


def share_of(rows: np.ndarray, lengths: np.ndarray, processes: Processes) -> np.ndarray:
    """This process's rows of a batch (B,); all of them where there is one process. lengths: of all
    rows, in tokens.

    Dealt out from the longest to the shortest, so that processes get about as many tokens. May be
    empty.
    """
    if processes.count == 1:
        return rows
    return rows[np.argsort(-lengths[rows], kind="stable")][processes.rank :: processes.count]


def add_up(
    parameters: list[torch.nn.Parameter], loss: torch.Tensor, processes: Processes
) -> torch.Tensor:
    """Replaces gradients by their sums over the processes; returns the sum of the losses, a scalar.

    A process without rows takes part with zeros; a parameter that no process has a gradient of
    keeps none.
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


class Progress:
    """Model, optimizer, position and random states at the end of an epoch, in a folder of their
    own.

    fingerprint: what the training depends on; where it differs from what is stored, training starts
    anew. epochs: what was recorded of finished epochs; whoever trains adds to it.
    """

    def __init__(self, folder: Path, fingerprint: dict, processes: Processes = ALONE) -> None:
        self.folder, self.fingerprint, self.processes = folder, fingerprint, processes
        self.epochs: list[dict] = []

    def restore(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, schedule) -> int:
        """Puts everything back as the last finished epoch left it; returns the number of finished
        epochs.
        """
        record = self.processes.from_main(self._usable)
        if record is None:
            return 0
        tensors = load_file(self.folder / record["file"])
        device = next(model.parameters()).device
        own = {
            name.removeprefix("model."): value
            for name, value in tensors.items()
            if name.startswith("model.")
        }
        model.load_state_dict(own)
        state = optimizer.state_dict()
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                number, _, what = rest.partition(".")
                state["state"].setdefault(int(number), {})[what] = value
        optimizer.load_state_dict(state)
        schedule.load_state_dict(record["schedule"] | {"lr_lambdas": [None]})
        for group, rate in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        torch.set_rng_state(tensors[f"random.{self.processes.rank}.cpu"])
        if device.type == "cuda":
            torch.cuda.set_rng_state(tensors[f"random.{self.processes.rank}.cuda"], device)
        self.epochs[:] = record["epochs"]
        print(f"going on after epoch {record['finished']}")
        return record["finished"]

    def save(
        self, finished: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, schedule
    ) -> None:
        """Stores everything after so many finished epochs; the main process writes."""
        device = next(model.parameters()).device
        random = {"cpu": torch.get_rng_state()}
        if device.type == "cuda":
            random["cuda"] = torch.cuda.get_rng_state(device)
        states = self.processes.all_of(random)
        if not self.processes.main:
            return
        tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
        for number, parts in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{what}": value for what, value in parts.items()}
        for rank, parts in enumerate(states):
            tensors |= {f"random.{rank}.{kind}": value for kind, value in parts.items()}
        name = f"epoch{finished}.safetensors"
        write_tensors(self.folder / name, {key: value.cpu() for key, value in tensors.items()})
        position = {
            key: value for key, value in schedule.state_dict().items() if key != "lr_lambdas"
        }
        write_json(
            self.folder / "progress.json",
            {
                "fingerprint": self.fingerprint,
                "finished": finished,
                "file": name,
                "schedule": position,
                "files": {name: sha256_of(self.folder / name)},
                "epochs": self.epochs,
            },
        )
        for path in self.folder.glob("epoch*.safetensors"):
            if path.name != name:
                path.unlink()

    def remove(self) -> None:
        """Removes what was stored, once the run is."""
        if self.processes.main:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _usable(self) -> dict | None:
        """The record, where it belongs to this training and its file is whole; what is not is
        deleted.
        """
        record = read_json(self.folder / "progress.json")
        if record is None:
            return None
        if parts := differing_parts(record["fingerprint"], self.fingerprint):
            print(f"the unfinished training had {describe_parts(parts)}; training starts anew")
        elif intact(self.folder, record["files"]):
            return record
        shutil.rmtree(self.folder)
        return None
