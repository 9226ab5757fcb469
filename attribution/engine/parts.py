"""Parts: runs of whole groups of batches, shared out to processes, and what each process has
finished of them.

Batches and groups are formed once over the whole data set: a function of its rows and of the token
budget. A part is the unit of recovery. What a process has is in memory, and is saved every PATIENCE
seconds: one file a process, with the numbers of the parts that it holds. So a process that is
killed costs at most what it did since. Symbols: N training rows.
"""

import contextlib
import secrets
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import torch

from attribution.engine.batching import batches_within, group_ends
from attribution.files import fingerprint_of_tensors, write_tensors
from attribution.processes import Processes, share_out

PATIENCE = 600.0  # seconds of work that a killed process loses at most
SMALLEST_BUDGET = 128  # tokens of a batch below which nothing more is tried
PARTS = "parts"  # key of a file: numbers of the parts that it holds
CONTENT = "content"  # key of a file: SHA-256 of the rest
SECONDS = "seconds"  # key of a file: what its parts took, over all processes that worked on it


def digest(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """(32,) uint8: SHA-256 over names, types, shapes and values of the tensors."""
    return torch.frombuffer(bytearray.fromhex(fingerprint_of_tensors(tensors)), dtype=torch.uint8)


@dataclass(frozen=True)
class Part:
    """Whole groups of batches."""

    batches: list[list[int]]  # of row numbers, longest rows first
    ends: list[bool]  # whether a batch is the last of its group

    @property
    def rows(self) -> list[int]:
        """Row numbers in the order of the batches."""
        return [row for batch in self.batches for row in batch]

    def passes(self, columns: int):
        """Yields (column, batch, whether it ends its group), group by group, each group once for
        every column.
        """
        start = 0
        for i in (i for i, end in enumerate(self.ends) if end):
            for column in range(columns):
                for k in range(start, i + 1):
                    yield column, self.batches[k], self.ends[k]
            start = i + 1

    def within(self, lengths: np.ndarray, budget: int) -> "Part":
        """The same rows in the same order, in smaller batches: for a process that has run out of
        memory.

        lengths: tokens of every row of the data set. budget: tokens of a batch with padding.
        """
        rows = self.rows
        batches = batches_within(lengths[rows], budget)
        ends = group_ends(batches, lengths[rows], budget)
        return Part([[rows[i] for i in batch] for batch in batches], ends)


def divide(lengths: np.ndarray, budget: int, count: int, group: int | None = None) -> list[Part]:
    """The rows with these lengths (N,) in about `count` parts of like many tokens, never more than
    there are groups.

    budget: tokens of a batch with padding; group: those of a group (as many as a batch).
    """
    batches = batches_within(lengths, budget)
    ends = group_ends(batches, lengths, group or budget)
    tokens = [int(lengths[batch].sum()) for batch in batches]
    total, done, start = sum(tokens), 0, 0
    parts: list[Part] = []
    for i, end in enumerate(ends):
        done += tokens[i]
        if end and (i == len(ends) - 1 or done * count >= total * (len(parts) + 1)):
            parts.append(Part(batches[start : i + 1], ends[start : i + 1]))
            start = i + 1
    return parts


class Kept:
    """What the processes have finished of one phase, in memory and on the disk.

    parts: numbers of the parts that this process holds; tensors: what it took over, by name;
    others: numbers of parts that other processes hold; seconds: of work behind what this process
    holds.
    """

    def __init__(self, folder: Path, phase: str, processes: Processes) -> None:
        self.folder, self.phase, self.processes = folder / phase, phase, processes
        self.path = self.folder / f"{secrets.token_hex(8)}.safetensors"
        files = processes.from_main(lambda: accept(self.folder))
        self.taken = [name for name, _ in files][processes.rank :: processes.count]
        self.held_by_any = {part for _, parts in files for part in parts}
        self.load()

    def load(self) -> None:
        """Reads again what this process had saved, or took over: what is in memory is of no use."""
        self.parts: list[int] = []
        self.loaded: list[dict[str, torch.Tensor]] = []
        self.seconds, self.saved = 0.0, time.perf_counter()
        for name in [self.path.name] if self.path.exists() else self.taken:
            tensors = safetensors.torch.load_file(self.folder / name)
            tensors.pop(CONTENT)
            self.parts += tensors.pop(PARTS).tolist()
            self.seconds += tensors.pop(SECONDS).item()
            self.loaded.append(tensors)

    @property
    def due(self) -> bool:
        """Whether so much was done since the last time that it should be saved."""
        return time.perf_counter() - self.saved >= PATIENCE

    def save(self, tensors: dict[str, torch.Tensor], parts: list[int]) -> None:
        """Saves the tensors and says that they hold these parts; files that were taken over go."""
        now = time.perf_counter()
        self.seconds, self.saved = self.seconds + now - self.saved, now
        numbers = {
            PARTS: torch.tensor(parts, dtype=torch.int64),
            SECONDS: torch.tensor([self.seconds]),
        }
        tensors = tensors | numbers
        write_tensors(self.path, tensors | {CONTENT: digest(tensors)})
        for name in self.taken:
            (self.folder / name).unlink(missing_ok=True)

    def remaining(self, weights: list[float]) -> list[int]:
        """Numbers of the parts, of all with these weights, that are left for this process."""
        left = [i for i in range(len(weights)) if i not in self.held_by_any]
        return [
            left[i]
            for i in share_out([weights[i] for i in left], self.processes.count)[
                self.processes.rank
            ]
        ]

    def earlier(self) -> float:
        """Seconds of work of earlier processes behind what is held, of the one that has most."""
        return max(self.processes.all_of(self.seconds))

    def remove(self) -> None:
        """Removes the files of the phase, once its result is stored."""
        self.processes.meet()
        if self.processes.main:
            shutil.rmtree(self.folder, ignore_errors=True)


def accept(folder: Path) -> list[tuple[str, list[int]]]:
    """(name, parts that it holds) of the files to go on from.

    Where two hold the same part, because a process died between writing one and deleting the other,
    the one that holds more counts. Damaged files do not, and are named.
    """
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        with contextlib.suppress(OSError, safetensors.SafetensorError, KeyError):
            tensors = safetensors.torch.load_file(path)
            if torch.equal(tensors.pop(CONTENT), digest(tensors)):
                found.append((path.name, tensors[PARTS].tolist()))
                continue
        print(f"{path} is damaged and does not count", file=sys.stderr)
    accepted: list[tuple[str, list[int]]] = []
    taken: set[int] = set()
    for name, parts in sorted(found, key=lambda entry: (-len(entry[1]), entry[0])):
        if taken.isdisjoint(parts):
            accepted.append((name, parts))
            taken.update(parts)
    return accepted
