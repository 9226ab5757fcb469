"""Scores of one checkpoint by replaying its training in the tangent kernel.

A score is the change of a query's margin, in log-odds, that a training row makes by being there,
where every other row is there by half, as in a random half; of a regression, in squared units of
the label. A row's self score is minus its margin where it was left out: a high one says that the
label may be wrong.

Features and kernels are kept in <checkpoint>/influence/replay, so that other questions need no pass
over the training rows, and a what-if none at all. Symbols: Q queries, N training rows, F features.
"""

import functools
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from attribution.data.dataset import GlueDataset
from attribution.engine.memory import SAFETY, free_memory
from attribution.engine.resume import Work
from attribution.files import Refused
from attribution.influence.checkpoint import Analysis
from attribution.influence.stored import KEY, OUTPUTS
from attribution.processes import choose_device, share_out
from attribution.replay import descent
from attribution.replay.descent import Replay, Targets
from attribution.replay.features import FEATURES, MOMENT_ROWS, MOMENTS, Sketch, second_moments
from attribution.tensors import write_tensors
from attribution.training.members import draw_share, end_of
from attribution.training.queries import predict_run

HELD_OUT = 256  # validation rows at most that set the time where training left no row out
GROUP = 2048  # rows after which their features are kept
KERNEL = "kernel.safetensors"
OF_ROWS, OF_QUERIES = "gradients of training rows", "gradients of queries"  # phases


@dataclass(eq=False)
class ReplayAnalysis(Analysis):
    """Replayed scores of one checkpoint under one set of settings."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.end = end_of(self.run)
        self.works: dict[str, Work] = {}

    def phases(self, kind: str) -> dict[str, float]:
        """Phases by their rows."""
        rows = len(self.train)
        return {
            MOMENTS: min(rows, MOMENT_ROWS),
            OF_ROWS: rows,
            OF_QUERIES: len(self.queries),
        }

    def divisor(self) -> float | None:
        """1: replayed scores have a unit."""
        return 1.0 if self.processes.main else None

    def release(self) -> None:
        """Frees the model."""
        self.__dict__.pop("sketch", None)
        self.__dict__.pop("model", None)

    def _new_scores(self, kind: str) -> tuple[dict[str, torch.Tensor], dict, Path | None]:
        """(scores, entries of their JSON, None: what it leaves is kept).

        With self scores there are the outputs (N, O) of the rows where they were left out.
        """
        replay = self.replay()
        if replay is None:
            return {}, {}, None
        start = time.perf_counter()
        if kind == "pairwise":
            arrays = {KEY: replay.scores().cpu()}
        else:
            outputs = replay.outputs_left_out(self.settings.seed)
            arrays = {KEY: -replay.train.margins(outputs).cpu(), OUTPUTS: outputs.cpu()}
        seconds = {
            "kernel of the rows": self._work("rows").record["seconds"]["kernel"],
            "kernel of the queries": self._queries_work().record["seconds"]["kernel"],
            "descent": time.perf_counter() - start,
        }
        about = {"time": replay.time, "likeness": replay.likeness, "seconds": seconds}
        return arrays, about, None

    def replay(self) -> Replay | None:
        """Replay of this checkpoint's training for the queries; None on all processes but the main
        one. Kernels and features are kept.

        Raises Refused if it does not fit into memory.
        """
        sizes = len(self.train), len(self.queries), self.train.task.num_labels
        device = self.processes.from_main(lambda: place_for(*sizes))
        rows = self._work("rows")
        asked = self._queries_work()
        with self._held("replay", "a replay of this checkpoint"):
            # Read once, for both kernels, and only if one is missing.
            features = functools.cache(lambda: self._features(rows, self.train, device, OF_ROWS))
            rows.run("kernel", [KERNEL], lambda: self._keep_kernel(rows, features()))
            asked.run("kernel", [KERNEL], lambda: self._keep_others(asked, rows, features()))
        if not self.processes.main:
            return None
        kernel = read_kernel(rows, device)
        others = read_kernel(asked, device)["others"]
        train, queries = (targets_of(data).to(device) for data in (self.train, self.queries))
        found = float(kernel["time"]), float(kernel["likeness"])
        return Replay(kernel["kernel"], others, train, queries, *found)

    def _keep_kernel(self, work: Work, features: torch.Tensor | None) -> None:
        """Keeps the kernel of the training rows, for the time at which the replay is most like the
        training. Its unit is the mean kernel of a row with itself. features: of the rows, (N, F).
        """
        kept = draw_share(len(self.train), self.run.share, self.run.seed or 0)
        left_out = np.setdiff1d(np.arange(len(self.train)), kept)
        sketch = None if len(left_out) else self.sketch  # on all processes, which make it together
        if features is None:
            return
        device = features.device
        kernel = features @ features.T
        if not kernel.isfinite().all():
            raise Refused(
                f"gradients of the model in {self.run.folder} are not finite, so its training "
                "cannot be replayed; train with a lower --learning_rate"
            )
        unit = kernel.diagonal().mean()
        kernel /= unit
        steep = descent.steep_directions(kernel)
        if sketch is None:
            held = self.train.subset(left_out.tolist())
            others = kernel[left_out]
        else:
            held = self.run.rows(HELD_OUT)[1]
            others = (
                sketch.features(held, "gradients of validation rows").to(device) @ features.T / unit
            )
        weights = torch.zeros(len(kernel))
        weights[kept] = 1
        weights = weights.to(device)
        train, targets = (targets_of(data).to(device) for data in (self.train, held))
        logits = predict_run(self.end, held)
        best, likeness = descent.best_time(kernel, others, steep, train, targets, weights, logits)
        print(
            f"  replayed margins of {len(held):,} rows that training left out correlate with the "
            f"model's by {likeness:.2f}"
        )
        kernel = descent.flattened(kernel, steep, train, best)
        values, vectors = steep
        made = {"kernel": kernel, "unit": unit, "values": values, "vectors": vectors}
        found = {"time": torch.tensor(best), "likeness": torch.tensor(likeness)}
        write_tensors(work.folder / KERNEL, made | found)

    def _keep_others(self, work: Work, rows: Work, features: torch.Tensor | None) -> None:
        """Keeps the kernel of the queries with the training rows, of these features (N, F).

        rows: work on those.
        """
        asked = self._features(work, self.queries, torch.device("cpu"), OF_QUERIES)
        if features is None or asked is None:
            return
        asked = asked.to(features.device)
        kept = read_kernel(rows, features.device)
        others = asked @ features.T / kept["unit"]
        steep = kept["values"], kept["vectors"]
        train = targets_of(self.train)
        others = descent.flattened(others, steep, train, float(kept["time"]))
        write_tensors(work.folder / KERNEL, {"others": others})

    def _work(self, name: str) -> Work:
        """Work on the features of the rows of this name: "rows" are those of training."""
        if name not in self.works:
            kind = "self" if name == "rows" else "pairwise"
            folder = self.folder / "replay" / name
            parts = self.scores.parts[kind]
            how = dict, self.settings.overwrite, self.processes
            replaceable = self.scores.replaceable(kind)
            self.works[name] = Work(folder, parts, "kernels", *how, replaceable=replaceable)
        return self.works[name]

    def _queries_work(self) -> Work:
        """Work on the features of the queries."""
        return self._work(self.scores.place("pairwise").name)

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

    def _features(
        self, work: Work, data: GlueDataset, device: torch.device, phase: str
    ) -> torch.Tensor | None:
        """Features (N, F) of the rows, kept by this work; None on all processes but the main one.

        Each process computes those of its share of the tokens.
        """
        for begin in range(0, len(data), GROUP):
            self._keep_features(work, data, begin, phase)
        if not self.processes.main:
            return None
        parts = [load_file(path) for path in sorted(work.folder.glob("features_*.safetensors"))]
        features = torch.cat([part["features"] for part in parts]).float()
        order = torch.cat([part["rows"] for part in parts]).argsort()
        return features[order].to(device)

    def _keep_features(self, work: Work, data: GlueDataset, begin: int, phase: str) -> None:
        """Computes and keeps the features of a group of rows, unless they are kept."""
        lengths = data.lengths[begin : begin + GROUP]

        def compute() -> None:
            share = share_out(lengths.tolist(), self.processes.count)[self.processes.rank]
            if share:
                rows = [begin + place for place in share]
                part = begin / len(data), min((begin + GROUP) / len(data), 1.0)
                shown = phase if self.processes.main else ""
                features = self.sketch.features(data.subset(rows), shown, part).bfloat16()
                path = work.folder / f"features_{begin}_{self.processes.rank}.safetensors"
                write_tensors(path, {"rows": torch.tensor(rows), "features": features})
            self.processes.meet()

        work.run(f"features, {begin}", [f"features_{begin}_*.safetensors"], compute)


def read_kernel(work: Work, device: torch.device) -> dict[str, torch.Tensor]:
    """Tensors of a kept kernel, on the device."""
    return {name: x.to(device) for name, x in load_file(work.folder / KERNEL).items()}


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
