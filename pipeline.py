"""GLUE tasks, data sets, batches, BERT, and the margin: what the scripts share.

    from pipeline import construct_bert, get_dataloader, get_glue_dataset
    train = get_glue_dataset("rte", "train")                       # from the hub: nyu-mll/glue
    train = get_glue_dataset("rte", "train", dataset_path="DIR")   # from a folder: DIR/rte/train-*.parquet
    model = construct_bert("rte")

Splits are `train`, `eval_train` (the training rows again, for evaluating on them) and `valid`.
Symbols: B examples, T tokens, C classes.
"""

import hashlib
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import torch
import transformers
from kronfluence.task import Task
from scipy.special import ndtri
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from attribution import demo
from attribution.hub import open_asset
from attribution.store import Refused, fingerprint_of_tensors

DEFAULT_MODEL = "bert-base-cased"
DEFAULT_DATASET = "nyu-mll/glue"
DEMO_MODEL = Path(__file__).parent / "demo"
MAX_LENGTH = 128


@dataclass(frozen=True)
class GlueTask:
    """What one data set asks of the scripts; everything else follows from this."""

    columns: tuple[str, ...]  # the text columns, in the order in which BERT reads them
    num_labels: int  # 1 for regression
    metrics: tuple[str, ...] = ("accuracy",)
    validation: tuple[str, ...] = ("validation",)
    max_train_samples: int | None = None
    recipe: dict = field(default_factory=dict)  # training arguments that differ from train.py's defaults

    @property
    def regression(self) -> bool:
        """Whether labels are numbers instead of classes."""
        return self.num_labels == 1


TASKS = {
    "cola": GlueTask(("sentence",), 2, ("matthews_correlation",)),
    "sst2": GlueTask(("sentence",), 2),
    "mrpc": GlueTask(("sentence1", "sentence2"), 2, ("accuracy", "f1")),
    "qqp": GlueTask(("question1", "question2"), 2, ("accuracy", "f1")),
    "stsb": GlueTask(("sentence1", "sentence2"), 1, ("pearson", "spearmanr")),
    "mnli": GlueTask(
        ("premise", "hypothesis"), 3, validation=("validation_matched", "validation_mismatched")
    ),
    "qnli": GlueTask(("question", "sentence"), 2),
    # The published study (arXiv:2405.12186) scores the first 2,432 training rows.
    "rte": GlueTask(("sentence1", "sentence2"), 2, max_train_samples=2432),
    "wnli": GlueTask(("sentence1", "sentence2"), 2),
    "demo": GlueTask(("sentence",), 2, recipe={"learning_rate": 3e-4, "num_train_epochs": 8, "freeze_embeddings": True}),
}  # fmt: skip


class GlueDataset(torch.utils.data.Dataset):
    """Tokenized rows in memory, and the table that they came from.

    An item is (this data set, row number): what `collate` needs, whatever order batches are formed in.
    """

    def __init__(self, table: datasets.Dataset, task: GlueTask, encoded: dict[str, list]) -> None:
        self.table = table  # datasets.Dataset: text columns, `label`, and on the demo the recorded truth
        self.task = task
        self.lengths = np.array([len(ids) for ids in encoded["input_ids"]], dtype=np.int64)
        self.labels = np.asarray(table["label"], dtype=np.float32 if task.regression else np.int64)
        self.inputs = {}  # name -> int32 tensor (N, longest row), padded with 0, which the mask hides
        for name, values in encoded.items():
            padded = torch.zeros(len(values), int(self.lengths.max()), dtype=torch.int32)
            for i, value in enumerate(values):
                padded[i, : len(value)] = torch.tensor(value, dtype=torch.int32)
            self.inputs[name] = padded

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> tuple["GlueDataset", int]:
        return self, int(index)

    def batch(self, rows, pad_to: int | None = None) -> dict[str, torch.Tensor]:
        """Row numbers -> batch: `input_ids`, `attention_mask`, `token_type_ids` (B, T), `labels`, `row` (B,).

        T is the longest of these rows, or pad_to.
        """
        rows = torch.as_tensor(rows, dtype=torch.long)
        lengths = torch.from_numpy(self.lengths)[rows]
        longest = int(lengths.max())
        extra = (pad_to or longest) - longest
        batch = {
            name: torch.nn.functional.pad(values[rows, :longest].long(), (0, extra))
            for name, values in self.inputs.items()
        }
        batch["attention_mask"] = (torch.arange(longest + extra) < lengths[:, None]).long()
        return batch | {"labels": torch.from_numpy(self.labels)[rows], "row": rows}

    def text(self, index: int) -> str:
        """The row's text columns, joined by ' | '."""
        row = self.table[int(index)]
        return " | ".join(row[column] for column in self.task.columns)

    def texts(self) -> list[str]:
        """`text` of every row."""
        return [" | ".join(parts) for parts in zip(*(self.table[column] for column in self.task.columns), strict=True)]

    def label_name(self, index: int) -> str:
        """The class name as the data set declares it, or the similarity for regression."""
        label = self.table[int(index)]["label"]
        if self.task.regression:
            return f"{label:.2f}"
        feature = self.table.features["label"]
        return feature.int2str(label) if isinstance(feature, datasets.ClassLabel) else str(label)

    def fingerprint(self) -> str:
        """SHA-256 over token numbers, segment numbers, lengths, labels and order."""
        tensors = {"labels": torch.from_numpy(self.labels), "lengths": torch.from_numpy(self.lengths)}
        return fingerprint_of_tensors(tensors | self.inputs)


def collate(items: list[tuple[GlueDataset, int]], pad_to: int | None = None) -> dict[str, torch.Tensor]:
    """Items of one data set -> `GlueDataset.batch` of their rows."""
    return items[0][0].batch([row for _, row in items], pad_to)


def quiet_libraries() -> None:
    """Leaves the screen to the scripts: no bars and no notes about new heads from the libraries."""
    datasets.disable_progress_bars()
    huggingface_hub.utils.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="kronfluence")


def get_task(data_name: str) -> GlueTask:
    """The task's entry in the table. Raises Refused for an unknown name."""
    if data_name not in TASKS:
        raise Refused(f"unknown task {data_name!r}; known are {', '.join(TASKS)}")
    return TASKS[data_name]


# --- data --------------------------------------------------------------------------------------------


def load_tables(data_name: str, dataset_path: str | None = None) -> datasets.DatasetDict:
    """The task's raw tables, split name -> table.

    dataset_path: a folder or hub id that `datasets.load_dataset(path, task)` opens; None means the
    hub's `nyu-mll/glue` (for the demo, the embedded sentences). Raises Refused where it cannot be opened.
    """
    task = get_task(data_name)
    if data_name == "demo" and dataset_path is None:
        label = datasets.ClassLabel(names=demo.LABEL_NAMES)
        return datasets.DatasetDict(
            {
                split: datasets.Dataset.from_dict(columns).cast_column("label", label)
                for split, columns in demo.make_rows().items()
            }
        )
    path = dataset_path or DEFAULT_DATASET
    if dataset_path is not None and not Path(path).is_dir() and path.count("/") != 1:
        raise Refused(f"--dataset_path {path!r} is neither a folder nor a hub id of the form owner/name")
    tables = open_asset(path, "--dataset_path", "data set", lambda: datasets.load_dataset(path, data_name))
    for split in ("train", task.validation[0]):
        if split not in tables:
            raise Refused(f"the data set {path!r} has no split {split!r} for {data_name}; check --dataset_path")
        missing = [name for name in (*task.columns, "label") if name not in tables[split].column_names]
        if missing:
            raise Refused(f"the data set {path!r} has no column {missing[0]!r}, which {data_name} needs")
    return tables


def resolve_model(model_name_or_path: str | None, data_name: str) -> str:
    """The given folder or hub id, else `bert-base-cased`, else, for the demo, the small BERT in `demo/`."""
    return str(model_name_or_path or (DEMO_MODEL if data_name == "demo" else DEFAULT_MODEL))


def get_tokenizer(model_name_or_path: str | None, data_name: str):
    """The fast tokenizer that belongs to the model."""
    name = resolve_model(model_name_or_path, data_name)
    return open_asset(name, "--model_name_or_path", "tokenizer", lambda: AutoTokenizer.from_pretrained(name))


def get_glue_dataset(
    data_name: str, split: str, indices: list[int] | None = None, *, tokenizer=None, dataset_path: str | None = None,
    max_length: int = MAX_LENGTH, max_samples: int | None = None, tables: datasets.DatasetDict | None = None,
) -> GlueDataset:  # fmt: skip
    """One split of a task, tokenized and cut to max_length tokens, unpadded.

    split: train, eval_train, valid, or the name of one of several validation splits. indices: rows to
    keep, in that order. max_samples: keep the first so many rows. tables: from `load_tables`, to read
    them once. Raises Refused for an unknown split or one without rows.
    """
    task = get_task(data_name)
    names = {"train": "train", "eval_train": "train", "valid": task.validation[0]}
    names |= {name: name for name in task.validation}
    if split not in names:
        raise Refused(f"unknown split {split!r}; known are {', '.join(names)}")
    table = (tables or load_tables(data_name, dataset_path))[names[split]]
    if indices is not None:
        table = table.select(indices)
    if max_samples is not None:
        table = table.select(range(min(max_samples, len(table))))
    if len(table) == 0:
        raise Refused(f"the split {names[split]!r} of {data_name} has no rows")
    tokenizer = tokenizer or get_tokenizer(None, data_name)
    texts = [list(table[column]) for column in task.columns]
    encoded = tokenizer(*texts, truncation=True, max_length=max_length, return_attention_mask=False)
    return GlueDataset(table, task, dict(encoded))


def get_dataloader(
    data_name: str, batch_size: int, split: str, indices: list[int] | None = None, **dataset_arguments
) -> DataLoader:
    """Batches of one split in the order of its rows, each padded to its own longest row."""
    dataset = get_glue_dataset(data_name, split, indices, **dataset_arguments)
    return DataLoader(dataset, batch_size=batch_size, collate_fn=collate)


# --- the model ---------------------------------------------------------------------------------------


def construct_bert(
    data_name: str, model_name_or_path: str | None = None, seed: int = 0, num_hidden_layers: int | None = None
) -> torch.nn.Module:
    """A BERT for the task, in float32; a head that the folder lacks is drawn from `seed`.

    model_name_or_path: what `from_pretrained` opens, or None (see `resolve_model`). num_hidden_layers: keep
    only the first so many layers. The process's random state is left as it was. `model.drawn` names the
    parameters that the folder lacks.
    """
    task = get_task(data_name)
    name = resolve_model(model_name_or_path, data_name)

    def load():
        config = AutoConfig.from_pretrained(name, num_labels=task.num_labels)
        config.problem_type = "regression" if task.regression else "single_label_classification"
        if num_hidden_layers is not None:
            if not 1 <= num_hidden_layers <= config.num_hidden_layers:
                raise ValueError(f"it has {config.num_hidden_layers} layers, --num_hidden_layers is {num_hidden_layers}")
            config.num_hidden_layers = num_hidden_layers
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name, config=config, dtype=torch.float32, output_loading_info=True
        )
        model.drawn = frozenset(info["missing_keys"])
        return model

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return open_asset(name, "--model_name_or_path", "model", load)


def model_inputs(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The part of a batch that the model reads."""
    return {name: value for name, value in batch.items() if name not in ("labels", "row")}


def compute_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Summed training loss: cross-entropy in nats for logits (B, C), squared error for logits (B, 1)."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if logits.shape[-1] == 1:
        return (logits.squeeze(-1) - labels.to(logits.dtype)).square().sum()
    return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")


def compute_margin(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Margin (B,) of logits (B, C): correct logit minus log-sum-exp of the others, in natural units.

    The output function of TRAK (arXiv:2303.14186, section 2, for classification: log p / (1 - p)); for
    regression (C = 1) minus the squared error. Higher is better in both.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if logits.shape[-1] == 1:
        return -(logits.squeeze(-1) - labels.to(logits.dtype)).square()
    correct = logits.gather(-1, labels[:, None]).squeeze(-1)
    others = logits.scatter(-1, labels[:, None], -torch.inf)
    return correct - others.logsumexp(dim=-1)


def uniform_hash(seed: int, stream: str, rows: np.ndarray) -> np.ndarray:
    """A number in (0, 1), float64, for every row: a function of seed, stream and row number alone.

    splitmix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195, figure 17) applied to the row
    number, offset by a hash of seed and stream.
    """
    offset = int.from_bytes(hashlib.sha256(f"{seed}/{stream}".encode()).digest()[:8], "little")
    with np.errstate(over="ignore"):
        z = (rows.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(offset)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


class InfluenceTask(Task):
    """The task as kronfluence sees it: training loss, sampled labels, and what is measured on queries.

    The measurement is *minus* the summed margin, so that its gradient times the inverse Hessian times
    the gradient of the loss is positive for training rows that help.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.phase = "factors"  # sampled labels are a function of seed, phase and row

    def compute_train_loss(self, batch, model, sample: bool = False) -> torch.Tensor:
        """Summed loss of the batch; sample: with labels drawn from the model, for the Fisher matrix."""
        logits = model(**model_inputs(batch)).logits
        labels = self.sample_labels(batch["row"], logits) if sample else batch["labels"]
        return compute_loss(logits, labels)

    def compute_measurement(self, batch, model) -> torch.Tensor:
        """Minus the summed margin, so that a positive score means that the training row helps."""
        logits = model(**model_inputs(batch)).logits
        return -compute_margin(logits, batch["labels"]).sum()

    def get_attention_mask(self, batch) -> torch.Tensor:
        """(B, T), zero on padding, which input covariances leave out."""
        return batch["attention_mask"]

    @torch.no_grad()
    def sample_labels(self, rows: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Labels (B,) drawn from the model's own distribution, by inverting its distribution function.

        For regression a Gaussian around the output with variance 1/2: the squared error is then the
        negative log-likelihood, up to a constant.
        """
        uniform = uniform_hash(self.seed, self.phase, rows.cpu().numpy())
        if logits.shape[-1] == 1:
            noise = torch.from_numpy(ndtri(uniform) * 0.5**0.5).to(logits.device)
            return logits.squeeze(-1).double() + noise
        cumulative = logits.double().softmax(-1).cumsum(-1)
        draws = torch.from_numpy(uniform).to(logits.device)[:, None]
        return (draws > cumulative[:, :-1]).sum(-1)
