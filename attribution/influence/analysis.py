"""Scores of a run: those of its checkpoint, or the mean over the checkpoints of its members.

    influence = Influence(run, train, queries, Settings(factor_strategy="ekfac"))
    scores = influence.compute("pairwise")          # (Q, N), stored ones or new ones

Symbols: Q queries, N training rows.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from attribution.data.dataset import GlueDataset
from attribution.engine import modules
from attribution.files import Refused, check_writable, read_json, write_json
from attribution.influence.checkpoint import Analysis, Scored
from attribution.influence.replayed import ReplayAnalysis, targets_of
from attribution.influence.settings import Settings
from attribution.influence.stored import (
    KEY,
    OUTPUTS,
    StoredScores,
    folder_of_mean,
    read_outputs,
)
from attribution.processes import ALONE, choose_device, name_of
from attribution.progress import Whole, whole
from attribution.provenance import environment
from attribution.replay import descent
from attribution.replay.descent import Contrast, Replay
from attribution.training.members import (
    draw_share,
    mean_of,
    open_members,
    replayed_members,
)
from attribution.training.queries import Questions, predict_run
from attribution.training.run import Run

MIN_TRAININGS = 3  # from which the unit of replayed scores can be told


@dataclass(eq=False)
class Influence(Scored):
    """Scores of a run: those of its checkpoint, or the mean over the checkpoints of its members.

    The mean is stored in the run's folder under a name that counts the members.
    """

    def __post_init__(self) -> None:
        run = self.run
        settings = self.settings
        given = {one.name: getattr(self, one.name) for one in dataclasses.fields(self) if one.init}
        members = open_members(run, settings)
        kind = Analysis
        if settings.factor_strategy == "replay":
            kind = ReplayAnalysis
            members = replayed_members(members)
        self.analyses = [kind(**given | {"run": checkpoint}) for checkpoint in members]
        self._announced = False
        first = self.analyses[0]
        self.about = first.about
        self.scores = first.scores
        if not settings.single:
            self.scores = folder_of_mean(run, settings, first.scores)

    def of_questions(self, questions: Questions, alone: bool = False) -> "Influence":
        """Influence of custom queries under the same settings.

        alone: computed by this process only, not by all of its launch.
        """
        return dataclasses.replace(
            self,
            queries=questions.data,
            # Factors and other scores stay.
            settings=dataclasses.replace(self.settings, overwrite=False),
            suffix=questions.suffix,
            processes=ALONE if alone else self.processes,
        )

    @property
    def name(self) -> str:
        """Name of the scores."""
        return self.scores.path.name

    def compute(self, kind: str) -> np.ndarray | None:
        """Stored scores of this kind, or new ones, as `Analysis.compute` returns them."""
        scores = self.stored_unless_overwritten(kind)
        if self.processes.from_main(lambda: scores is not None):
            return scores
        if not self.settings.stock:
            modules.check_version()
        if self.processes.main and not self._announced:
            check_writable(self.run.folder / "influence")
            print(f"computing on {name_of(choose_device())}")
        self._announced = True
        divisors: list[float] = []
        with whole(self.analyses[0].phases(kind), len(self.analyses)) as progress:
            if self.settings.single:
                return self.analyses[0].compute(kind)
            # One after the other: they need not fit into memory together.
            found = self._of_each(kind, divisors, progress)
            mean = np.zeros(())
            if self.processes.main:
                mean = mean_of(found)
            else:
                next(found, None)
        unit = self.unit() if kind == "pairwise" else 1.0
        if not self.processes.main:
            return None
        scores = (mean * unit).astype(np.float32)
        about = self.about | environment(choose_device()) | {"seconds": {}, "divisors": divisors}
        if self.settings.factor_strategy == "replay":
            # Of the members' records: their scores may have been stored before.
            records = [one.scores.record(kind) or {} for one in self.analyses]
            likeness = float(np.mean([one["likeness"] for one in records]))
            about |= {"likeness": likeness, "unit": unit}
        arrays = {KEY: scores}
        if kind == "self" and self.settings.factor_strategy == "replay":
            outputs = [read_outputs(one.scores.place(kind)) for one in self.analyses]
            arrays[OUTPUTS] = np.mean(outputs, axis=0)
        self.scores.save(kind, arrays, about)
        self.computed.add(kind)
        return scores

    def _of_each(
        self, kind: str, divisors: list[float], progress: Whole
    ) -> Iterator[tuple[np.ndarray, float]]:
        """(scores, divisor) of one checkpoint after the other; nothing on processes but the main
        one. divisors: where each is noted.
        """
        for i, analysis in enumerate(self.analyses):
            progress.member = i
            if kind == "pairwise":
                print(f"member {i + 1} of {len(self.analyses)}: {analysis.run.folder}")
            scores = analysis.compute(kind)
            # The mean over a single checkpoint needs none.
            divisor = analysis.divisor() if len(self.analyses) > 1 else 1.0
            analysis.release()
            if scores is not None and divisor is not None:
                if divisor != 1:
                    print(f"  its mean self-influence: {divisor:.4g}")
                divisors.append(divisor)
                yield scores, divisor

    def unit(self) -> float:
        """Real changes of margins in units of replayed ones, see `descent.unit_of`; kept.

        1 for other scores than replayed ones, and with fewer than MIN_TRAININGS trainings, or where
        they left no rows out.
        """
        ends = {one.end.folder: one.end for one in self.analyses if isinstance(one, ReplayAnalysis)}
        if len(ends) < MIN_TRAININGS or self.settings.member_share == 1:
            return 1.0
        path = self.run.folder / "influence/replay" / f"{self.settings.of_self.name}.json"
        wanted = {"fingerprint": self.scores.parts["self"]}

        def known() -> float | None:
            record = read_json(path) or {}
            return record["unit"] if wanted.items() <= record.items() else None

        found = self.processes.from_main(known)
        if found is not None:
            return found
        kept = [draw_share(len(self.train), one.share, one.seed or 0) for one in ends.values()]
        weights = torch.zeros(len(ends), len(self.train))
        for row, rows in zip(weights, kept, strict=True):
            row[rows] = 1
        total = torch.zeros_like(weights)
        for replay in self.replays():
            of_rows = replay.of_rows()
            total += of_rows.queries.comparable(of_rows.outputs(weights)).cpu()
        if self.processes.main:
            train = targets_of(self.train)
            outputs = descent.outputs_of(train.num_labels)
            phases = {f"predictions of member {i + 1}": one for i, one in enumerate(ends.values())}
            with whole(dict.fromkeys(phases, 1.0)):
                each = [predict_run(one, self.train, phase) for phase, one in phases.items()]
            logits = torch.stack(each)
            measured = train.comparable(logits @ outputs)
            unit = descent.unit_of(measured, total / len(self.analyses), weights == 0)
            print(
                f"  scores are multiplied by {unit:.2f}, so that replays differ as much as the "
                f"margins of the {len(ends)} trainings do"
            )
            write_json(path, wanted | {"unit": unit})
        return self.processes.from_main(known)

    def replays(self) -> Iterator[Replay]:
        """Replay of one checkpoint after the other, for the queries; of replayed scores only."""
        phases = self.analyses[0].phases("pairwise")
        for i, analysis in enumerate(self.analyses):
            assert isinstance(analysis, ReplayAnalysis)
            with whole(phases, len(self.analyses)) as progress:
                progress.member = i
                found = analysis.replay()
            analysis.release()
            if found is not None:
                yield found

    def contrasts(
        self, questions: Questions, against: int, places: list[int] | None = None
    ) -> np.ndarray | None:
        """Scores (A, N), float32, of z_y - z_against, y the label of each of A queries; None on all
        processes but the main one.

        places: theirs, if they are among this influence's queries, whose kernels a replay has kept.
        """
        labels = questions.data.labels
        if self.settings.factor_strategy == "replay":
            asked = self.of_questions(questions) if places is None else self
            return asked._replayed_contrasts(labels, against, places or [*range(len(labels))])
        return self._contrasts_of_margins(questions, against)

    def _replayed_contrasts(
        self, labels: np.ndarray, against: int, places: list[int]
    ) -> np.ndarray | None:
        """The same by a replay, of the queries in these places."""
        total = np.zeros(())
        for replay in self.replays():
            classes = torch.from_numpy(labels).to(replay.kernel.device)
            asked = Contrast(classes, replay.train.num_labels, against)
            scores = dataclasses.replace(replay.of(places), queries=asked).scores()
            total = total + scores.double().cpu().numpy()
        unit = self.unit()
        if not self.processes.main:
            return None
        return (total / len(self.analyses) * unit).astype(np.float32)

    def _contrasts_of_margins(self, questions: Questions, against: int) -> np.ndarray | None:
        """The same from scores of both classes' margins, which are computed unless stored.

        The gradient of margin y is (z_y - sum_k p_k z_k)' / (1 - p_y), so that (1 - p_a) m_a -
        (1 - p_b) m_b changes as z_a - z_b does, with the probabilities p of the same checkpoint.
        """
        data, count = questions.data, len(questions.data)
        labels = np.concatenate([data.labels, np.full(count, against)])
        both = data.subset([*range(count)] * 2).relabelled(labels)
        logits = np.concatenate([questions.logits] * 2)
        asked = self.of_questions(Questions(both, questions.targets * 2, logits))
        if self.processes.main and asked.scores.record("pairwise") is None:
            print("the margins of both classes are scored once, and kept")
        if asked.compute("pairwise") is None:
            return None
        weighted = []
        for one in asked.analyses:
            scores = one.scores.load("pairwise")
            if scores is None:
                raise Refused(f"the scores in {one.run.folder} have gone; ask again")
            p = predict_run(one.run, data).double().softmax(-1).numpy()
            mine, theirs = 1 - p[np.arange(count), data.labels], 1 - p[:, against]
            weighted.append(mine[:, None] * scores[:count] - theirs[:, None] * scores[count:])
        record = asked.scores.record("pairwise") or {}
        divisors = record.get("divisors", [1.0])
        return mean_of(zip(weighted, divisors, strict=True)).astype(np.float32)

    def of_members(self) -> list[np.ndarray] | None:
        """Stored pairwise scores (Q, N) of each member; None without members, or if one lacks."""
        found: list[np.ndarray] = []
        for analysis in self.analyses:
            scores = None if self.settings.single else analysis.scores.load("pairwise")
            if scores is None:
                return None
            found.append(scores)
        return found

    def said(self) -> np.ndarray:
        """Logits (Q, C) of the run's model on the queries."""
        return predict_run(self.run, self.queries).numpy()

    def said_of_rows(self) -> np.ndarray:
        """Logits (N, C) of the run's model on the training rows."""
        known = self.analyses[0].logits_of_rows()
        if known is None:
            known = predict_run(self.run, self.train, "predictions")
        return known.numpy()

    def profile(self) -> str:
        """Tables of actions and their seconds; empty if nothing was computed."""
        return "\n".join(table for analysis in self.analyses for table in analysis.tables())


def stored_influence(
    run: Run, train: GlueDataset, queries: GlueDataset, found: StoredScores
) -> Influence:
    """Influence whose scores these are. found: scores of these queries, which count."""
    made = (read_json(found.path) or {})["fingerprint"]
    seed = made.get("seed", Settings.seed)
    return Influence(run, train, queries, Settings(**vars(found.spec), seed=seed))
