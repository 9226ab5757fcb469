"""Makes checkpoints: trains, keeps what is wanted on the way, saves, evaluates."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from attribution.files import Refused, exclusive, others, printable, read_json
from attribution.models import name_classes
from attribution.processes import ALONE, Processes
from attribution.training.bar import train
from attribution.training.data import Material
from attribution.training.fit import choose_device, evaluate_model, steps_of
from attribution.training.members import Members, differences, fits, kept_rows, share_of_process
from attribution.training.metrics import doubts
from attribution.training.queries import open_trained
from attribution.training.resume import Progress
from attribution.training.run import add_to_run, save_run


@dataclass(frozen=True)
class Making:
    """What all checkpoints of one command have in common."""

    material: Material
    recipe: dict  # keyword arguments of `fit`
    record: dict  # what run.json says of all of them
    members: Members
    eval_batch_size: int
    start: Callable[[int], torch.nn.Module]  # the start model with the head of a seed

    def checkpoints(self, folder: Path, first: int, processes: Processes) -> None:
        """Makes what is missing: one training in all processes of the launch, or of several a share
        in each.

        folder: the run's; first: its seed. The run itself is always among them.
        """
        members = self.members
        if not members.apart:
            self.one(folder, first, 1.0, processes)
            return
        wanted = [(place, seed, members.share) for place, seed in members.trainings(folder, first)]
        wanted += [(folder, first, 1.0)] if members.share < 1 else []
        for place, seed, share in share_of_process(wanted):
            self.one(place, seed, share, ALONE)

    def one(self, folder: Path, seed: int, share: float, processes: Processes) -> None:
        """Trains, stores and evaluates one checkpoint, unless several are wanted and it is there.

        share: of the rows that it sees, drawn from its seed.
        """
        rows, recipe = kept_rows(len(self.material.train), share, seed), self.recipe
        if not len(rows):
            raise Refused(
                f"--member_share {share:g} of {len(self.material.train):,} rows keeps none of them"
            )
        steps = recipe["num_train_epochs"] * steps_of(len(rows), recipe["train_batch_size"])
        record = (
            self.record | {"seed": seed, "steps": steps} | ({"share": share} if share < 1 else {})
        )
        kept = self.members.kept_steps(steps) if share == self.members.share else []
        if not self.members.single and fits(folder, record, kept):
            print(f"{folder} is there and is kept")
            if not (read_json(folder / "run.json") or {}).get("evaluation"):  # it was killed before
                self.evaluate(folder, open_trained(folder))
            return
        say_what_is_replaced(folder, record)
        progress = Progress(folder / ".training", made_from(record, kept), processes)
        with exclusive(folder) if processes.main else contextlib.nullcontext():
            model = name_classes(self.start(seed), self.material.task).to(choose_device())

            def keep(step: int) -> None:
                if step in kept and processes.main:
                    place = folder / "steps" / str(step)
                    save_run(
                        place,
                        model,
                        self.material.tokenizer,
                        record | {"step": step, "evaluation": {}},
                    )

            keep(0)
            epochs = train(
                model, self.material.train, rows, recipe, seed, progress, processes, keep
            )
            if not processes.main:
                return
            record |= {"epochs": epochs, "evaluation": {}}
            save_run(
                folder, model, self.material.tokenizer, record
            )  # first: a failing evaluation loses nothing
            progress.remove()
            found = self.evaluate(folder, model)
        show_metrics(found["evaluation"])
        for sentence in found["doubts"]:
            print(printable(sentence))
        print(f"saved {folder}")

    def evaluate(self, folder: Path, model: torch.nn.Module) -> dict:
        """Evaluates a saved checkpoint, and adds to its run.json what is returned: metrics, and
        doubts about them.
        """
        results = evaluate_all(model, self.material, self.eval_batch_size)
        found = {"evaluation": results, "doubts": doubts(results, self.material.validation)}
        add_to_run(folder, **found)
        return found


def say_what_is_replaced(folder: Path, record: dict) -> None:
    """Names the run that the training will replace, where it is another one: its scores will not
    count any more.
    """
    run = read_json(folder / "run.json") or {}
    seed = ["seed"] if run.get("seed") != record["seed"] else []
    if run and (parts := [*seed, *differences(run, record)]):
        named = others([part.replace("_", " ") for part in parts])
        print(
            f"{folder} holds a run with {named}; it will be replaced, and its scores will not "
            "count any more (another --checkpoint_dir keeps it)"
        )


def made_from(record: dict, kept: list[int]) -> dict:
    """What an interrupted training must share with one that goes on from it. kept: steps with a
    checkpoint.
    """
    names = ("start", "train_rows", "recipe", "seed", "processes", "device", "share")
    return {name: record[name] for name in names if name in record} | (
        {"kept": kept} if kept else {}
    )


def evaluate_all(model: torch.nn.Module, material: Material, batch_size: int) -> dict[str, dict]:
    """Split -> metrics of every validation split."""
    return {
        name: evaluate_model(model, data, batch_size) for name, data in material.validation.items()
    }


def show_metrics(results: dict[str, dict]) -> None:
    """Prints the metrics of every split."""
    for name, result in results.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.4f}" for key, value in result.items()))
