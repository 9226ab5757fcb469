"""Scores of several members (checkpoints of other seeds, steps or rows), and their mean
(`mean_of`).

Symbols: K members, Q queries, N training rows.
"""

from collections.abc import Iterator

import numpy as np
import torch

from attribution.data.dataset import GlueDataset
from attribution.influence.analysis import Influence
from attribution.influence.settings import Settings
from attribution.processes import ALONE, Processes
from attribution.training.members import Opened, fingerprint_of, mean_of


class Ensemble(Influence):
    """The mean of what Influence makes of each member; stored in the run's folder under a name that
    counts them.
    """

    def __init__(
        self,
        opened: Opened,
        train: GlueDataset,
        queries: GlueDataset,
        settings: Settings,
        arguments: dict | None = None,
        suffix: str = "",
        processes: Processes = ALONE,
    ) -> None:
        name = opened.members.name + suffix
        super().__init__(
            opened.folder, opened.run, train, queries, settings, arguments, name, processes
        )
        self.each = [
            Influence(*one, train, queries, settings, arguments, suffix, processes)
            for one in opened.checkpoints
        ]
        made = fingerprint_of(opened.members, opened.folder, opened.run)
        self.self_parts, self.score_parts = self.self_parts | made, self.score_parts | made

    def compute(self, kind: str) -> torch.Tensor | None:
        """Stored scores of this kind, or new ones: the mean over members of pairwise (Q, N) or self
        (N,) scores.

        Only on the main process, as of a single member.
        """
        scores = self.stored(kind) if self.processes.main else None
        if self.processes.from_main(lambda: scores is not None):
            return scores
        found = self.of_each(kind)  # one after the other: they need not fit into memory together
        if not self.processes.main:
            return next(found, None)
        scores = torch.from_numpy(mean_of(found)).float()
        self.save(kind, scores, {})
        return scores

    def of_each(self, kind: str) -> Iterator[np.ndarray]:
        """Scores of this kind of one member after the other; on other processes than the main one,
        nothing.
        """
        for i, influence in enumerate(self.each):
            print(f"member {i + 1} of {len(self.each)}: {influence.folder}")
            part = influence.compute(kind)
            influence.let_go()
            if part is not None:
                print(f"  standard deviation of its {kind} scores: {part.std():.4g}")
                yield part.numpy()

    def profile(self) -> str | None:
        """The tables of the members that computed something; None where none did."""
        tables = [table for influence in self.each if (table := influence.profile())]
        return "\n".join(tables) or None


def open_influence(
    opened: Opened,
    train: GlueDataset,
    queries: GlueDataset,
    settings: Settings,
    arguments: dict | None = None,
    suffix: str = "",
    processes: Processes = ALONE,
) -> Influence:
    """One run's Influence, or the Ensemble of its members. suffix: of the name under which scores
    are stored.
    """
    if opened.members.single:
        return Influence(
            opened.folder, opened.run, train, queries, settings, arguments, suffix, processes
        )
    return Ensemble(opened, train, queries, settings, arguments, suffix, processes)


def scores_of_members(influence: Influence, kind: str = "pairwise") -> list[np.ndarray] | None:
    """The stored scores (Q, N) of each member; None for a single run, and where one has none."""
    if not isinstance(influence, Ensemble):
        return None
    found = [scores.numpy() for one in influence.each if (scores := one.stored(kind)) is not None]
    return found if len(found) == len(influence.each) else None
