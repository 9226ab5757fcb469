"""Members: the checkpoints whose scores are averaged, each a run of its own below the run's folder.

They differ in the seed, in the step of one training, or in the rows that they were trained on; the
three combine. The training with seed s is the run itself (its own seed) or in
<run>/members/seed<s>; one on a random share A of the rows in <run>/members/share<A>_seed<s>; a
training's checkpoint after step t in <training>/steps/<t>.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attribution.cli import check_numbers, flags_of, option
from attribution.draws import uniform_hash
from attribution.files import Refused, describe_parts
from attribution.training.run import Run

MEAN = "each divided by its standard deviation"
GROUP = "members"


@dataclass(frozen=True)
class Members:
    """Choice of the checkpoints whose scores are averaged; its fields are command line arguments."""

    num_members: int = option(
        1,
        "train K checkpoints with K seeds from --seed up, or average their scores; train.py keeps "
        "those that are there (1)",
        group=GROUP,
        name="members{}",
    )
    member_steps: int = option(
        1,
        "checkpoints of each training, at evenly spaced steps, the last one its end (1)",
        group=GROUP,
        name="steps{}",
    )
    member_share: float = option(
        1.0,
        "share of the rows, drawn at random, on which each member is trained (1: all rows)",
        group=GROUP,
        name="share{}",
    )

    def check(self) -> None:
        """Raises Refused for numbers that no members have."""
        check_numbers(vars(self), "num_members", "member_steps", "member_share")
        if self.member_share > 1:
            share = f"{self.member_share:g}"
            raise Refused(f"--member_share is a share of the rows, at most 1, not {share}")

    @property
    def single(self) -> bool:
        """Whether there is one checkpoint, the run itself."""
        return (self.num_members, self.member_steps, self.member_share) == (1, 1, 1.0)

    @property
    def several_trainings(self) -> bool:
        """Whether a launch trains several checkpoints, each in one process."""
        return self.num_members > 1 or self.member_share < 1

    def trainings(self, folder: Path, seed: int) -> list[tuple[Path, int]]:
        """(folder, seed) of each training. folder and seed: the run's."""
        seeds = range(seed, seed + self.num_members)
        if self.member_share < 1:
            name = f"share{self.member_share:g}_seed"
            return [(folder / "members" / f"{name}{one}", one) for one in seeds]
        return [
            (folder if one == seed else folder / "members" / f"seed{one}", one) for one in seeds
        ]

    def kept_steps(self, total: int) -> list[int]:
        """Steps, of a training of `total` steps, after which a checkpoint is kept; its end is not
        among them.
        """
        steps = [round(j * total / self.member_steps) for j in range(1, self.member_steps)]
        return [step for step in steps if 0 < step < total]

    def places(self, run: Run) -> list[Path]:
        """Folder of each checkpoint, seed by seed and step by step, whether it is there or not."""
        if self.single:  # also for a run without a seed
            return [run.folder]
        assert run.seed is not None
        found = []
        for place, _ in self.trainings(run.folder, run.seed):
            training = Run.read(place)
            missing = [-1] * (self.member_steps - 1)
            kept = self.kept_steps(training.steps) if training and training.steps else missing
            found += [*(place / "steps" / str(step) for step in kept), place]
        return found


def draw_share(num_rows: int, share: float, seed: int) -> np.ndarray:
    """Training rows of a member, ascending: those with the smallest hash of seed and row.

    No mask of a study is drawn from these numbers.
    """
    rows = np.arange(num_rows)
    if share == 1:
        return rows
    order = np.argsort(uniform_hash(seed, "member's share", rows), kind="stable")
    return np.sort(order[: round(share * num_rows)])


def is_trained(folder: Path, record: dict, steps: Iterable[int] = ()) -> bool:
    """Whether the folder has an intact run of this record (rows, start, recipe, seed) with
    checkpoints after these steps.
    """
    for place in (folder, *(folder / "steps" / str(step) for step in steps)):
        run = Run.read(place)
        if run is None or run.seed != record["seed"] or run.differences(record):
            return False
        if not run.intact():
            return False
    return True


def open_members(run: Run, members: Members) -> list[Run]:
    """The checkpoints whose scores are averaged.

    Raises Refused if one is missing, damaged, or differs in more than seed, step and share.
    """
    if members.single:
        return [run]
    if run.seed is None or run.recipe is None:
        raise Refused(
            f"the model in {run.folder} was adopted, and its recipe is not known: it has no members"
        )
    found = []
    for place in members.places(run):
        member = Run.read(place)
        if member is None or not member.intact():
            unknown_step = place.name == "-1"
            what = (
                f"a checkpoint of {place.parent.parent}" if unknown_step else f"the member {place}"
            )
            raise Refused(
                f"{what} is missing or damaged; make it with: python train.py --dataset_name "
                f"{run.dataset_name} {flags_of(members)} and the arguments of the run's training"
            )
        wanted = {**vars(run), "share": members.member_share}
        if parts := member.differences(wanted):
            raise Refused(
                f"the member {place} has {describe_parts(parts)} than the run; train it again"
            )
        found.append(member)
    return found


def fingerprint_of_members(members: Members, run: Run) -> dict:
    """Named parts of a mean over members: weights of each checkpoint (None: missing), kind of mean."""
    found = [Run.read(place) for place in members.places(run)]
    weights = [None if member is None else member.weights for member in found]
    return {"members": weights} | ({"mean": MEAN} if len(weights) > 1 else {})


def mean_of(scores: Iterable[np.ndarray]) -> np.ndarray:
    """Mean over checkpoints of arrays of one shape, float64, in which each counts the same.

    Scores of a checkpoint that has fitted its rows less are larger as a whole and would outweigh
    the others in a plain mean. So each array is divided by its standard deviation (one number a
    checkpoint: queries stay comparable), and the mean is multiplied by the mean standard deviation,
    which keeps the unit.
    """
    total = np.zeros(())
    spreads = []
    for values in scores:
        spread = float(np.std(values, dtype=np.float64))
        spreads.append(spread)
        total = total + values.astype(np.float64) / (spread or 1.0)
    return total / len(spreads) * np.mean(spreads)
