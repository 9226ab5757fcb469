"""Adopted models: models that were fine-tuned elsewhere, opened with their classes in the task's
order, and judged.

Only weights, configuration and tokenizer of the folder are opened.
"""

import json
import re
from pathlib import Path

import torch
from transformers import AutoConfig
from transformers.utils import cached_file

from attribution.data.dataset import GlueDataset
from attribution.data.labels import class_of
from attribution.data.tasks import GlueTask
from attribution.files import Refused, differing_parts, printable
from attribution.hub import open_asset
from attribution.models import is_head, open_model, shortened
from attribution.training.metrics import doubts
from attribution.training.run import Run

FLAG = "--adopt"
# Parts of the names of weights that are left from pretraining; a classification does without them.
LEFTOVERS = re.compile(
    r"(^|\.)(cls\.(predictions|seq_relationship)|lm_head|predictions|sop_classifier|decoder|pooler|"
    r"(discriminator|generator|lm|mask)_predictions|generator_lm_head|position_ids|"
    r"vocab_(transform|layer_norm|projector))(\.|$)"
)


def open_adopted(
    name: str, task: GlueTask, label_order: list[str] | None
) -> tuple[torch.nn.Module, list[int] | None]:
    """(model with its outputs in the order of the task's classes, output number of each class or
    None for a regression).

    name: folder or hub id. label_order: class names in the order of the model's outputs; None: as
    in its configuration. Raises Refused if the head is missing, has another number of classes, or
    classes of other names, and if the model was trained for another loss or has weights that would
    not be used.
    """
    config = open_config(name)
    names = names_of_outputs(config, label_order)
    if len(names) != task.num_labels:
        wanted = "one output, for a regression" if task.regression else f"{task.num_labels} classes"
        has = f"{len(names)} classes ({printable(', '.join(names))})" if names[1:] else "one output"
        raise Refused(f"the model {name!r} has {has}, but the task needs {wanted}")
    check_loss(config, task)
    order = None
    if not task.regression:
        subject = "--label_order names" if label_order else f"the model {name!r} calls its classes"
        order = match_labels(names, task.class_names, subject)
    model = open_model(name, task, new_head=None, flag=FLAG)
    if lost := sorted(key for key in model.drawn if is_head(model, key) or "pooler" in key):
        raise Refused(
            f"the model {name!r} is not fine-tuned: it has no {lost[0]}; train it first, without "
            "--adopt"
        )
    if used := [key for key in model.unused if not LEFTOVERS.search(key)]:
        raise Refused(
            f"the model {name!r} has weights that a {type(model).__name__} does not use, so it is "
            f"not the model that was trained: {shortened(used, 3)}; merge them, or remove them if "
            "they took no part"
        )
    if model.unused:
        print(f"stored, but not used: {shortened(model.unused, 6)}")
    if order is not None and order != sorted(order):
        reorder_head(model, order)
        print(
            f"the model's classes are in another order ({', '.join(names)}); its outputs are "
            "reordered"
        )
    return model, order


def open_config(name: str):
    """Configuration of the model as it is stored, with `name_or_path`. name: folder or hub id."""
    return open_asset(name, FLAG, "model", lambda: AutoConfig.from_pretrained(name))


def names_of_outputs(config, label_order: list[str] | None) -> list[str]:
    """Names of the model's outputs, in their order: label_order, or those of its configuration.

    Raises Refused for a label_order of another length, and for names that contradict one another.
    """
    model = f"the model {config.name_or_path!r}"
    outputs = {int(i): str(label) for i, label in config.id2label.items()}
    count = len(outputs)
    if label_order and (count == 1 or len(label_order) != count):
        has = f"{count} classes" if count > 1 else "one output, which is not a class"
        raise Refused(f"--label_order names {len(label_order)} classes, but {model} has {has}")
    names = label_order or [outputs.get(i, "") for i in range(count)]
    if len(set(names)) < count or not (label_order or set(outputs) == {*range(count)}):
        shown = printable(", ".join(label_order or [f"{i}: {x}" for i, x in outputs.items()]))
        raise Refused(
            f"the classes of {model} are not named and numbered from 0 on, each once ({shown}); "
            "pass --label_order with one name for each of its outputs"
        )
    places = {} if label_order else {label: i for i, label in enumerate(names)}
    stated = config.label2id if isinstance(config.label2id, dict) else {}
    for label, i in stated.items():
        if str(place := places.get(label, i)) != str(i):
            raise Refused(
                f"{model} contradicts itself: {printable(label)} is class {i} by its label2id, "
                f"class {place} by its id2label; pass --label_order with the names in the order of "
                "its outputs"
            )
    return names


def check_loss(config, task: GlueTask) -> None:
    """Raises Refused if the configuration says that the model was trained for something else than
    the task's loss of its outputs.
    """
    model = f"the model {config.name_or_path!r}"
    wanted = "regression" if task.regression else "single_label_classification"
    if config.problem_type not in (None, wanted):
        raise Refused(
            f"{model} was trained for another loss: its problem_type is {config.problem_type}, and "
            f"the task's is {wanted}"
        )
    kinds = config.architectures or ["ForSequenceClassification"]
    if not any(str(kind).endswith(("ForSequenceClassification", "Model")) for kind in kinds):
        raise Refused(f"{model} is no classifier of texts: it is a {kinds[0]}")
    # The softmax of the outputs is what our loss takes, too.
    plain = ("Identity",) if task.regression else ("Identity", "Softmax", "LogSoftmax")
    activation = activation_of(config)
    if activation.rsplit(".")[-1] not in plain:
        raise Refused(
            f"{model} is a cross-encoder whose outputs go through {printable(activation)}, so it "
            f"was trained for another loss than the task's ({wanted})"
        )


def activation_of(config) -> str:
    """Function that sentence-transformers applies to the outputs of a cross-encoder, as it stores
    the name; `Identity` for other models.
    """
    name = config.name_or_path

    def load() -> dict:
        file = cached_file(
            name,
            "config_sentence_transformers.json",
            _raise_exceptions_for_missing_entries=False,
        )
        return json.loads(Path(file).read_bytes()) if file else {}

    now = open_asset(name, FLAG, "model", load)
    before = getattr(config, "sentence_transformers", None)  # versions 4 and 5 stored it there
    oldest = getattr(config, "sbert_ce_default_activation_function", None)
    crossed = now.get("model_type") == "CrossEncoder" or before is not None
    default = "Sigmoid" if crossed and config.num_labels == 1 else "Identity"
    return str(now.get("activation_fn") or (before or {}).get("activation_fn") or oldest or default)


def match_labels(names: list[str], wanted: tuple[str, ...], subject: str) -> list[int]:
    """Output of the model for each class of the task. names: of the outputs; wanted: of the task.

    Case, `-` and spaces do not count if classes differ without them: NOT-ENTAILMENT is
    not_entailment. Raises Refused if names differ; subject: the beginning of that message.
    """
    places = [place for name in wanted if (place := class_of(name, names)) is not None]
    if sorted(places) != list(range(len(names))) or len(places) < len(wanted):
        raise Refused(
            f"{subject} {printable(', '.join(names))}, but the task's are {', '.join(wanted)}; "
            "pass --label_order with the task's names in the order of the model's outputs"
        )
    return places


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


def parts_lost(run: Run, record: dict) -> list[str]:
    """Parts of the run in the folder that are gone if an adopted model with this record of run.json
    replaces it; empty if it is the same model, adopted again.
    """
    stored = {"weights": run.weights, "seed": run.seed, "data": run.data}
    new = json.loads(json.dumps({name: record.get(name) for name in stored}))  # tuples are lists
    parts = differing_parts(stored, new) + run.differences(record)
    return parts + ["training"] * (run.adopted is None)


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
            "little then; or some labels of these are wrong (analyze.py --label_issues)"
        )
    remedy = "; are the classes in the right order (--label_order)?"
    for doubt in doubts({"validation": new}, {"validation": valid}):
        lines.append(doubt if train.task.regression else doubt + remedy)
    return lines
