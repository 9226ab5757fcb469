"""A run: the folder that train.py leaves and that every other script opens.

It holds model and tokenizer as `save_pretrained` writes them, and run.json: task, data, start,
recipe, checksums. While a run is being saved a marker stands in its folder; a model without
run.json and marker is somebody else's.
"""

import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
from transformers import AutoTokenizer

from attribution.data.dataset import GlueDataset
from attribution.data.own import OwnData, encode, open_own
from attribution.data.task import GlueTask, check_name, task_from
from attribution.files import (
    Refused,
    check_writable,
    checksums,
    fingerprint_of_tensors,
    intact,
    read_json,
    write_bytes,
    write_json,
)
from attribution.training.corruption import corrupt
from pipeline import TASKS, get_glue_dataset, get_task, load_tables, unknown_task

MARKER = ".unfinished"
MODEL_FILES = ("config.json", "*.safetensors", "*.bin", "*.pt", "*.h5")


# --- saving ---------------------------------------------------------------------------------------


def save_run(folder: Path, model, tokenizer, record: dict) -> None:
    """Saves model and tokenizer beside the run, moves them in, and writes run.json last, with
    checksums.

    Without run.json, or with files that are not those it names, a folder does not count as a
    checkpoint. Raises Refused, and saves nothing, where a weight is not finite.
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
    write_json(
        folder / "run.json",
        record | {"files": files, "weights": fingerprint_of_tensors(model.state_dict())},
    )
    (folder / MARKER).unlink()


def add_to_run(folder: Path, **parts) -> None:
    """Adds to, or replaces, parts of the folder's run.json."""
    write_json(folder / "run.json", (read_json(folder / "run.json") or {}) | parts)


def refuse_replacing(folder: Path, model, overwrite: bool) -> None:
    """Raises Refused where the folder holds a run with other weights than the model's, unless it
    may be replaced.
    """
    run = read_json(folder / "run.json")
    if (
        run is not None
        and not overwrite
        and run.get("weights") != fingerprint_of_tensors(model.state_dict())
    ):
        raise Refused(
            f"{folder} holds another run; pass --overwrite to replace it, or use another "
            "--checkpoint_dir"
        )


def check_place(folder: Path, start: str | None, flag: str = "--model_name_or_path") -> None:
    """Raises Refused for a folder that holds a model which is not a run, or the start, or that
    cannot be written to.

    start: the start model as given with the flag; None for the default.
    """
    if start is not None and Path(start).is_dir() and Path(start).resolve() == folder.resolve():
        raise Refused(
            f"{flag} {start} is where the run would be saved; name another --checkpoint_dir"
        )
    if is_foreign(folder):
        raise Refused(
            f"{folder} holds a model that is no run of train.py, so nothing is written there; move "
            "it away"
        )
    check_writable(folder)


def is_foreign(folder: Path) -> bool:
    """Whether the folder holds a model that train.py did not save."""
    if (folder / "run.json").exists() or (folder / MARKER).exists():  # the former may be damaged
        return False
    return any(True for pattern in MODEL_FILES for _ in folder.glob(pattern))


# --- opening --------------------------------------------------------------------------------------


def open_run(checkpoint_dir: Path, data_name: str) -> tuple[Path, dict]:
    """The run's folder and its run.json. Raises Refused where it is missing, half-written or
    another task's.
    """
    folder = checkpoint_dir / data_name
    if data_name not in TASKS:
        check_name(data_name)
    run = read_json(folder / "run.json")
    if run is None and data_name not in TASKS:
        raise Refused(
            f"{unknown_task(data_name)}, and in {checkpoint_dir} there is no run of this name "
            "(train.py makes one from rows of your own: --dataset_path, --text_columns, "
            "--label_column)"
        )
    where = shlex.quote(str(checkpoint_dir))
    command = f"run: python train.py --dataset_name {data_name} --checkpoint_dir {where}"
    if run is None:
        if is_foreign(folder):
            raise Refused(
                f"{folder} holds a model that is no run of train.py (there is no run.json)"
            )
        there = (folder / "run.json").exists()
        state = (
            "is half-written"
            if (folder / MARKER).exists()
            else "is damaged"
            if there
            else "is missing"
        )
        raise Refused(f"the checkpoint {folder} {state}; {command}")
    if run.get("dataset_name") != data_name:
        raise Refused(
            f"the checkpoint {folder} was trained on {run.get('dataset_name')}, not {data_name}; "
            f"{command}"
        )
    if (labels := run.get("num_labels")) != (count := task_of(run).num_labels):
        raise Refused(
            f"the checkpoint {folder} has {labels} labels, {data_name} {count}; {command}"
        )
    if not intact(folder, run.get("files")):
        raise Refused(
            f"the checkpoint {folder} is damaged (a file is missing or changed since training); "
            f"{command}"
        )
    return folder, run


def open_data(
    folder: Path, run: dict, dataset_path: str | None, max_queries: int, first_query: int = 0
) -> tuple[GlueDataset, GlueDataset]:
    """(training rows, query rows) of the run, tokenized as in training.

    dataset_path: where the data are now; None for where training found them. Queries are so many
    validation rows, from the first one on.
    """
    name = run["dataset_name"]
    shared = reading(folder, run) | {"tables": open_tables_of(run, dataset_path)}
    train = get_glue_dataset(name, "train", max_samples=run["max_train_samples"], **shared)
    if train.fingerprint() != run["train_rows"]:
        raise Refused(
            f"the training rows are not those of {folder}; give the --dataset_path of training, or "
            "train again"
        )
    if (drawn := run.get("data", {}).get("validation_rows")) is not None:
        train.file_rows = np.setdiff1d(np.arange(len(train) + len(drawn)), drawn)[: len(train)]
    known = get_glue_dataset(name, "valid", max_samples=first_query + max_queries, **shared)
    return train, known.window(first_query, max_queries)


def fingerprints_of(run: dict, queries: GlueDataset) -> dict[str, str]:
    """What a result of the run was made from: its weights, its start, its rows and the queries,
    each as SHA-256.
    """
    found = {
        "weights": run["weights"],
        "start": run.get("start"),
        "training rows": run["train_rows"],
    }
    return {name: value for name, value in found.items() if value} | {
        "query rows": queries.fingerprint()
    }


def start_of(run: dict) -> dict:
    """What the run was trained from: weights as SHA-256 (earlier runs: None), layers (None: all), a
    new head or not.
    """
    return {
        "weights": run.get("start"),
        "layers": run.get("num_hidden_layers"),
        "head": bool(run.get("new_head")),
    }


def task_of(run: dict) -> GlueTask:
    """The run's task: its own for rows of one's own, else that of TASKS."""
    return task_from(run["task"]) if run.get("task") else get_task(run["dataset_name"])


def reading(folder: Path, run: dict) -> dict:
    """How the run reads texts: the keyword arguments of `get_glue_dataset` beside the tables."""
    tokenizer, inputs = AutoTokenizer.from_pretrained(folder), run.get("inputs")
    return {
        "tokenizer": tokenizer,
        "max_length": run["max_length"],
        "inputs": inputs,
        "task": task_of(run),
    }


def open_tables_of(run: dict, dataset_path: str | None) -> datasets.DatasetDict:
    """The run's tables with its labels, split name -> table. dataset_path: where the data are now;
    None: as then.
    """
    tables = open_clean_tables(run, dataset_path)
    return corrupt(tables, task_of(run), run["corrupted"]) if run.get("corrupted") else tables


def open_clean_tables(run: dict, dataset_path: str | None) -> datasets.DatasetDict:
    """The run's tables as they are on the disk or the hub."""
    path = dataset_path or find_again(run, "dataset_path", "the data set")
    if (stored := run.get("data")) is None:
        return load_tables(run["dataset_name"], path)
    data = OwnData(
        **stored["asked"] | {"path": path, "text_columns": tuple(stored["asked"]["text_columns"])}
    )
    if "validation_split" in run["folders"] and run["folders"]["validation_split"] is not None:
        data = replace(
            data,
            validation_split=find_again(run, "validation_split", "the file of validation rows"),
        )
    tables, _ = open_own(data, run["dataset_name"], stored["validation_rows"])
    return encode(tables, task_of(run))


# --- where things were ----------------------------------------------------------------------------


def absolute(name: str | None) -> str | None:
    """The absolute path of a folder or file as given; None for a hub id or nothing."""
    return str(Path(name).resolve()) if name is not None and Path(name).exists() else None


def find_again(run: dict, key: str, what: str) -> str | None:
    """The folder, file or hub id that training was given as `key`: where it was, else as given,
    from here.

    Raises Refused for one that is not there any more.
    """
    name, folder = run.get(key), run.get("folders", {}).get(key)
    if folder is None:
        return name
    for place in (folder, str(name)):
        if Path(place).exists():
            return place
    raise Refused(f"{what} of the run's training is not in {folder} any more; name it with --{key}")
