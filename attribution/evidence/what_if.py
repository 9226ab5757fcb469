"""What if: predictions after training on other rows or with other labels, replayed, and checked by
retraining.

Symbols: K members, M trainings, T targets, N training rows.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from attribution.data.dataset import GlueDataset
from attribution.data.labels import number_of
from attribution.evidence.counterfactual import turned
from attribution.evidence.store import Job
from attribution.evidence.study import Study
from attribution.files import Refused, printable
from attribution.influence.analysis import Influence, stored_influence
from attribution.influence.settings import ScoreSpec, analyze_command
from attribution.influence.stored import StoredScores, most_helpful
from attribution.replay.descent import Replay
from attribution.training.queries import read_label
from attribution.training.run import Run

GRID = 1.25  # ratio of the numbers of rows that are tried one after the other for a smallest set


@dataclass(frozen=True)
class Edit:
    """Change of the training rows."""

    removed: list[int]
    relabelled: dict[int, float | int]  # row -> class, or value of a regression

    def labels(self, train: GlueDataset) -> np.ndarray:
        """Labels (N,) of the rows."""
        labels = train.labels.copy()
        labels[list(self.relabelled)] = list(self.relabelled.values())
        return labels


def read_edit(train: GlueDataset, removed: list[str] | None, flipped: list[str] | None) -> Edit:
    """Change that the arguments --remove_rows and --flip_labels describe.

    Each holds numbers of training rows, or one file with a number at the beginning of each line
    (after a header or not). A flipped one may be followed by its label: 12=negative, or 12,negative
    in a file; without, it is the other one of two classes. Raises Refused for rows that there are
    not, or that are named twice, labels that the task does not know, and where nothing changes.
    """
    gone = [row for row, _ in numbered(train, removed, "remove_rows")]
    changed = {}
    for row, name in numbered(train, flipped, "flip_labels"):
        if name:
            changed[row] = read_label(name, train.task)
        elif train.task.num_labels == 2:
            changed[row] = 1 - train.labels[row]
        else:
            raise Refused(f"--flip_labels: row {row} needs its label: {row}=LABEL")
    named = set(changed)
    changed = {row: label for row, label in changed.items() if label != train.labels[row]}
    if named and not gone and not changed:
        raise Refused("--flip_labels: the rows have these labels already")
    if both := sorted({*gone} & named):
        raise Refused(f"row {both[0]} cannot be removed and have another label")
    if len(gone) == len(train):
        raise Refused("--remove_rows leaves no row to train on")
    return Edit(gone, changed)


def numbered(train: GlueDataset, values: list[str] | None, flag: str) -> list[tuple[int, str]]:
    """(number of a training row, what follows it) for each value, or line of the one file."""
    values = values or []
    sign = "="
    where = f"--{flag}"
    if len(values) == 1 and math.isnan(number_of(values[0].partition("=")[0])):
        path = Path(values[0])
        where = printable(str(path))
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise Refused(f"--{flag}: {where} is no number and no file of numbers") from error
        values = [line for line in lines if line.strip()]
        if values and math.isnan(number_of(values[0].partition(",")[0])):
            values = values[1:]  # the header
        sign = ","
    found: dict[int, str] = {}
    for value in values:
        start, _, rest = value.partition(sign)
        number = number_of(start)
        if number not in range(len(train)):
            raise Refused(
                f"{where}: {printable(start)!r} is not the number of a training row, 0 to "
                f"{len(train) - 1}"
            )
        if int(number) in found:
            raise Refused(f"{where}: row {int(number)} is named twice")
        found[int(number)] = rest.strip()
    if not found and where != f"--{flag}":
        raise Refused(f"--{flag}: {where} names no row")
    return list(found.items())


# --- replays --------------------------------------------------------------------------------------


def stored_replay(
    run: Run, train: GlueDataset, queries: GlueDataset, found: dict[str, StoredScores]
) -> Influence | None:
    """Replayed scores of the run with the most members; None without any that count.

    found: of `find_scores`.
    """
    replayed = [
        one for one in found.values() if one.spec.factor_strategy == "replay" and one.stale is None
    ]
    if not replayed:
        return None
    best = max(replayed, key=lambda one: one.spec.num_members)
    return stored_influence(run, train, queries, best)


def replayed(
    influence: Influence,
    places: list[int],
    weights: np.ndarray,
    labels: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Margins and correctness (1 or 0) of queries after replays with these weights (M, N):
    "margins" and "right", each (K, M, T).

    The changes from the first replay on are in the unit of the members, see `Influence.unit`.
    places: of the targets among the queries. labels: (N,) of the training rows in all replays but
    the first; None: their own.
    """
    unit = influence.unit()
    found: dict[str, list] = {"margins": [], "right": []}
    for replay in influence.replays():
        part = replay.of(places)
        outputs = outputs_of(part, unit, weights, labels)
        found["margins"].append(part.queries.margins(outputs).cpu().numpy())
        found["right"].append(part.queries.correct(outputs).cpu().numpy())
    return {name: np.stack(values).astype(np.float64) for name, values in found.items()}


def outputs_of(
    replay: Replay, unit: float, weights: np.ndarray, labels: np.ndarray | None = None
) -> torch.Tensor:
    """Outputs (M, T, O), see `replayed`, of one member's replay for the targets."""
    made = torch.from_numpy(weights)
    outputs = replay.outputs(made)
    if labels is not None:
        outputs[1:] = replay.outputs(made[1:], torch.from_numpy(labels))
    return outputs[:1] + unit * (outputs - outputs[:1])


def weights_without(count: int, groups: list) -> np.ndarray:
    """Weights (1 + M, N): with all rows, then without each of M groups of rows."""
    weights = np.ones((1 + len(groups), count))
    for row, group in zip(weights[1:], groups, strict=True):
        row[group] = 0
    return weights


def what_if(influence: Influence, edit: Edit) -> dict[str, np.ndarray]:
    """Replayed margins and correctness of all queries, see `replayed`, with nothing changed and
    after the edit: (K, 2, Q).
    """
    weights = weights_without(len(influence.train), [edit.removed])
    labels = edit.labels(influence.train) if edit.relabelled else None
    return replayed(influence, list(range(len(influence.queries))), weights, labels)


def predicted_changes(
    influence: Influence, removed: dict[int, list[np.ndarray]]
) -> dict[int, list[np.ndarray]]:
    """Replayed changes (K,) of queries' margins without groups of rows.

    removed: place of a query -> groups of rows.
    """
    unit = influence.unit()
    found: dict[int, list] = {place: [] for place in removed}
    for replay in influence.replays():
        for place, groups in removed.items():
            part = replay.of([place])
            outputs = outputs_of(part, unit, weights_without(len(influence.train), groups))
            margins = part.queries.margins(outputs)[:, 0]
            found[place].append((margins[1:] - margins[0]).cpu().numpy())
    return {place: list(np.array(changes).T) for place, changes in found.items()}


@dataclass(frozen=True)
class Smallest:
    """Fewest training rows whose replayed removal turns a query's prediction.

    rows: in the order of its scores; empty: with all rows no more than half of the replays say what
    the run says; None: up to half of all rows do not turn it. before, after: members that say the
    query's label, with all rows and without these. members: how many there are.
    """

    rows: list[int] | None
    before: int
    after: int
    members: int


def smallest_set(influence: Influence, place: int, scores: np.ndarray, right: bool) -> Smallest:
    """Fewest training rows, in the order of a query's scores (N,), whose replayed removal turns its
    prediction: away from the label where the run is right, else towards it.

    It turns where more than half of the members turn. Rows that help go where the run is right,
    else those that harm.
    """
    count = len(scores)
    way = "helpful" if right else "harmful"
    order = most_helpful(scores, way)

    def without(numbers: list[int]) -> np.ndarray:
        """Whether members say the label (1 + M, K): with all rows, and without so many."""
        weights = weights_without(count, [order[:number] for number in numbers])
        return replayed(influence, [place], weights)["right"][:, :, 0].T

    grid = sorted({int(GRID**i) for i in range(100) if GRID**i <= count / 2})
    everything, *tried = without(grid)
    before, members = int(everything.sum()), len(everything)
    if turned(everything, way) or 2 * before == members:
        return Smallest([], before, before, members)
    said = dict(zip(grid, tried, strict=True))
    turning = [number for number in grid if turned(said[number], way)]
    if not turning:
        return Smallest(None, before, before, members)
    last = max([number for number in grid if number < turning[0]], default=0)
    between = list(range(last + 1, turning[0]))
    said |= dict(zip(between, without(between)[1:], strict=True))
    fewest = min(number for number in said if turned(said[number], way))
    return Smallest(order[:fewest].tolist(), before, int(said[fewest].sum()), members)


# --- retraining -----------------------------------------------------------------------------------


def retrained(
    start: Study, edit: Edit, seeds: list[int], dry_run: bool
) -> dict[str, np.ndarray] | None:
    """Margins and correctness as `what_if` has them, of R seeds in the place of members; None after
    a dry run. start: the run opened for retraining.
    """
    changed = start.relabelled(edit.labels(start.train)) if edit.relabelled else start
    everything = np.arange(len(start.train))
    rows = np.delete(everything, edit.removed)
    before = {seed: Job.of(everything, seed) for seed in seeds}
    after = {seed: Job.of(rows, seed) for seed in seeds}
    same = start is changed
    known = start.announce([*before.values(), *(after.values() if same else [])], dry_run)
    if not same:
        known = changed.announce(list(after.values()), dry_run) and known
    if not known:
        return None
    found = [
        np.stack(list(start.run_keyed(before, "nothing changed").values())),
        np.stack(list(changed.run_keyed(after, "rows changed").values())),
    ]
    both = np.stack(found, axis=1)  # (R, 2, Q, 2)
    return {"margins": both[..., 0], "right": both[..., 1]}


def no_replay(run: Run, found: dict[str, StoredScores], max_queries: int) -> Refused:
    """Refusal of a question that needs replayed scores. found: of `find_scores`."""
    stale = [one.stale for one in found.values() if one.spec.factor_strategy == "replay"]
    why, more = (f": {stale[0]}", "--overwrite") if stale else ("", "")
    command = analyze_command(run, ScoreSpec(factor_strategy="replay"), max_queries, more)
    return Refused(f"there are no replayed scores of these queries{why}; make them with: {command}")
