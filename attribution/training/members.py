"""Members: the checkpoints whose scores are averaged, each a run of its own below the run's folder.

They differ in the seed, in the step of one training, or in the rows that they were trained on; the
three combine. Step 0 is the model before training, which is scored alone: scores that do not differ
from its saw nothing of it. The training with seed s lies in the run's folder itself (its own seed)
or in <run>/members/seed<s>; one on a random share of the rows in <run>/members/share<A>_seed<s>;
and a training's checkpoint after step t in <training>/steps/<t>.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from attribution.draws import uniform_hash
from attribution.files import Refused, intact, others, read_json

MEAN = "each divided by its standard deviation"
SAME = (
    "recipe",
    "train_rows",
    "start",
    "tokenizer",
    "max_length",
    "inputs",
    "num_hidden_layers",
    "new_head",
    "share",
)


@dataclass(frozen=True)
class Members:
    """Which checkpoints are scored together."""

    count: int = 1  # trainings K, of as many seeds
    steps: int = 1  # checkpoints S of each training: at evenly spaced steps, the last one its end
    share: float = 1.0  # of the rows that each training sees
    start: bool = False  # the model before training instead: start weights and the drawn head

    @classmethod
    def of(cls, name: str) -> "Members":
        """The members behind scores of this name."""
        found = {"members": "1", "steps": "1", "share": "1"}
        for part in name.split("_"):
            for word in found:
                if part.startswith(word) and part.removeprefix(word).replace(".", "", 1).isdigit():
                    found[word] = part.removeprefix(word)
        start = "start" in name.split("_")
        return cls(int(found["members"]), int(found["steps"]), float(found["share"]), start)

    @property
    def single(self) -> bool:
        """Whether there is one checkpoint, the run itself."""
        return self == Members()

    @property
    def apart(self) -> bool:
        """Whether there are several trainings, each in one process of a launch."""
        return self.count > 1 or self.share < 1

    @property
    def name(self) -> str:
        """What a name of scores says of them; empty for the run alone."""
        count = f"_members{self.count}" * (self.count > 1)
        steps, share = (
            f"_steps{self.steps}" * (self.steps > 1),
            f"_share{self.share:g}" * (self.share < 1),
        )
        return count + steps + share + "_start" * self.start

    @property
    def flags(self) -> str:
        """The arguments that ask for them."""
        count = f" --num_members {self.count}" * (self.count > 1)
        steps, share = (
            f" --member_steps {self.steps}" * (self.steps > 1),
            f" --member_share {self.share:g}",
        )
        return (count + steps + share * (self.share < 1) + " --member_start" * self.start).strip()

    def trainings(self, folder: Path, first: int) -> list[tuple[Path, int]]:
        """(place, seed) of each training. folder: the run's; first: its seed."""
        seeds = range(first, first + self.count)
        if self.share < 1:
            return [
                (folder / "members" / f"share{self.share:g}_seed{seed}", seed) for seed in seeds
            ]
        return [
            (folder if seed == first else folder / "members" / f"seed{seed}", seed)
            for seed in seeds
        ]

    def kept_steps(self, total: int) -> list[int]:
        """Steps of a training of so many after which a checkpoint is kept, without its end."""
        if self.start:
            return [0]
        return [
            step
            for j in range(1, self.steps)
            if 0 < (step := round(j * total / self.steps)) < total
        ]

    def places(self, folder: Path, run: dict) -> list[Path]:
        """The folder of each checkpoint, seed by seed and step by step; what is missing may stand
        there as well.
        """
        if self.single:  # also where the run's seed is not known
            return [folder]
        if self.start:
            return [folder / "steps" / "0"]
        found = []
        for place, _ in self.trainings(folder, run["seed"]):
            total = (read_json(place / "run.json") or {}).get("steps", 0)
            kept = self.kept_steps(total) if total else [-1] * (self.steps - 1)
            found += [*(place / "steps" / str(step) for step in kept), place]
        return found


@dataclass(frozen=True)
class Opened:
    """A run, and the checkpoints that are scored together."""

    folder: Path
    run: dict
    members: Members
    checkpoints: list[tuple[Path, dict]]  # folder and run.json of each

    def __len__(self) -> int:
        return len(self.checkpoints)


def kept_rows(num_rows: int, share: float, seed: int) -> np.ndarray:
    """The rows of a training on a random share of them, ascending: those of the smallest hash of
    seed and row.

    No mask of a study comes from these numbers.
    """
    rows = np.arange(num_rows)
    if share == 1:
        return rows
    return np.sort(
        np.argsort(uniform_hash(seed, "member's share", rows), kind="stable")[
            : round(share * num_rows)
        ]
    )


def share_of_process(items: Sequence) -> list:
    """This process's part of the items under a launcher (RANK of WORLD_SIZE); all of them without
    one.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return [item for i, item in enumerate(items) if i % size == rank]


def fits(folder: Path, record: dict, steps: Sequence[int] = ()) -> bool:
    """Whether the folder holds an intact run of this record (rows, start, recipe, seed) and these
    of its steps.
    """
    for place in (folder, *(folder / "steps" / str(step) for step in steps)):
        run = read_json(place / "run.json")
        if run is None or not intact(place, run.get("files")):
            return False
        if run.get("seed") != record["seed"] or differences(run, record):
            return False
    return True


def differences(run: dict, other: dict) -> list[str]:
    """In which parts two runs differ, the seed and the step aside."""
    return [part for part in SAME if run.get(part) != other.get(part)]


def open_members(folder: Path, run: dict, members: Members) -> Opened:
    """The run and its members. Raises Refused where one is missing, damaged or differs in more than
    members do.
    """
    if members.single:
        return Opened(folder, run, members, [(folder, run)])
    name = run["dataset_name"]
    if run.get("seed") is None or run.get("recipe") is None:
        raise Refused(
            f"the model in {folder} was adopted, and its recipe is not known: it has no members"
        )
    wanted = run | ({"share": members.share} if members.share < 1 else {})
    found = []
    for place in members.places(folder, run):
        member = read_json(place / "run.json")
        if member is None or not intact(place, member.get("files")):
            what = (
                f"a checkpoint of {place.parent.parent}"
                if place.name == "-1"
                else f"the member {place}"
            )
            raise Refused(
                f"{what} is missing or damaged; make it with: python train.py --dataset_name "
                f"{name} {members.flags} and the arguments of the run's training"
            )
        if parts := differences(wanted, member):
            raise Refused(f"the member {place} has {others(parts)} than the run; train it again")
        found.append((place, member))
    return Opened(folder, run, members, found)


def fingerprint_of(members: Members, folder: Path, run: dict) -> dict:
    """What a mean over members was made from: the weights of each checkpoint (None: missing), and
    how it was taken.
    """
    weights = [
        (read_json(place / "run.json") or {}).get("weights")
        for place in members.places(folder, run)
    ]
    return {"members": weights} | ({"mean": MEAN} if len(weights) > 1 else {})


def mean_of(members: Iterable[np.ndarray]) -> np.ndarray:
    """The mean of arrays alike, one a checkpoint, float64, in which each counts as much as the
    others.

    Scores of a checkpoint that has fitted its rows less are larger as a whole, and would outweigh
    the others in a plain mean. So each array is divided by its standard deviation (one number a
    checkpoint: queries stay comparable), and the mean is multiplied by the mean standard deviation:
    the unit stays. lab/members.py compares it with others.
    """
    total, spreads = np.zeros(()), []
    for values in members:
        spread = float(np.std(values, dtype=np.float64))
        spreads.append(spread)
        total = total + values.astype(np.float64) / (spread or 1.0)
    return total / len(spreads) * np.mean(spreads)
