"""Scores of one checkpoint by replaying its training in the tangent kernel.

A score is the change of a query's margin, in log-odds, that a training row makes by being there,
where every other row is there by half, as in a random half; of a regression, in squared units of
the label. A row's self score is minus its margin where it was left out: a high one says that the
label may be wrong.

Symbols: Q queries, N training rows, L rows that training left out, F features.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from attribution.data.dataset import GlueDataset
from attribution.draws import uniform_hash
from attribution.files import Refused
from attribution.influence.checkpoint import Analysis
from attribution.processes import choose_device, free_host_memory, share_out
from attribution.replay.descent import Targets, best_time, replay, scores
from attribution.replay.features import Sketch
from attribution.training.members import draw_share
from attribution.training.queries import predict_run
from attribution.training.run import Run

VERSION = 1  # of everything in a replay that changes numbers
FOLDS = 10  # of the training rows, each of which is left out once
HELD_OUT = 256  # validation rows at most that set the time where training left no row out
WEIGHT = 0.5  # of every row, where a score is the derivative


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
        for parts in self.scores.parts.values():
            parts |= {"replay": VERSION, "end of training": end.weights}

    def divisor(self) -> float | None:
        """1: replayed scores have a unit."""
        return 1.0 if self.processes.main else None

    def _new_scores(self, kind: str) -> tuple[torch.Tensor, dict, Path | None]:
        """(scores, entries of their JSON, None: a replay is not resumed)."""
        sketch = Sketch(self.checked_model().to(choose_device()), self.train, self.settings.seed)
        kept = draw_share(len(self.train), self.run.share, self.run.seed or 0)
        left_out = np.setdiff1d(np.arange(len(self.train)), kept)
        held = self.train.subset(left_out.tolist()) if len(left_out) else self.run.rows(HELD_OUT)[1]
        asking = len(self.queries) if kind == "pairwise" else 0
        check_memory(len(self.train), len(held) + asking, sketch.num_features, self.run.num_labels)
        rows = self._features(sketch, self.train)
        rows_held = None if len(left_out) else self._features(sketch, held)
        rows_asked = self._features(sketch, self.queries) if kind == "pairwise" else None
        if not self.processes.main:
            return torch.empty(0), {}, None
        if rows_held is None:
            rows_held = rows[left_out]
        kernel = rows @ rows.T
        unit = kernel.diagonal().mean()
        kernel /= unit
        train = targets_of(self.train)
        weights = kernel.new_zeros(len(kernel))
        weights[kept] = 1
        time = best_time(
            kernel,
            rows_held @ rows.T / unit,
            train,
            targets_of(held),
            weights,
            predict_run(self.end, held),
        )
        about = {"time": time, "seconds": {}}
        if rows_asked is None:
            return -margins_left_out(kernel, train, time, self.settings.seed), about, None
        asked = targets_of(self.queries)
        return scores(kernel, rows_asked @ rows.T / unit, train, asked, time, WEIGHT), about, None

    def _features(self, sketch: Sketch, data: GlueDataset) -> torch.Tensor:
        """Features (N, F) of the rows, on the main process; each process makes those of its share
        of the tokens. (0, F) on the others.
        """
        shares = share_out(data.lengths.tolist(), self.processes.count)
        share = shares[self.processes.rank]
        mine = torch.empty(0, sketch.num_features)
        if share:
            mine = sketch.features(data.subset(share))
        made = mine.new_empty(len(data) * self.processes.main, mine.shape[1])
        shapes = [(len(share), mine.shape[1]) for share in shares]
        for rank, part in self.processes.to_main(mine, shapes):
            made[shares[rank]] = part
        return made


def check_memory(rows: int, others: int, features: int, outputs: int) -> None:
    """Raises Refused if a replay of this many training rows and other rows does not fit."""
    kernels = 2 * rows * rows + 4 * others * rows * outputs
    needed = 4 * ((rows + others) * features + kernels)
    free = free_host_memory()
    if needed > free:
        raise Refused(
            f"a replay of {rows:,} training rows takes about {needed / 2**30:,.0f} GiB of memory, "
            f"and {free / 2**30:,.0f} GiB are free; take fewer rows (train.py "
            "--max_train_samples) or another --factor_strategy"
        )


def targets_of(data: GlueDataset) -> Targets:
    """Labels of the rows, as the replay takes them."""
    return Targets(torch.from_numpy(data.labels), data.task.num_labels)


def margins_left_out(kernel: torch.Tensor, train: Targets, time: float, seed: int) -> torch.Tensor:
    """Replayed margins (N,) of training rows, each in a training without its fold."""
    count = len(kernel)
    order = np.argsort(uniform_hash(seed, "fold of a replay", np.arange(count)), kind="stable")
    folds = np.empty(count, np.int64)
    folds[order] = np.arange(count) % min(FOLDS, count)
    weights = torch.from_numpy(folds != np.arange(min(FOLDS, count))[:, None]).to(kernel)
    margins = train.margins(replay(kernel, kernel, train, weights, time))
    return margins[torch.from_numpy(folds), torch.arange(count)]
