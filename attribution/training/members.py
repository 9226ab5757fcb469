"""Members: checkpoints whose scores are averaged, each a run in a folder below that of the run.

They differ in the seed, in the step of one training, or in the rows that they were trained on; the
three combine. With the seed of the run a training is the run itself; with seed s it is in
<run>/members/seed<s>; one on a random share A of the rows in <run>/members/share<A>_seed<s>; a
training's checkpoint after step t in <training>/steps/<t>.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from attribution.cli import check_numbers, flags_of, option
from attribution.draws import uniform_hash
from attribution.files import Refused, describe_parts
from attribution.training.arguments import command_of
from attribution.training.run import Run

MEAN = "each divided by its mean self-influence"
GROUP = "members"
MOST_MEMBERS = 1000  # that are looked for


@dataclass(frozen=True)
class Members:
    """Checkpoints whose scores are averaged; the fields are command line arguments."""

    num_members: int = option(
        1,
        "N checkpoints with seeds from --seed up; their scores are averaged, each divided by its "
        "mean self-influence (a replay's as they are) (1)",
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

    def trainings(self, folder: Path, seed: int) -> list[tuple[Path, int]]:
        """(folder, seed) of each training. folder and seed: those of the run."""
        whole = self.member_share == 1
        prefix = "seed" if whole else f"share{self.member_share:g}_seed"
        seeds = range(seed, seed + self.num_members)
        found = [(folder / "members" / f"{prefix}{one}", one) for one in seeds]
        return [(folder, seed), *found[1:]] if whole else found

    def check_steps(self, total: int) -> None:
        """Raises Refused if a training of `total` steps has fewer than there are checkpoints."""
        if self.member_steps > total:
            raise Refused(
                f"--member_steps {self.member_steps} asks for more checkpoints than the {total:,} "
                "steps of a training"
            )

    def kept_steps(self, total: int) -> list[int]:
        """Steps of a training, of `total` steps (at least member_steps), after which a checkpoint
        is kept; its end is not among them.
        """
        return [round(j * total / self.member_steps) for j in range(1, self.member_steps)]

    def places_of(self, training: Path) -> list[Path]:
        """Folder of each checkpoint of the training in this folder, existing or not; its end is the
        last.

        The steps of a missing training, and of one with too few, are not known: they have the name
        -1.
        """
        end = Run.read(training)
        kept = [-1] * (self.member_steps - 1)
        if end and end.steps >= self.member_steps:
            kept = self.kept_steps(end.steps)
        return [*(training / "steps" / str(step) for step in kept), training]

    def places(self, run: Run) -> list[Path]:
        """Folder of each checkpoint, existing or not, in the order of seeds and steps."""
        if self.single:  # also for a run without a seed
            return [run.folder]
        assert run.seed is not None
        trainings = self.trainings(run.folder, run.seed)
        return [place for training, _ in trainings for place in self.places_of(training)]


def draw_share(num_rows: int, share: float, seed: int) -> np.ndarray:
    """Training rows of a member, ascending: those with the smallest hash of seed and row.

    Masks of studies are drawn from other random numbers.
    """
    rows = np.arange(num_rows)
    if share == 1:
        return rows
    order = np.argsort(uniform_hash(seed, "member's share", rows), kind="stable")
    return np.sort(order[: round(share * num_rows)])


def is_trained(folder: Path, record: dict, steps: Iterable[int] = ()) -> bool:
    """Whether the folder has an intact run of this record (rows, start, recipe, seed) with its
    checkpoints after these steps.
    """
    end = Run.read(folder)
    if end is None or end.seed != record["seed"] or end.differences(record) or not end.intact():
        return False
    kept = (Run.read(folder / "steps" / str(step)) for step in steps)
    return all(one and end.has_kept(one) and one.intact() for one in kept)


def members_on_the_way(run: Run) -> Members:
    """Members whose trainings kept checkpoints on their way, as many as there are: those on a share
    of the rows, else those on all rows, else the run alone.
    """
    best = Members()
    if run.seed is None:
        return best
    halves = run.folder.glob(f"members/share*_seed{run.seed}")
    shares = {float(place.name.removeprefix("share").partition("_")[0]) for place in halves}
    for share in (1.0, *sorted(shares)):
        steps = []
        for place, _ in Members(MOST_MEMBERS, 1, share).trainings(run.folder, run.seed):
            training = Run.read(place)
            if training is None or not training.kept:
                break
            steps.append(len(training.kept) + 1)
        alike = steps.count(steps[0]) if steps else 0
        if alike and (best.single or best.member_share == 1 or alike > best.num_members):
            best = Members(alike, steps[0], share)
    return best


def members_command(run: Run) -> str:
    """Command that trains eight members of this run on halves of its rows."""
    command = command_of("train.py", run.dataset_name, run.folder.parent)
    return f"{command} --num_members 8 --member_share 0.5 --member_steps 2"


def open_members(run: Run, members: Members) -> list[Run]:
    """The checkpoints whose scores are averaged.

    Raises Refused if one is missing, damaged, of another seed or training than its place says, or
    differs from the run in more than seed, step and share.
    """
    if members.single:
        return [run]
    if run.seed is None or run.recipe is None:
        raise Refused(
            f"the model in {run.folder} was adopted, and its recipe is not known: it has no members"
        )
    own = Members(**{field.name: getattr(members, field.name) for field in fields(Members)})
    make = (
        f"make it with: {command_of('train.py', run.dataset_name, run.folder.parent)} "
        f"{flags_of(own)}"
    )
    wanted = vars(run) | {"share": members.member_share}
    found = []
    for training, seed in members.trainings(run.folder, run.seed):
        end = Run.read(training)
        if end and end.steps:
            members.check_steps(end.steps)
        for place in members.places_of(training):
            member = Run.read(place)
            if member is None or not member.intact():
                unknown = place.name == "-1"
                subject = f"a checkpoint of {training}" if unknown else f"the member {place}"
                raise Refused(f"{subject} is missing or damaged; {make}")
            if parts := member.differences(wanted):
                raise Refused(
                    f"the member {place} has {describe_parts(parts)} than the run; train it again"
                )
            if member.seed != seed:
                raise Refused(
                    f"the member {place} was trained with seed {member.seed}, not {seed}; {make}"
                )
            if place != training and not (end and end.has_kept(member)):
                raise Refused(
                    f"the member {place} is of another training than that in {training}; {make}"
                )
            found.append(member)
    return found


def replayed_members(checkpoints: list[Run]) -> list[Run]:
    """Those that a replay takes: the end of a training says less than what it kept on the way."""
    return [one for one in checkpoints if one.step is not None] or checkpoints


def end_of(checkpoint: Run) -> Run:
    """The run that ended the training of this checkpoint. Raises Refused if it is gone."""
    if checkpoint.step is None:
        return checkpoint
    end = Run.read(checkpoint.folder.parent.parent)
    if end is None:
        raise Refused(f"the training that kept {checkpoint.folder} is gone; train it again")
    return end


def fingerprint_of_members(members: Members, run: Run) -> dict:
    """Named parts of a mean over members: weights of each checkpoint (None: missing), kind of
    mean.
    """
    found = [Run.read(place) for place in members.places(run)]
    parts: dict = {"members": [member and member.weights for member in found]}
    return parts | {"mean": MEAN} if len(found) > 1 else parts


def mean_of(scores: Iterable[tuple[np.ndarray, float]]) -> np.ndarray:
    """Mean over checkpoints of arrays of one shape, float64, in which each counts the same.

    scores: (array, divisor) of each checkpoint. Scores of a checkpoint that has fitted its rows
    less are larger as a whole and would dominate a plain mean. So each array is divided by a number
    of its checkpoint, which depends on no query, and the mean is multiplied by the mean divisor,
    which keeps the unit.
    """
    total = np.zeros(())
    divisors = []
    for values, divisor in scores:
        divisors.append(divisor)
        total = total + values.astype(np.float64) / (divisor or 1.0)
    return total / len(divisors) * np.mean(divisors)
