"""Scores of one checkpoint by replaying its training in the tangent kernel.

A score is the change of a query's margin, in log-odds, that a training row makes by being there,
where every other row is there by half, as in a random half; of a regression, in squared units of
the label. A row's self score is minus its margin where it was left out: a high one says that the
label may be wrong.

Features of training rows and of validation rows are kept in <checkpoint>/influence/replay, so that
other questions need no pass over them. Symbols: Q queries, N training rows, F features.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from attribution.data.dataset import GlueDataset
from attribution.engine.memory import SAFETY, free_memory
from attribution.engine.resume import Work
from attribution.files import Refused, read_json, write_json, write_tensors
from attribution.influence.checkpoint import Analysis
from attribution.processes import choose_device, share_out
from attribution.replay import descent
from attribution.replay.descent import Replay, Targets
from attribution.replay.features import FEATURES, Sketch, second_moments
from attribution.training.members import draw_share
from attribution.training.queries import predict_run
from attribution.training.run import Run

VERSION = 2  # of everything in a replay that changes numbers
HELD_OUT = 256  # validation rows at most that set the time where training left no row out
GROUP = 2048  # rows after which their features are kept


@dataclass(eq=False)
class ReplayAnalysis(Analysis):
    """Replayed scores of one checkpoint under one set of settings."""

    def __post_init__(self) -> None:
        super().__post_init__()
        on_the_way = self.run.step is not None
        end = Run.read(self.run.folder.parent.parent) if on_the_way else self.run
        if end is None:
            raise Refused(f"the training that kept {self.run.folder} is gone; train it again")
        self.end = end
        self.works: dict[str, Work] = {}
        for parts in self.scores.parts.values():
            parts |= {"replay": VERSION, "end of training": end.weights}

    def divisor(self) -> float | None:
        """1: replayed scores have a unit."""
        return 1.0 if self.processes.main else None

    def release(self) -> None:
        """Frees the model."""
        self.__dict__.pop("sketch", None)
        self.__dict__.pop("model", None)

    def _new_scores(self, kind: str) -> tuple[torch.Tensor, dict, Path | None]:
        """(scores, entries of their JSON, None: what it leaves is kept)."""
        replay = self.replay()
        if replay is None:
            return torch.empty(0), {}, None
        about = {"time": replay.time, "seconds": dict(self._work("rows").record["seconds"])}
        if kind == "pairwise":
            return replay.scores().cpu(), about, None
        return -replay.margins_left_out(self.settings.seed).cpu(), about, None

    def replay(self) -> Replay | None:
        """Replay of this checkpoint's training for the queries; None on all processes but the main
        one.

        Raises Refused if it does not fit into memory.
        """
        sizes = len(self.train), len(self.queries), self.train.task.num_labels
        device = self.processes.from_main(lambda: place_for(*sizes))
        name = self.scores.place("pairwise").name
        with self._held("replay", "a replay of this checkpoint"):
            rows = self._features("rows", self.train)
            asked = self._features(name, self.queries)
            made = None if rows is None else Kernel.of(rows.to(device))
            time = self._time(made)
        if made is None or asked is None:
            return None
        others = made.with_others(asked.to(device))
        train = targets_of(self.train).to(device)
        kernel, others = descent.flattened(made.kernel, others, made.steep, train, time)
        return Replay(kernel, others, train, targets_of(self.queries).to(device), time)

    def _work(self, name: str) -> Work:
        """Work on the features of the rows of this name: "rows" are those of training."""
        if name not in self.works:
            kind = "self" if name == "rows" else "pairwise"
            folder = self.folder / "replay" / name
            parts = self.scores.parts[kind]
            overwrite = self.settings.overwrite
            self.works[name] = Work(folder, parts, "replay", dict, overwrite, self.processes)
        return self.works[name]

    @functools.cached_property
    def model(self) -> torch.nn.Module:
        """Trained model, opened when something must be computed."""
        return self.checked_model().to(choose_device())

    @functools.cached_property
    def sketch(self) -> Sketch:
        """Sketch of the trained model's gradients."""
        work = self._work("rows")
        path = work.folder / "moments.safetensors"

        def measure() -> None:
            if self.processes.main:
                moments = second_moments(self.model, self.train)
                sides = {f"{name}/{i}": pair[i] for name, pair in moments.items() for i in (0, 1)}
                write_tensors(path, sides)

        work.run("moments", [path.name], measure)
        sides = load_file(path)
        names = dict.fromkeys(name.rpartition("/")[0] for name in sides)
        moments = {name: (sides[f"{name}/0"], sides[f"{name}/1"]) for name in sorted(names)}
        return Sketch(self.model, moments, self.settings.seed)

    def _features(self, name: str, data: GlueDataset) -> torch.Tensor | None:
        """Features (N, F) of the rows, kept under this name; None on all processes but the main
        one. Each process computes those of its share of the tokens.
        """
        work = self._work(name)
        for begin in range(0, len(data), GROUP):
            self._keep_features(work, data, begin)
        if not self.processes.main:
            return None
        made = torch.empty(0)
        for path in work.folder.glob("features_*.safetensors"):
            part = load_file(path)
            if not len(made):
                made = torch.empty(len(data), part["features"].shape[1])
            made[part["rows"]] = part["features"].float()
        return made

    def _keep_features(self, work: Work, data: GlueDataset, begin: int) -> None:
        """Computes and keeps the features of a group of rows, unless they are kept."""
        lengths = data.lengths[begin : begin + GROUP]

        def compute() -> None:
            share = share_out(lengths.tolist(), self.processes.count)[self.processes.rank]
            if share:
                rows = [begin + place for place in share]
                features = self.sketch.features(data.subset(rows)).bfloat16()
                path = work.folder / f"features_{begin}_{self.processes.rank}.safetensors"
                write_tensors(path, {"rows": torch.tensor(rows), "features": features})
            self.processes.meet()

        work.run(f"features, {begin}", [f"features_{begin}_*.safetensors"], compute)

    def _time(self, made: "Kernel | None") -> float:
        """Time of the replay: that at which it is most like the training; kept.

        made: kernel of the training rows, on the main process.
        """
        work = self._work("rows")
        path = work.folder / "time.json"

        def find() -> None:
            if made is None:
                return
            kept = draw_share(len(self.train), self.run.share, self.run.seed or 0)
            left_out = np.setdiff1d(np.arange(len(self.train)), kept)
            if len(left_out):
                held = self.train.subset(left_out.tolist())
                others = made.kernel[left_out]
            else:
                held = self.run.rows(HELD_OUT)[1]
                others = made.with_others(self.sketch.features(held).to(made.rows))
            weights = made.kernel.new_zeros(len(self.train))
            weights[kept] = 1
            train, targets = (targets_of(data).to(weights.device) for data in (self.train, held))
            logits = predict_run(self.end, held)
            time = descent.best_time(
                made.kernel, others, made.steep, train, targets, weights, logits
            )
            write_json(path, {"time": time})

        work.run("time", [path.name], find)
        record = read_json(path)
        assert record is not None  # intact a moment ago
        return record["time"]


@dataclass(frozen=True)
class Kernel:
    """Kernel of the training rows, in units of its mean diagonal."""

    rows: torch.Tensor  # features (N, F)
    unit: torch.Tensor
    kernel: torch.Tensor  # (N, N)
    steep: tuple[torch.Tensor, torch.Tensor]  # see `descent.steep_directions`

    @classmethod
    def of(cls, rows: torch.Tensor) -> "Kernel":
        """Kernel of these features (N, F)."""
        kernel = rows @ rows.T
        unit = kernel.diagonal().mean()
        kernel /= unit
        return cls(rows, unit, kernel, descent.steep_directions(kernel))

    def with_others(self, features: torch.Tensor) -> torch.Tensor:
        """Kernel (Q, N) of rows of these features (Q, F) with the training rows."""
        return features @ self.rows.T / self.unit


def place_for(rows: int, queries: int, labels: int) -> torch.device:
    """Device with memory for the kernels of this many training rows and queries: the GPU, else the
    CPU. Raises Refused if neither has enough.
    """
    features = (rows + queries) * FEATURES
    steps = (descent.STEPS + 4 * descent.BLOCK) * rows * labels
    needed = 4 * (2 * rows * rows + 3 * queries * rows + steps + features)
    device = choose_device()
    if device.type == "cuda" and needed < SAFETY * free_memory(device):
        return device
    device = torch.device("cpu")
    free = free_memory(device)
    if needed > free:
        raise Refused(
            f"a replay of {rows:,} training rows takes about {needed / 2**30:,.0f} GiB of memory, "
            f"and {free / 2**30:,.0f} GiB are free; take fewer rows (train.py "
            "--max_train_samples) or another --factor_strategy"
        )
    return device


def targets_of(data: GlueDataset) -> Targets:
    """Labels of the rows, as the replay takes them."""
    return Targets(torch.from_numpy(data.labels), data.task.num_labels)
