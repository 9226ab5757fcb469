"""What one data set asks of the scripts."""

import re
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from attribution.files import Refused

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class GlueTask:
    """What one data set asks of the scripts; everything else follows from this."""

    columns: tuple[str, ...]  # the text columns, in the order in which BERT reads them
    num_labels: int  # C classes; 1 for regression
    class_names: tuple[str, ...] = ()  # of the classes, in order
    bounds: tuple[float, float] | None = None  # smallest and largest label of a regression
    metrics: tuple[str, ...] = ("accuracy",)
    validation: tuple[str, ...] = ("validation",)
    max_train_samples: int | None = None
    recipe: dict = field(
        default_factory=dict
    )  # training arguments that differ from train.py's defaults

    @property
    def regression(self) -> bool:
        """Whether labels are numbers instead of classes."""
        return self.num_labels == 1

    def record(self) -> dict:
        """The task as run.json holds it."""
        return asdict(self)


def task_from(record: dict) -> GlueTask:
    """The task that `GlueTask.record` wrote: JSON knows lists only."""
    known = {entry.name for entry in fields(GlueTask)} & set(record)
    values: dict[str, Any] = {}
    for name in known:
        values[name] = tuple(record[name]) if isinstance(record[name], list) else record[name]
    return GlueTask(**values)


def check_name(name: str) -> None:
    """Raises Refused for a data set's name that is not letters, digits, - _ . without a leading
    dot: a folder's.
    """
    if not NAME.fullmatch(name):
        raise Refused(
            f"--dataset_name {name!r} must be letters, digits, '-', '_' and '.', without a leading "
            "dot"
        )
