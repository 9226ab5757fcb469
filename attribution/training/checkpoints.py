"""Checkpoints of one command of train.py: each is trained, saved, and evaluated."""

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from attribution.data.dataset import GlueDataset
from attribution.files import (
    Refused,
    checksums,
    exclusive,
    printable,
    read_json,
    write_bytes,
    write_json,
)
from attribution.models import name_classes
from attribution.processes import ALONE, Processes, choose_device
from attribution.tensors import fingerprint_of_tensors
from attribution.training.data import RowsOfRun
from attribution.training.fit import Diverged, evaluate_model, fit, steps_of
from attribution.training.members import Members, draw_share, is_trained
from attribution.training.metrics import doubts, worth
from attribution.training.resume import Progress
from attribution.training.run import MARKER, Run, held

# Parts of run.json that an interrupted training shares with the one that continues it.
RESUMED = ("start", "train_rows", "recipe", "seed", "processes", "device", "share")


@dataclass(frozen=True)
class Trainer:
    """Training and evaluation of the checkpoints of one command."""

    rows: RowsOfRun
    recipe: dict  # keyword arguments of `fit`
    record: dict  # parts of run.json that all checkpoints have in common
    members: Members
    eval_batch_size: int
    overwrite: bool  # whether runs with other parts may be replaced
    start: Callable[[int], torch.nn.Module]  # seed -> start model with the head of this seed

    def train_all(self, folder: Path, seed: int, processes: Processes) -> None:
        """Trains the missing checkpoints: one training in all processes of the launch, several
        trainings distributed over them.

        folder and seed: those of the run, which is always among the checkpoints, unless it is an
        adopted model. Raises Refused for members whose trainings have no rows or too few steps, for
        runs that may not be replaced, and if a training diverges.
        """
        share = self.members.member_share
        rows = draw_share(len(self.rows.train), share, seed)
        if not len(rows):
            raise Refused(
                f"--member_share {share:g} of {len(self.rows.train):,} rows keeps none of them"
            )
        self.members.check_steps(self.steps(len(rows)))
        wanted = [(place, one, share) for place, one in self.members.trainings(folder, seed)]
        if share < 1:
            wanted.append((folder, seed, 1.0))
        for place, one, part in wanted:
            self.check_replaced(place, self.record_of(one, part))
        run = Run.read(folder)
        if run and run.adopted and not self.overwrite:
            wanted = [one for one in wanted if one[0] != folder]
        if len(wanted) > 1:
            wanted = wanted[processes.rank :: processes.count]
            processes = ALONE
        for place, one, part in wanted:
            self.train(place, one, part, processes)

    def record_of(self, seed: int, share: float) -> dict:
        """Parts of run.json that say how one checkpoint is trained. share: as in `train`."""
        return self.record | {"seed": seed} | ({"share": share} if share < 1 else {})

    def check_replaced(self, folder: Path, record: dict) -> None:
        """Raises Refused for a folder with a run of another record, unless it may be replaced."""
        run = Run.read(folder)
        if run is None or self.overwrite:
            return
        if parts := ["seed"] * (run.seed != record["seed"]) + run.differences(record):
            raise held(folder, parts)

    def steps(self, num_rows: int) -> int:
        """Steps of a training on this number of rows."""
        per_epoch = steps_of(num_rows, self.recipe["train_batch_size"])
        return self.recipe["num_train_epochs"] * per_epoch

    def train(self, folder: Path, seed: int, share: float, processes: Processes) -> None:
        """Trains, saves and evaluates one checkpoint, if it is missing.

        share: of the training rows, drawn with the seed. Raises Refused if training diverges.
        """
        rows = draw_share(len(self.rows.train), share, seed)
        recipe = self.recipe
        steps = self.steps(len(rows))
        record = self.record_of(seed, share) | {"steps": steps}
        kept = self.members.kept_steps(steps) if share == self.members.member_share else []
        run = Run.read(folder)
        if run and not run.adopted and is_trained(folder, record, kept):
            print(f"{folder} is there and is kept")
            if processes.main and not run.evaluation:  # killed between saving and evaluation
                self.evaluate(folder, run.model(choose_device()))
            return
        resumed = {name: record[name] for name in RESUMED if name in record}
        if kept:
            resumed["kept"] = kept
        progress = Progress(folder / ".training" / "progress.json", resumed, processes)
        with exclusive(folder) if processes.main else contextlib.nullcontext():
            model = name_classes(self.start(seed), self.rows.task).to(choose_device())
            total = recipe["num_train_epochs"] * len(rows)
            bar = tqdm(total=total, unit=" examples", leave=False, disable=not processes.main)

            def on_step(step: int, count: int) -> None:
                if step in kept and processes.main:
                    place = folder / "steps" / str(step)
                    save_run(place, model, self.rows.tokenizer, record | {"step": step})
                bar.update(count)

            def on_epoch(epoch: int, loss: float, seconds: float) -> None:
                progress.epochs.append({"loss": loss, "seconds": seconds})
                rate = len(rows) / seconds
                bar.write(f"epoch {epoch + 1}: loss {loss:.4f} per example, {rate:,.0f} examples/s")

            try:
                with bar:
                    fit(
                        model,
                        self.rows.train,
                        rows,
                        seed=seed,
                        on_epoch=on_epoch,
                        on_step=on_step,
                        progress=progress,
                        processes=processes,
                        **recipe,
                    )
            except Diverged as error:
                raise Refused(f"training diverged: {error}; lower --learning_rate") from error
            if not processes.main:
                return
            record |= {
                "epochs": progress.epochs,
                "kept": weights_of_steps(folder, kept, run, model),
            }
            # Saved before it is evaluated: a failing evaluation loses nothing.
            save_run(folder, model, self.rows.tokenizer, record)
            progress.remove()
            for place in (folder / "steps").glob("*"):
                if place.name not in record["kept"]:  # of another training
                    shutil.rmtree(place)
            found = self.evaluate(folder, model)
        show_metrics(found["evaluation"], self.rows.validation)
        for sentence in found["doubts"]:
            print(printable(sentence))
        print(f"saved {folder}")

    def evaluate(self, folder: Path, model: torch.nn.Module) -> dict:
        """Metrics of a saved checkpoint and doubts about them, which are added to its run.json."""
        results = evaluate_splits(model, self.rows, self.eval_batch_size)
        found = {"evaluation": results, "doubts": doubts(results, self.rows.validation)}
        write_json(folder / "run.json", (read_json(folder / "run.json") or {}) | found)
        return found


def weights_of_steps(
    folder: Path, kept: list[int], earlier: Run | None, model: torch.nn.Module
) -> dict[str, str]:
    """Step -> fingerprint of the weights of every checkpoint on the way of a training that has
    ended with this model.

    kept: steps at which it has just saved one. earlier: the run in the folder before; if it ended
    with the same weights, it was the same training, and its steps count too.
    """
    found = {str(step): Run.read(folder / "steps" / str(step)) for step in kept}
    weights = {step: one.weights for step, one in found.items() if one}
    if earlier and earlier.weights == fingerprint_of_tensors(model.state_dict()):
        return earlier.kept | weights
    return weights


def evaluate_splits(model: torch.nn.Module, rows: RowsOfRun, batch_size: int) -> dict[str, dict]:
    """Metrics of every validation split: split -> metric -> value."""
    return {name: evaluate_model(model, data, batch_size) for name, data in rows.validation.items()}


def show_metrics(results: dict[str, dict], validation: dict[str, GlueDataset]) -> None:
    """Prints the metrics of every split, and what they are worth."""
    for name, result in results.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.4f}" for key, value in result.items()))
        if words := worth(result, validation[name]):
            print(f"  {printable(words)}")


def save_run(folder: Path, model, tokenizer, record: dict) -> None:
    """Saves model and tokenizer, then run.json with checksums, which makes the folder a run.

    Raises Refused, and saves nothing, if a weight is not finite.
    """
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise Refused(
                f"training left a weight that is not finite ({name}); lower --learning_rate"
            )
    saving = folder / ".saving"
    shutil.rmtree(saving, ignore_errors=True)
    write_bytes(folder / MARKER, b"a run is being saved here\n")
    try:
        model.save_pretrained(saving)
        tokenizer.save_pretrained(saving)
        files = checksums(path for path in saving.iterdir() if path.is_file())
        (folder / "run.json").unlink(missing_ok=True)
        for name in files:
            (saving / name).replace(folder / name)
    finally:
        shutil.rmtree(saving, ignore_errors=True)
    weights = fingerprint_of_tensors(model.state_dict())
    write_json(folder / "run.json", record | {"files": files, "weights": weights})
    (folder / MARKER).unlink()
