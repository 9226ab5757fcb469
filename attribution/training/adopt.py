"""Adopted models: models that were fine-tuned elsewhere, opened with their classes in the task's
order, and judged.

Only weights, configuration and tokenizer of the folder are opened.
"""

import torch
from transformers import AutoConfig

from attribution.data.dataset import GlueDataset
from attribution.data.tables import GlueTask
from attribution.files import Refused, printable
from attribution.hub import open_asset
from attribution.models import is_head, open_model
from attribution.training.metrics import doubts

FLAG = "--adopt"


def open_adopted(
    name: str, task: GlueTask, label_order: list[str] | None
) -> tuple[torch.nn.Module, list[int] | None]:
    """(model with its outputs in the order of the task's classes, output number of each class or
    None for a regression).

    name: folder or hub id. label_order: class names in the order of the model's outputs; None: as
    in its configuration. Raises Refused if the head is missing, has another number of classes, or
    classes of other names.
    """
    config = open_asset(name, FLAG, "model", lambda: AutoConfig.from_pretrained(name))
    if config.num_labels != task.num_labels:
        wanted = "one output, for a regression" if task.regression else f"{task.num_labels} classes"
        raise Refused(
            f"the model {name!r} has {config.num_labels} classes, but the task needs {wanted}"
        )
    names = label_order or [str(config.id2label[i]) for i in range(config.num_labels)]
    order = None
    if not task.regression:
        subject = "--label_order names" if label_order else f"the model {name!r} calls its classes"
        order = match_labels(names, task.class_names, subject)
    model = open_model(name, task)
    if lost := sorted(key for key in model.drawn if is_head(model, key) or "pooler" in key):
        raise Refused(
            f"the model {name!r} is not fine-tuned: it has no {lost[0]}; train it first, without "
            "--adopt"
        )
    if order is not None and order != sorted(order):
        reorder_head(model, order)
        print(
            f"the model's classes are in another order ({', '.join(names)}); its outputs are "
            "reordered"
        )
    return model, order


def match_labels(names: list[str], wanted: tuple[str, ...], subject: str) -> list[int]:
    """Output of the model for each class of the task. names: of the outputs; wanted: of the task.

    Case, `-` and spaces do not count if classes differ without them: NOT-ENTAILMENT is
    not_entailment. Raises Refused if names differ; subject: the beginning of that message.
    """

    def fold(text: str) -> str:
        return text.casefold().replace("-", "_").replace(" ", "_")

    found = [fold(name) for name in names]
    classes = [fold(name) for name in wanted]
    if len(set(classes)) < len(classes):
        found = names
        classes = list(wanted)
    if sorted(found) != sorted(classes):
        raise Refused(
            f"{subject} {printable(', '.join(names))}, but the task's are {', '.join(wanted)}; "
            "pass --label_order with the task's names in the order of the model's outputs"
        )
    return [found.index(name) for name in classes]


def reorder_head(model: torch.nn.Module, order: list[int]) -> None:
    """Puts the outputs of the head's last layer into this order, in place."""
    layers = [
        layer
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear)
        and is_head(model, f"{name}.weight")
        and layer.out_features == len(order)
    ]
    if not layers:
        raise Refused("the head's last layer was not found, so its classes cannot be reordered")
    with torch.no_grad():
        for parameter in layers[-1].parameters():
            parameter.copy_(parameter[order].clone())


def judge(seen: dict, new: dict, train: GlueDataset, valid: GlueDataset) -> list[str]:
    """Sentences about the adopted model: its losses, and doubts if it does badly.

    seen, new: metrics on training and validation rows, as `evaluate_model` returns them.
    """
    lines = [
        f"loss per example: {seen['loss']:.4f} on the {len(train):,} rows that it is assumed to "
        f"have seen, {new['loss']:.4f} on {len(valid):,} validation rows"
    ]
    if seen["loss"] > new["loss"]:
        lines.append(
            "it does no better on the former: perhaps it was trained on other rows, and scores say "
            "little then"
        )
    remedy = "; are the classes in the right order (--label_order)?"
    for doubt in doubts({"validation": new}, {"validation": valid}):
        lines.append(doubt if train.task.regression else doubt + remedy)
    return lines
