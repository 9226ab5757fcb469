"""Members: checkpoints that differ in nothing but the seed, each a run of its own.

The first is the run itself; member k lies in <run>/members/seed<s>, where s is the run's seed plus k.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from attribution.files import Refused, intact, read_json

SAME = ("recipe", "train_rows", "start", "tokenizer", "max_length", "inputs", "num_hidden_layers", "new_head")


def member_folder(folder: Path, first: int, seed: int) -> Path:
    """The folder of the member with this seed; first: the seed of the run itself."""
    return folder if seed == first else folder / "members" / f"seed{seed}"


def share_of_process(items: Sequence) -> list:
    """This process's part of the items under a launcher (RANK of WORLD_SIZE); all of them without one."""
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return [item for i, item in enumerate(items) if i % size == rank]


def fits(folder: Path, record: dict) -> bool:
    """Whether the folder holds an intact run of this record: same rows, start, recipe and seed."""
    run = read_json(folder / "run.json")
    if run is None or not intact(folder, run.get("files")):
        return False
    return run.get("seed") == record["seed"] and not differences(run, record)


def differences(run: dict, other: dict) -> list[str]:
    """In which parts two runs differ, the seed aside."""
    return [part for part in SAME if run.get(part) != other.get(part)]


def open_members(folder: Path, run: dict, count: int) -> list[tuple[Path, dict]]:
    """(folder, run.json) of each member, the run itself first. Raises Refused where one is missing or differs."""
    if count == 1:
        return [(folder, run)]
    name = run["dataset_name"]
    if run.get("seed") is None or run.get("recipe") is None:
        raise Refused(f"the model in {folder} was adopted, and its recipe is not known: it has no members")
    found = [(folder, run)]
    for seed in range(run["seed"] + 1, run["seed"] + count):
        place = member_folder(folder, run["seed"], seed)
        member = read_json(place / "run.json")
        if member is None or not intact(place, member.get("files")):
            raise Refused(
                f"the member {place} is missing or damaged; make it with: python train.py --dataset_name {name} "
                f"--num_members {count} and the arguments of the run's training"
            )
        if parts := differences(run, member):
            raise Refused(f"the member {place} has another {' and another '.join(parts)} than the run; train it again")
        found.append((place, member))
    return found
