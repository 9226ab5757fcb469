"""Resuming of an analysis: finished phases of a piece of work, and finished parts of a phase.

A piece of work (factors, or scores of one kind) has a folder with finished.json: the fingerprint,
the plan, and the files of every finished phase with their checksums. A phase goes through the data
set in parts; each process saves the results of its parts every PATIENCE seconds as a snapshot, so a
killed process loses at most the work since then.
"""

import os
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from attribution.files import Refused, checksums, intact, refuse_if_stale, write_json
from attribution.processes import ALONE, Processes, share_out
from attribution.tensors import read_snapshot, remove_snapshot, write_snapshot

PATIENCE = 600.0  # seconds of work that a killed process loses at most


@dataclass
class Work:
    """A piece of work: its plan, and its finished phases.

    make_plan() is called if there is nothing to continue from; else the plan is the one with which
    the work began. All processes of a launch know the same; the main process writes.
    """

    folder: Path
    fingerprint: dict
    what: str
    make_plan: Callable[[], dict]
    overwrite: bool
    processes: Processes = ALONE
    replaceable: bool = False  # see `refuse_if_stale`
    earlier: float = 0.0  # seconds that earlier processes spent on the current phase

    def __post_init__(self) -> None:
        self.path = self.folder / "finished.json"

        def known() -> dict | None:
            if self.overwrite:
                shutil.rmtree(self.folder, ignore_errors=True)
            return refuse_if_stale(self.path, self.fingerprint, self.what, self.replaceable)

        self.record = self.processes.from_main(known)
        if self.record is None:
            made = {"fingerprint": self.fingerprint, "plan": self.make_plan()}
            self.record = made | {"parts": {}, "seconds": {}}
            if self.processes.main:
                shutil.rmtree(self.folder, ignore_errors=True)
                write_json(self.path, self.record)
            self.processes.meet()
        self.plan: dict = self.record["plan"]

    def run(self, part: str, patterns: list[str], call: Callable[[], None]) -> None:
        """Runs call(), unless the part is finished and its files are intact.

        part: name of a phase, before a comma if it is one of several partitions. patterns: of the
        files that call() leaves in the folder; leftovers are deleted first.
        """
        if self.processes.from_main(lambda: self._finished(part, patterns)):
            return
        start = time.perf_counter()
        self.earlier = 0.0
        call()
        if self.processes.main:
            files = [path for pattern in patterns for path in self.folder.glob(pattern)]
            self.record["parts"][part] = checksums(files)
            phase = part.partition(",")[0]
            seconds = self.record["seconds"].get(phase, 0.0) + self.earlier
            self.record["seconds"][phase] = seconds + time.perf_counter() - start
            write_json(self.path, self.record)
        self.processes.meet()

    def _finished(self, part: str, patterns: list[str]) -> bool:
        recorded = self.record["parts"].get(part)
        if recorded is not None:
            if intact(self.folder, recorded):
                return True
            print(f"{self.folder.name}: {part} is damaged and is done again")
        for pattern in patterns:
            for path in self.folder.glob(pattern):
                path.unlink()
        return False

    def record_replanned(self, phase: str, changed: dict) -> None:
        """Records the plans with which processes continued when memory ran out; all call this.

        changed: entries of the plan that this process changed.
        """
        plans = enumerate(self.processes.all_of(changed))
        if found := {str(rank): plan for rank, plan in plans if plan}:
            self.record.setdefault("replanned", {})[phase] = found

    def keep_factors(self, target: Path, rows: int) -> None:
        """Moves complete factors to their place, with their record.

        rows: training rows on which they were fitted. Raises Refused for a factor that is not
        finite.
        """
        shutil.rmtree(self.folder / "progress", ignore_errors=True)
        paths = list(self.folder.glob("*.safetensors"))
        for path in paths:
            for module, factor in load_file(path).items():
                if not factor.isfinite().all():
                    raise Refused(
                        f"the {path.stem} of {module} is not finite, so no factors are stored; "
                        "train again"
                    )
        record = {
            "fingerprint": self.record["fingerprint"],
            "files": checksums(paths),
            "seconds": self.record["seconds"],
            "factor_rows": rows,
            "plan": self.plan,
            "replanned": self.record.get("replanned", {}),
        }
        write_json(self.folder / "factors.json", record)
        target.parent.mkdir(exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(self.folder, target)


class PartialResults:
    """Results of the finished parts of one phase, in memory and on the disk.

    parts: numbers of the parts behind this process's results; taken: results of earlier processes
    that this one continues, as mappings of name to tensor; seconds: of work behind them.
    """

    def __init__(self, folder: Path, processes: Processes) -> None:
        self.folder = folder
        self.processes = processes
        self.path = self.folder / f"{secrets.token_hex(8)}.json"
        accepted = processes.from_main(lambda: accept(self.folder))
        self.continued = [name for name, _ in accepted][processes.rank :: processes.count]
        self.finished_by_any = {part for _, parts in accepted for part in parts}
        self.load()

    def load(self) -> None:
        """Reads this process's snapshot, or those of earlier processes that it continues."""
        self.parts: list[int] = []
        self.taken: list[dict[str, torch.Tensor]] = []
        self.seconds = 0.0
        self.saved = time.perf_counter()
        for name in [self.path.name] if self.path.exists() else self.continued:
            snapshot = read_snapshot(self.folder / name)
            assert snapshot is not None  # accepted a moment ago
            record, tensors = snapshot
            self.parts += record["parts"]
            self.seconds += record["seconds"]
            self.taken.append(tensors)

    @property
    def due(self) -> bool:
        """Whether it is time to save."""
        return time.perf_counter() - self.saved >= PATIENCE

    def save(self, tensors: dict[str, torch.Tensor], parts: list[int]) -> None:
        """Saves the results of these parts; snapshots that this process continued are removed."""
        now = time.perf_counter()
        self.seconds += now - self.saved
        self.saved = now
        write_snapshot(self.path, {"parts": parts, "seconds": self.seconds}, tensors)
        for name in self.continued:
            remove_snapshot(self.folder / name)

    def remaining(self, weights: list[float]) -> list[int]:
        """Numbers of the parts, of all with these weights, that are left for this process."""
        left = [i for i in range(len(weights)) if i not in self.finished_by_any]
        shares = share_out([weights[i] for i in left], self.processes.count)
        return [left[i] for i in shares[self.processes.rank]]

    def earlier(self) -> float:
        """Seconds of work of earlier processes behind the results, of the process that has most."""
        return max(self.processes.all_of(self.seconds))

    def remove(self) -> None:
        """Removes the snapshots of the phase, once its result is stored."""
        self.processes.meet()
        if self.processes.main:
            shutil.rmtree(self.folder, ignore_errors=True)


def accept(folder: Path) -> list[tuple[str, list[int]]]:
    """(name, numbers of its parts) of the snapshots to continue from.

    If two have the same part, because a process died between writing one and removing the other,
    the one with more parts counts. Damaged ones do not, and are printed.
    """
    found = [
        (path.name, snapshot[0]["parts"])
        for path in sorted(folder.glob("*.json"))
        if (snapshot := read_snapshot(path))
    ]
    accepted: list[tuple[str, list[int]]] = []
    taken: set[int] = set()
    for name, parts in sorted(found, key=lambda entry: -len(entry[1])):
        if taken.isdisjoint(parts):
            accepted.append((name, parts))
            taken.update(parts)
    return accepted
