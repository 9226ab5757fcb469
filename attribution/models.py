"""Start models: opened by name, and refused if a weight, a head or a tokenizer is missing or wrong.

Supported are encoders with a classification head (see README); decoders and encoder-decoders are
refused at once.
"""

import inspect
import math
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from attribution.data.dataset import GlueDataset
from attribution.data.tasks import GlueTask
from attribution.files import Refused
from attribution.hub import open_asset, refuse_outer
from attribution.tensors import fingerprint_of_tensors

FLAG = "--model_name_or_path"
VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)


# --- tokenizer ------------------------------------------------------------------------------------


def open_tokenizer(name: str, flag: str = FLAG):
    """Fast tokenizer of a folder or hub id.

    Raises Refused if it has none: transformers would invent one.
    """
    folder = Path(name)
    tokenizer = None
    if not folder.is_dir() or any((folder / file).is_file() for file in VOCABULARIES):
        tokenizer = open_asset(name, flag, "tokenizer", lambda: AutoTokenizer.from_pretrained(name))
    else:
        refuse_outer(folder, flag)
    if tokenizer is None or len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
        raise Refused(
            f"{name!r} has no tokenizer files; name a folder or hub id with them: "
            "--tokenizer_name_or_path"
        )
    if not tokenizer.is_fast:
        raise Refused(
            f"the tokenizer of {name!r} has no fast version (tokenizer.json), which these scripts "
            "need"
        )
    return tokenizer


# --- model ----------------------------------------------------------------------------------------


def open_model(
    name: str,
    task: GlueTask,
    num_hidden_layers: int | None = None,
    new_head: bool | None = False,
    flag: str = FLAG,
) -> nn.Module:
    """Model of a folder or hub id with a head for the task, float32; missing parts are drawn from
    torch's seed.

    new_head: draw the head even if there is one; None: no, and a refusal does not offer it. flag:
    the argument that named the model. `model.drawn` names the parameters that were drawn,
    `model.unused` the stored ones that the model does not have. Raises Refused if an encoder weight
    is missing, does not fit or is not finite, or if the head has another number of classes.
    """

    def load():
        config = open_config(name, task, num_hidden_layers)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name,
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        missing = set(info["missing_keys"])
        misfits = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
        head = {key for key in model.state_dict() if is_head(model, key)}
        pooler = f"{model.base_model_prefix}.pooler."
        lost = sorted(
            key
            for key in missing | misfits
            if not is_head(model, key) and not key.startswith(pooler)
        )
        if lost:
            raise Refused(
                f"the model {name!r} lacks weights of the encoder, or they do not fit: "
                f"{shortened(lost, 3)}"
            )
        for key, value in model.state_dict().items():
            if value.is_floating_point() and not value.isfinite().all():
                raise Refused(f"the model {name!r} has a weight that is not finite: {key}")
        if misfits and not new_head:
            remedy = "" if new_head is None else "; pass --new_head to draw a new one"
            raise Refused(
                f"the model {name!r} has a head of another number of classes than "
                f"{task.num_labels} ({sorted(misfits)[0]}){remedy}"
            )
        if new_head:
            missing |= head
            stored = model.state_dict()
            kept = {key: stored[key] for key in stored if key not in missing}
            model = type(model).from_pretrained(
                None, config=config, state_dict=kept, dtype=torch.float32
            )
        model.drawn = frozenset(missing)
        model.unused = tuple(sorted(info["unexpected_keys"]))
        return model

    return open_asset(name, flag, "model", load)


def shortened(names: list[str], count: int) -> str:
    """The first of the names, as `a, b and 4 more`."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def open_config(name: str, task: GlueTask, num_hidden_layers: int | None):
    """Configuration of an encoder for the task. Raises Refused for other kinds of models."""
    config = AutoConfig.from_pretrained(name, num_labels=task.num_labels)
    kind = config.model_type
    decodes = config.is_encoder_decoder or getattr(config, "is_decoder", False)
    if decodes or kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise Refused(
            f"the model {name!r} ({kind}) is no encoder; only encoders such as BERT are supported"
        )
    config.problem_type = "regression" if task.regression else "single_label_classification"
    config.return_dict = True
    config.output_attentions = False
    config.output_hidden_states = False
    config.gradient_checkpointing = False
    if hasattr(config, "reference_compile"):  # ModernBERT of transformers 4 compiles on a GPU
        config.reference_compile = False
    if num_hidden_layers is not None:
        if not 1 <= num_hidden_layers <= config.num_hidden_layers:
            raise Refused(
                f"--num_hidden_layers is {num_hidden_layers}, but the model {name!r} has "
                f"{config.num_hidden_layers} layers"
            )
        config.num_hidden_layers = num_hidden_layers
    return config


def name_classes(model: nn.Module, task: GlueTask) -> nn.Module:
    """Writes the task's class names into the model's configuration, and returns the model."""
    if task.class_names:
        model.config.id2label = dict(enumerate(task.class_names))
        model.config.label2id = {name: i for i, name in enumerate(task.class_names)}
    return model


def is_head(model: nn.Module, key: str) -> bool:
    """Whether the parameter is not one of the encoder."""
    return not key.startswith(f"{model.base_model_prefix}.")


def fingerprint_of_start(model: nn.Module) -> str:
    """SHA-256 over the stored weights of the encoder: without head and drawn weights."""
    state = model.state_dict()
    kept = {key: state[key] for key in state if not is_head(model, key) and key not in model.drawn}
    return fingerprint_of_tensors(kept)


# --- whether model, tokens and lengths go together ------------------------------------------------


def usable_positions(model: nn.Module) -> int:
    """Tokens of the longest row that the model can read (RoBERTa keeps the first positions for
    padding).
    """
    for name, module in model.base_model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            reserved = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - reserved
    return int(model.config.max_position_embeddings)


def inputs_of(model: nn.Module, tokenizer) -> list[str]:
    """Outputs of the tokenizer that the model reads, without the mask.

    DistilBERT has no segments, although its tokenizer makes them.
    """
    reads = set(inspect.signature(model.forward).parameters) - {"attention_mask"}
    if not getattr(model.config, "type_vocab_size", 0):
        reads.discard("token_type_ids")
    return [name for name in tokenizer.model_input_names if name in reads]


def check_tokens(model: nn.Module, *sets: GlueDataset) -> None:
    """Raises Refused if rows have tokens or segments that the model does not know."""
    known = {
        "input_ids": model.get_input_embeddings().num_embeddings,
        "token_type_ids": getattr(model.config, "type_vocab_size", 0) or 0,
    }
    for dataset in sets:
        for name, values in dataset.inputs.items():
            highest = int(values.max())
            if highest >= known.get(name, math.inf):
                raise Refused(
                    f"the tokenizer makes {name} up to {highest}, but the model knows "
                    f"{known[name]}; name the model's tokenizer with --tokenizer_name_or_path"
                )
