"""Tasks: columns, classes, metrics, and how the demo is trained."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from attribution.cli import did_you_mean
from attribution.data import demo
from attribution.files import Refused

SHARE = 0.1  # of the rows that are kept for validation where there is one split only
KINDS = ("classification", "regression")
# Name and version of `pipeline.compute_margin`, part of the fingerprints of scores and retrains:
# another margin gets another name, so that results stored before do not count.
MARGIN = "log-odds of the label; for regression minus the squared error (1)"
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class GlueTask:
    """Task of a data set: its columns, classes, metrics and splits."""

    columns: tuple[str, ...]  # of texts, in the order in which BERT reads them
    num_labels: int  # C classes; 1 for regression
    class_names: tuple[str, ...] = ()  # of the classes, in order
    bounds: tuple[float, float] | None = None  # smallest and largest label of a regression
    metrics: tuple[str, ...] = ("accuracy",)
    validation: tuple[str, ...] = ("validation",)
    max_train_samples: int | None = None
    # training arguments that differ from train.py's defaults
    recipe: dict = field(default_factory=dict)

    @property
    def regression(self) -> bool:
        """Whether labels are numbers instead of classes."""
        return self.num_labels == 1

    def name_of(self, label: int) -> str:
        """Name of a class, or its number where classes have no names."""
        return self.class_names[label] if self.class_names else str(label)


def task_from(record: dict) -> GlueTask:
    """Task of a record of run.json, in which tuples have become lists."""
    lists = {name: tuple(value) for name, value in record.items() if isinstance(value, list)}
    return GlueTask(**record | lists)


def check_name(name: str) -> None:
    """Raises Refused for a data set's name that cannot be the name of a folder: letters, digits,
    - _ . without a leading dot.
    """
    if not NAME.fullmatch(name):
        raise Refused(
            f"--dataset_name {name!r} must be letters, digits, '-', '_' and '.', without a leading "
            "dot"
        )


MAX_LENGTH = 128

ACCURACY_F1 = ("accuracy", "f1")

ENTAILMENT = ("entailment", "not_entailment")

# Class names in the order of GLUE's own labels (https://huggingface.co/datasets/nyu-mll/glue).
TASKS = {
    "cola": GlueTask(
        ("sentence",), 2, ("unacceptable", "acceptable"), metrics=("matthews_correlation",)
    ),
    "sst2": GlueTask(("sentence",), 2, ("negative", "positive")),
    "mrpc": GlueTask(
        ("sentence1", "sentence2"), 2, ("not_equivalent", "equivalent"), metrics=ACCURACY_F1
    ),
    "qqp": GlueTask(
        ("question1", "question2"), 2, ("not_duplicate", "duplicate"), metrics=ACCURACY_F1
    ),
    "stsb": GlueTask(
        ("sentence1", "sentence2"), 1, bounds=(0.0, 5.0), metrics=("pearson", "spearmanr")
    ),
    "mnli": GlueTask(
        ("premise", "hypothesis"),
        3,
        ("entailment", "neutral", "contradiction"),
        validation=("validation_matched", "validation_mismatched"),
    ),
    "qnli": GlueTask(("question", "sentence"), 2, ENTAILMENT),
    # The published study (arXiv:2405.12186) scores the first 2,432 training rows.
    "rte": GlueTask(("sentence1", "sentence2"), 2, ENTAILMENT, max_train_samples=2432),
    "wnli": GlueTask(("sentence1", "sentence2"), 2, ("not_entailment", "entailment")),
    "demo": GlueTask(
        ("sentence",),
        2,
        tuple(demo.LABEL_NAMES),
        recipe={"learning_rate": 3e-4, "num_train_epochs": 8, "freeze_embeddings": True},
    ),
}


def task_named(data_name: str) -> GlueTask:
    """Entry of TASKS. Raises Refused for an unknown name."""
    if data_name not in TASKS:
        raise Refused(unknown_task(data_name))
    return TASKS[data_name]


def unknown_task(name: str, runs: Iterable[str] = ()) -> str:
    """Message about a name that is not the name of a task: the nearest one, and all known ones.

    runs: further names, of runs.
    """
    known = list(dict.fromkeys([*runs, *TASKS]))
    return f"unknown task {name!r}{did_you_mean(name, known)}; known are {', '.join(known)}"
