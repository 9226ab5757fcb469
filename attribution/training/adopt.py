"""A model that was fine-tuned elsewhere becomes a run: opened, its classes put into the task's
order, evaluated.

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
    """(the model with its outputs in the order of the task's classes, output number of each class
    or None).

    name: folder or hub id. label_order: class names in the order of the model's outputs; None: as
    its configuration says. Raises Refused where the head is missing, has another number of classes,
    or classes of other names.
    """
    config = open_asset(name, FLAG, "model", lambda: AutoConfig.from_pretrained(name))
    if config.num_labels != task.num_labels:
        wanted = "one output, for a regression" if task.regression else f"{task.num_labels} classes"
        raise Refused(
            f"the model {name!r} has {config.num_labels} classes, but the task needs {wanted}"
        )
    names = [str(config.id2label[i]) for i in range(config.num_labels)]
    order = None if task.regression else match_labels(name, names, task.class_names, label_order)
    model = open_model(name, task)
    if lost := sorted(key for key in model.drawn if is_head(model, key) or "pooler" in key):
        raise Refused(
            f"the model {name!r} is not fine-tuned: it has no {lost[0]}; train it first, without "
            "--adopt"
        )
    if order is not None and order != sorted(order):
        reorder_head(model, order)
        print(
            f"the model's classes are in another order ({', '.join(label_order or names)}); its "
            "outputs are reordered"
        )
    return model, order


def match_labels(
    name: str, names: list[str], wanted: tuple[str, ...], label_order: list[str] | None
) -> list[int]:
    """For each class of the task, the model's output that means it. Raises Refused where names
    differ.
    """
    given = label_order or names
    fold = same_case if len({same_case(text) for text in wanted}) == len(wanted) else str
    if sorted(map(fold, given)) != sorted(map(fold, wanted)):
        what = "--label_order names" if label_order else f"the model {name!r} calls its classes"
        raise Refused(
            f"{what} {printable(', '.join(given))}, but the task's are {', '.join(wanted)}; pass "
            "--label_order with the task's names in the order of the model's outputs"
        )
    places = [fold(text) for text in given]
    return [places.index(fold(text)) for text in wanted]


def same_case(text: str) -> str:
    """A class name as it is compared: NOT-ENTAILMENT is not_entailment."""
    return text.casefold().replace("-", "_").replace(" ", "_")


def reorder_head(model: torch.nn.Module, order: list[int]) -> None:
    """Puts the outputs of the head's last layer into this order, in place."""
    kinds = [
        (name, layer) for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)
    ]
    layers = [
        layer
        for name, layer in kinds
        if is_head(model, f"{name}.weight") and layer.out_features == len(order)
    ]
    if not layers:
        raise Refused("the head's last layer was not found, so its classes cannot be reordered")
    with torch.no_grad():
        for parameter in layers[-1].parameters():
            parameter.copy_(parameter[order].clone())


def judge(result: dict[str, dict], train: GlueDataset, valid: GlueDataset) -> list[str]:
    """Sentences about how the adopted model does: losses beside each other, and a doubt where it
    does badly.

    result: "training" and "validation" -> metrics, as `evaluate_model` returns them.
    """
    lines = [
        f"loss per example: {result['training']['loss']:.4f} on the {len(train):,} rows that it is "
        f"assumed to have seen, {result['validation']['loss']:.4f} on {len(valid):,} validation "
        "rows"
    ]
    if result["training"]["loss"] > result["validation"]["loss"]:
        lines.append(
            "it does no better on the former: perhaps it was trained on other rows, and scores say "
            "little then"
        )
    for doubt in doubts({"validation": result["validation"]}, {"validation": valid}):
        lines.append(
            doubt
            + "; are the classes in the right order (--label_order)?" * (not train.task.regression)
        )
    return lines
