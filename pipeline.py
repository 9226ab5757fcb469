"""GLUE tasks, data sets, batches, BERT, and the margin, for all scripts.

    from pipeline import construct_bert, get_glue_dataset
    train = get_glue_dataset("rte", "train")                      # from the hub: nyu-mll/glue
    train = get_glue_dataset("rte", "train", dataset_path="DIR")  # DIR/rte/train-*.parquet
    model = construct_bert("rte")

Splits are `train`, `eval_train` (the training rows again, for evaluating on them) and `valid`.
Symbols: B examples, T tokens, C classes.
"""

import warnings
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import torch
import transformers

from attribution import models
from attribution.data import demo
from attribution.data.dataset import GlueDataset, tokenize
from attribution.data.tables import check_texts, find_splits, labels_of, read_splits
from attribution.data.tasks import MAX_LENGTH, GlueTask, task_named
from attribution.files import Refused

DEFAULT_MODEL = "bert-base-cased"
DEFAULT_DATASET = "nyu-mll/glue"
DEMO_MODEL = Path(__file__).parent / "demo"


def quiet_libraries() -> None:
    """Turns off the progress bars of the libraries and their notes about new heads."""
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # its errors come back as exceptions
    huggingface_hub.utils.disable_progress_bars()
    huggingface_hub.logging.set_verbosity(huggingface_hub.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="kronfluence")


# --- data -----------------------------------------------------------------------------------------


def load_tables(data_name: str, dataset_path: str | None = None) -> datasets.DatasetDict:
    """Raw tables of the task, split name -> table.

    dataset_path: a folder or hub id that `datasets.load_dataset(path, task)` opens; None for the
    hub's `nyu-mll/glue` (for the demo, the embedded sentences). Raises Refused if it cannot be
    opened.
    """
    task = task_named(data_name)
    if data_name == "demo" and dataset_path is None:
        label = datasets.ClassLabel(names=demo.LABEL_NAMES)
        rows = demo.read_rows()
        tables = {split: datasets.Dataset.from_dict(columns) for split, columns in rows.items()}
        return datasets.DatasetDict(tables).cast_column("label", label)
    splits = find_splits(dataset_path or DEFAULT_DATASET, data_name)
    return read_splits(splits, task, data_name)


def resolve_model(model_name_or_path: str | None, data_name: str) -> str:
    """Folder or hub id of the model as given; by default `bert-base-cased`, for the demo the small
    BERT in `demo/`.
    """
    return str(model_name_or_path or (DEMO_MODEL if data_name == "demo" else DEFAULT_MODEL))


def get_tokenizer(model_name_or_path: str | None, data_name: str, flag: str = models.FLAG):
    """Fast tokenizer of the model. flag: the argument that named the model."""
    return models.open_tokenizer(resolve_model(model_name_or_path, data_name), flag)


def get_glue_dataset(
    data_name: str,
    split: str,
    indices: list[int] | None = None,
    *,
    tokenizer=None,
    dataset_path: str | None = None,
    max_length: int = MAX_LENGTH,
    max_samples: int | None = None,
    tables: datasets.DatasetDict | None = None,
    inputs: list[str] | None = None,
    task: GlueTask | None = None,
    cache: bool = True,
) -> GlueDataset:
    """One split of a task, tokenized and cut to max_length tokens, unpadded.

    split: train, eval_train, valid, or the name of one of several validation splits. indices: rows
    to keep, in that order. max_samples: number of rows to keep, from the first on. tables: from
    `load_tables`, to read them once. inputs: outputs of the tokenizer that the model reads (all).
    task: of a data set that is not in TASKS. cache: whether tokens of many rows may be kept on the
    disk. Raises Refused for an unknown split, for one without rows, and for rows that cannot give a
    right answer (see `tables`).
    """
    task = task or task_named(data_name)
    names = {"train": "train", "eval_train": "train", "valid": task.validation[0]}
    names |= {name: name for name in task.validation}
    if split not in names:
        raise Refused(f"unknown split {split!r}; known are {', '.join(names)}")
    table = (tables or load_tables(data_name, dataset_path))[names[split]]
    if indices is not None:
        table = table.select(indices)
    if max_samples is not None:
        table = table.select(range(min(max_samples, len(table))))
    where = f"the split {names[split]!r} of {data_name}"
    if len(table) == 0:
        raise Refused(f"{where} has no rows")
    labels = labels_of(table, task, where)
    check_texts(table, task.columns, where)
    tokenizer = tokenizer or get_tokenizer(None, data_name)
    fewest = tokenizer.num_special_tokens_to_add(pair=len(task.columns) == 2) + len(task.columns)
    if max_length < fewest:
        raise Refused(
            f"--max_length {max_length} leaves no room for text; it takes at least {fewest}"
        )
    encoded = tokenize(table, task.columns, tokenizer, max_length, cache)
    data = GlueDataset(table, task, labels, {name: encoded[name] for name in inputs or encoded})
    if data_name == "demo" and "flipped" in table.column_names:  # embedded, not of a file
        data.truth = np.array(table["flipped"])
    return data


# --- the model ------------------------------------------------------------------------------------


def construct_bert(
    data_name: str,
    model_name_or_path: str | None = None,
    seed: int = 0,
    num_hidden_layers: int | None = None,
    new_head: bool | None = False,
    task: GlueTask | None = None,
) -> torch.nn.Module:
    """Encoder with a head for the task, in float32; a head that the folder lacks is drawn from
    `seed`.

    model_name_or_path: folder or hub id, or None (see `resolve_model`). num_hidden_layers: number
    of layers to keep, from the first on. new_head: see `models.open_model`. task: of a data set
    that is not in TASKS. `model.drawn` names the parameters that were drawn. The random state of
    the process is left as it was. Raises Refused as `models.open_model` does.
    """
    with torch.random.fork_rng(devices=[]):  # nothing is drawn on a GPU
        torch.manual_seed(seed)
        name = resolve_model(model_name_or_path, data_name)
        return models.open_model(name, task or task_named(data_name), num_hidden_layers, new_head)


def model_inputs(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Part of a batch that the model reads."""
    return {name: value for name, value in batch.items() if name not in ("labels", "row")}


def compute_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Summed training loss: cross-entropy in nats for logits (B, C), squared error for logits (B,
    1).
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if logits.shape[-1] == 1:
        return (logits.squeeze(-1) - labels.to(logits.dtype)).square().sum()
    return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")


def compute_margin(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Margin (B,) of logits (B, C): correct logit minus log-sum-exp of the others, in natural
    units.

    The output function of TRAK (arXiv:2303.14186, section 2, for classification: log p / (1 - p));
    for regression (C = 1) minus the squared error. Higher is better in both. If the label of a
    regression is NaN, the output itself is measured.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if logits.shape[-1] == 1:
        output = logits.squeeze(-1)
        labels = labels.to(logits.dtype)
        return torch.where(labels.isnan(), output, -(output - labels.nan_to_num()).square())
    correct = logits.gather(-1, labels[:, None]).squeeze(-1)
    others = logits.scatter(-1, labels[:, None], -torch.inf)
    return correct - others.logsumexp(dim=-1)


def compute_correct(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(B,) bool: whether the label's logit is the largest of logits (B, C), and finite; False for
    regression.

    Only with two classes is that the same as a margin above 0, which says p > 1/2.
    """
    if logits.shape[-1] == 1:
        return torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    return (logits.argmax(-1) == labels) & logits.isfinite().all(-1)
