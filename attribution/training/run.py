"""A run: the folder that train.py saves and every other script opens.

It holds model and tokenizer as `save_pretrained` writes them, and run.json: task, data, start,
recipe, checksums. While a run is being saved its folder has a marker; a folder with a model but
neither run.json nor marker is external, and is left alone.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from attribution.data.tasks import TASKS, GlueTask, check_name, task_from, unknown_task
from attribution.files import (
    Refused,
    check_writable,
    describe_parts,
    intact,
    printable,
    read_json,
    sha256_of,
)
from attribution.training.arguments import command_of

if TYPE_CHECKING:  # they take seconds to import; what reads run.json only does not wait for them
    import datasets
    import torch

    from attribution.data.dataset import GlueDataset
    from attribution.data.rows import Rows

ROWS = "influence/rows"  # kept rows, in the folder of a run
RETRAINING_TIME = "retraining/time.json"  # in the same
MARKER = ".unfinished"
# Arguments of train.py that name something outside the run's folder -> what it is.
OUTSIDE = {
    "dataset_path": "the data set",
    "validation_split": "the file of validation rows",
    "model_name_or_path": "the start model",
}
MODEL_FILES = ("config.json", "*.safetensors", "*.bin", "*.pt", "*.h5")
# Parts in which the members of one run agree; they may differ in seed and step.
SAME_FOR_MEMBERS = (
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
class Run:
    """One trained checkpoint: its folder, and what run.json records of it."""

    folder: Path
    dataset_name: str
    task: GlueTask
    weights: str  # SHA-256, as are train_rows, start and tokenizer
    train_rows: str
    tokenizer: str
    max_length: int
    inputs: list[str]
    files: dict[str, str]
    num_labels: int
    seed: int | None = None  # None: unknown, of an adopted model
    recipe: dict | None = None  # keyword arguments of `fit`; None: not known
    start: str | None = None
    model_name_or_path: str | None = None
    num_hidden_layers: int | None = None
    new_head: bool = False
    max_train_samples: int | None = None
    share: float = 1.0  # of the training rows
    step: int | None = None  # of a checkpoint on the way; None: the end
    steps: int = 0  # of the whole training
    epochs: list[dict] = field(default_factory=list)  # loss and seconds of each
    kept: dict[str, str] = field(default_factory=dict)  # step -> weights of the checkpoint there
    dataset_path: str | None = None
    validation_split: str | None = None  # a second file, of custom rows
    folders: dict[str, str | None] = field(default_factory=dict)  # where these were, absolute
    data: dict | None = None  # how custom rows were read
    evaluation: dict[str, dict] = field(default_factory=dict)  # split -> metrics
    doubts: list[str] = field(default_factory=list)
    adopted: dict | None = None
    data_path: str | None = None  # where the data are now; None: where training found them

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Run in the folder; None if run.json is missing, damaged or not of a run.

        Weights are not read.
        """
        record = read_json(folder / "run.json") or {}
        custom = record.get("task")
        task = task_from(custom) if custom else TASKS.get(record.get("dataset_name", ""))
        if task is None:
            return None
        known = {entry.name for entry in fields(cls)} & set(record)
        return cls(**{name: record[name] for name in known} | {"folder": folder, "task": task})

    @classmethod
    def open(cls, checkpoint_dir: Path | str, name: str, data_path: str | None = None) -> Self:
        """Run of this name. Raises Refused if it is missing, half-written or another task's.

        data_path: folder, file or hub id of its data, if they have moved since training.
        """
        checkpoint_dir = Path(checkpoint_dir)
        folder = checkpoint_dir / name
        if name not in TASKS:
            check_name(name)
        run = cls.read(folder)
        if run is None:
            if name not in TASKS and not (folder / "run.json").exists():
                runs = sorted(place.parent.name for place in checkpoint_dir.glob("*/run.json"))
                raise Refused(
                    f"in {checkpoint_dir.resolve()} there is no run of this name "
                    f"(--checkpoint_dir names another folder): {unknown_task(name, runs)}; "
                    "train.py makes one from custom rows (--dataset_path, --text_columns, "
                    "--label_column)"
                )
            if is_external(folder):
                raise Refused(f"{folder} holds a model that is no run of train.py (no run.json)")
            fault = "is damaged" if (folder / "run.json").exists() else "is missing"
            if (folder / MARKER).exists():
                fault = "is half-written"
        elif run.dataset_name != name:
            raise Refused(
                f"the run in {folder} was trained on {run.dataset_name}, not {name}; call its "
                f"folder {run.dataset_name}, in another --checkpoint_dir, or train {name} elsewhere"
            )
        elif run.num_labels != run.task.num_labels:
            fault = f"has {run.num_labels} labels, {name} {run.task.num_labels}"
        elif not run.intact():
            fault = "is damaged (a file is missing or changed since training)"
        else:
            return replace(run, data_path=data_path)
        command = run.command if run else command_of("train.py", name, checkpoint_dir)
        raise Refused(f"the checkpoint {folder} {fault}; run: {command}")

    @property
    def command(self) -> str:
        """Command that trains the run, or adopts it, once more."""
        command = command_of("train.py", self.dataset_name, self.folder.parent)
        if self.adopted is None:
            return command
        command += f" --adopt {shlex.quote(self.adopted['from'])}"
        if order := self.adopted.get("label_order"):
            command += f" --label_order {shlex.join(order)}"
        return command

    def tell_doubts(self) -> None:
        """Says on standard error what its training left to doubt; of a launch one process does."""
        if os.environ.get("RANK", "0") == "0":
            for sentence in self.doubts:
                print(printable(sentence), file=sys.stderr)

    def intact(self) -> bool:
        """Whether all files of the checkpoint are there, unchanged since training."""
        return intact(self.folder, self.files)

    def differences(self, record: dict) -> list[str]:
        """Parts in which this run and a record of run.json differ, seed and step left out."""
        other = {"share": 1.0, "new_head": False} | record
        return [part for part in SAME_FOR_MEMBERS if getattr(self, part) != other.get(part)]

    def has_kept(self, checkpoint: Run) -> bool:
        """Whether the training that ended in this run left the checkpoint on its way."""
        return self.kept.get(str(checkpoint.step)) == checkpoint.weights

    def rows(self, max_queries: int, first_query: int = 0) -> tuple[GlueDataset, GlueDataset]:
        """Training rows and queries of the run, tokenized as in training.

        Queries are at most max_queries validation rows, from first_query on. Raises Refused if the
        data are not those of training any more.
        """
        from pipeline import get_glue_dataset

        name = self.dataset_name
        shared = self.reading() | {"tables": self.tables()}
        train = get_glue_dataset(name, "train", max_samples=self.max_train_samples, **shared)
        if train.fingerprint() != self.train_rows:
            path = self.data_path or self.folders.get("dataset_path") or name
            raise Refused(
                f"the training rows in {path} are not those of {self.folder}"
                f"{self.first_difference(train)}; bring those back, name them with --dataset_path, "
                "or train again"
            )
        valid = get_glue_dataset(name, "valid", max_samples=first_query + max_queries, **shared)
        drawn = (self.data or {}).get("validation_rows")
        if drawn is not None:
            rows_of_file = np.arange(len(train) + len(drawn))
            train.file_rows = np.setdiff1d(rows_of_file, drawn)[: len(train)]
            valid.file_rows = np.array(drawn[: len(valid)])
        return train, valid.window(first_query, max_queries)

    def first_difference(self, train: Rows) -> str:
        """The first of these training rows that is not as it was when rows were scored, in words;
        empty where none were, or if texts and labels are the same.
        """
        from attribution.data.rows import KeptRows, is_kept

        for place in sorted(self.folder.glob("influence/scores/*/answers.json")):
            record = read_json(place)
            if record is None or not is_kept(self.folder / ROWS / record["rows"]["train"]):
                continue
            was = KeptRows(self.folder / ROWS / record["rows"]["train"], self.task)
            for row in range(min(len(was), len(train))):
                then, now = (
                    f"{printable(one.text(row))[:60]!r} [{printable(one.label_name(row))}]"
                    for one in (was, train)
                )
                if then != now:
                    number = was.file_row(row)
                    where = row if number is None else f"{number} of the file"
                    return f": row {where} was {then} and is {now}"
            if len(was) != len(train):
                return f": they are {len(train):,}, and were {len(was):,}"
        return ""

    def data_files(self) -> dict[str, str | None]:
        """SHA-256 of the custom rows by the argument that named them, of a folder that of all its
        files; None: they are gone. Without those of a hub.
        """
        found: dict[str, str | None] = {}
        for name in ("dataset_path", "validation_split") if self.data else ():
            if self.folders.get(name) is None:
                continue
            try:
                place = Path(str(self.find_again(name)))
                files = [place] if place.is_file() else sorted(place.rglob("*"))
                digests = [sha256_of(path) for path in files if path.is_file()]
            except (Refused, OSError):
                digests = []
            all_files = hashlib.sha256("".join(digests).encode()).hexdigest()
            found[name] = all_files if digests else None
        return found

    def reading(self) -> dict:
        """Keyword arguments of `get_glue_dataset` that read texts as in training."""
        from transformers import AutoTokenizer

        return {
            "tokenizer": AutoTokenizer.from_pretrained(self.folder),
            "max_length": self.max_length,
            "inputs": self.inputs,
            "task": self.task,
        }

    def tables(self) -> datasets.DatasetDict:
        """Raw tables of the run: split -> table."""
        from attribution.data.custom import CustomData, open_custom
        from pipeline import load_tables

        path = self.find_again("dataset_path")
        if self.data is None:
            return load_tables(self.dataset_name, path)
        given = self.data["asked"]
        data = CustomData(**given | {"path": path, "text_columns": tuple(given["text_columns"])})
        if self.validation_split is not None:
            data = replace(data, validation_split=self.find_again("validation_split"))
        drawn = self.data["validation_rows"]
        return open_custom(data, self.dataset_name, self.task, drawn).splits

    def model(self, device: torch.device | str = "cpu") -> torch.nn.Module:
        """Trained model, float32, on the device."""
        import torch
        from transformers import AutoModelForSequenceClassification

        model = AutoModelForSequenceClassification.from_pretrained(self.folder, dtype=torch.float32)
        return model.to(device)

    def find_again(self, name: str) -> str | None:
        """Folder, file or hub id that training was given as the argument `name`, one of OUTSIDE.

        A path is tried where it was, then from the current folder; of the validation rows also
        beside the data set that is named now. Raises Refused if it is gone.
        """
        if name == "dataset_path" and self.data_path is not None:
            return self.data_path
        given = getattr(self, name)
        folder = self.folders.get(name)
        if folder is None:
            return given
        places = [folder, str(given)]
        remedy = f"name it with --{name}"
        if name == "validation_split":
            if self.data_path is not None:
                places.append(str(Path(self.data_path).parent / Path(folder).name))
            remedy = "put it beside the data set, and name that with --dataset_path"
        for place in places:
            if Path(place).exists():
                return place
        raise Refused(
            f"{OUTSIDE[name]} of the run's training is not in {folder} any more; {remedy}"
        )

    @property
    def training_seconds(self) -> float:
        """Seconds of its training; 0: not known."""
        return sum(epoch["seconds"] for epoch in self.epochs)

    @property
    def retraining_seconds(self) -> float | None:
        """Seconds of a retrain on all rows, by the fastest retrains so far, of which several may
        have run at a time; None before any of this training.
        """
        known = read_json(self.folder / RETRAINING_TIME) or {}
        return known["seconds"] if known.get("weights") == self.weights else None

    @property
    def trained(self) -> dict[str, str]:
        """Named SHA-256 of its weights and training rows."""
        return {"weights": self.weights, "training rows": self.train_rows}

    def fingerprints(self, queries: GlueDataset) -> dict[str, str]:
        """Named SHA-256 of everything behind a result: weights, start, rows, queries."""
        found = self.trained
        if self.start:
            found["start"] = self.start
        return found | {"query rows": queries.fingerprint()}

    def start_parts(self) -> dict:
        """Named parts of the model before training: weights, layers (None: all), new head."""
        return {"weights": self.start, "layers": self.num_hidden_layers, "head": self.new_head}


# --- saving ---------------------------------------------------------------------------------------


def check_place(folder: Path, start: str | None, flag: str = "--model_name_or_path") -> None:
    """Raises Refused for a folder that cannot take a run: not writable, that of the start model, or
    one with an external model.

    start: the start model as given with the flag; None for the default.
    """
    if start is not None and Path(start).is_dir() and Path(start).resolve() == folder.resolve():
        raise Refused(
            f"{flag} {start} is where the run would be saved; name another --checkpoint_dir"
        )
    if is_external(folder):
        raise Refused(
            f"{folder} holds a model that is no run of train.py, so nothing is written there; move "
            "it away"
        )
    place = folder.absolute()
    while not os.path.exists(place):  # a training that fails early leaves no folder
        place = place.parent
    check_writable(place)


def held(folder: Path, parts: list[str]) -> Refused:
    """Refusal to replace the run in the folder. parts: names of those that it has otherwise."""
    named = describe_parts([part.replace("_", " ") for part in parts])
    return Refused(
        f"{folder} holds a run with {named}; pass --overwrite to replace it, or use another "
        "--checkpoint_dir"
    )


def is_external(folder: Path) -> bool:
    """Whether the folder holds a model that train.py did not save."""
    saved = (folder / "run.json").exists() or (folder / MARKER).exists()  # perhaps damaged
    return not saved and any(any(folder.glob(pattern)) for pattern in MODEL_FILES)


def absolute(name: str | None) -> str | None:
    """Absolute path of a folder or file as given; None for a hub id or None."""
    return str(Path(name).resolve()) if name is not None and Path(name).exists() else None
