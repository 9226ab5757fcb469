"""A run: the folder that train.py leaves and that every other script opens.

It holds model and tokenizer as `save_pretrained` writes them, and run.json: task, data, start, recipe, checksums.
"""

import shutil
from pathlib import Path

from transformers import AutoTokenizer

from attribution.files import Refused, checksums, fingerprint_of_tensors, intact, read_json, write_json
from attribution.rows import GlueDataset
from pipeline import get_glue_dataset, get_task, load_tables


def save_run(folder: Path, model, tokenizer, record: dict) -> None:
    """Saves model and tokenizer beside the run, moves them in, and writes run.json last, with checksums.

    Without run.json, or with files that are not those it names, a folder does not count as a checkpoint.
    """
    saving = folder / ".saving"
    shutil.rmtree(saving, ignore_errors=True)
    try:
        model.save_pretrained(saving)
        tokenizer.save_pretrained(saving)
        files = checksums(path for path in saving.iterdir() if path.is_file())
        (folder / "run.json").unlink(missing_ok=True)
        for name in files:
            (saving / name).replace(folder / name)
    finally:
        shutil.rmtree(saving, ignore_errors=True)
    write_json(folder / "run.json", record | {"files": files, "weights": fingerprint_of_tensors(model.state_dict())})


def open_run(checkpoint_dir: Path, data_name: str) -> tuple[Path, dict]:
    """The run's folder and its run.json. Raises Refused where it is missing, half-written or another task's."""
    task, folder = get_task(data_name), checkpoint_dir / data_name
    run = read_json(folder / "run.json")
    command = f"run: python train.py --dataset_name {data_name} --checkpoint_dir {checkpoint_dir}"
    if run is None:
        state = "is half-written" if (folder / "model.safetensors").exists() else "is missing"
        raise Refused(f"the checkpoint {folder} {state}; {command}")
    if run.get("dataset_name") != data_name:
        raise Refused(f"the checkpoint {folder} was trained on {run.get('dataset_name')}, not {data_name}; {command}")
    if (labels := run.get("num_labels")) != task.num_labels:
        raise Refused(f"the checkpoint {folder} has {labels} labels, {data_name} {task.num_labels}; {command}")
    if not intact(folder, run.get("files")):
        raise Refused(f"the checkpoint {folder} is damaged (a file is missing or changed since training); {command}")
    return folder, run


def open_data(folder: Path, run: dict, dataset_path: str | None, max_queries: int) -> tuple[GlueDataset, GlueDataset]:
    """(training rows, query rows) of the run, tokenized as in training."""
    name = run["dataset_name"]
    shared = {
        "tokenizer": AutoTokenizer.from_pretrained(folder),
        "max_length": run["max_length"],
        "tables": load_tables(name, dataset_path or run["dataset_path"]),
    }
    train = get_glue_dataset(name, "train", max_samples=run["max_train_samples"], **shared)
    if train.fingerprint() != run["train_rows"]:
        raise Refused(
            f"the training rows are not those of {folder}; give the --dataset_path of training, or train again"
        )
    return train, get_glue_dataset(name, "valid", max_samples=max_queries, **shared)
