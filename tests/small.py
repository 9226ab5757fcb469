"""Small odd inputs for tests: tables in the layout of GLUE, and tiny random encoders."""

from pathlib import Path

import datasets
import numpy as np
import torch
import transformers as tf

from attribution.data.demo import LABEL_NAMES, read_rows
from attribution.data.rows import Rows
from attribution.data.tasks import TASKS, GlueTask
from pipeline import DEMO_MODEL

ROWS = read_rows()
SIZES = {"train": 24, "validation": 12}
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "initializer_range": 0.2,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class Plain(Rows):
    """Rows as people see them, from lists. texts: a text a row, or a list of text columns."""

    def __init__(self, task: GlueTask, texts: list, labels, **more) -> None:
        self.task = task
        self.texts = [[one] if isinstance(one, str) else one for one in texts]
        self.labels = np.asarray(labels)
        for name, value in more.items():
            setattr(self, name, value)

    def columns_of(self, index: int) -> list[str]:
        return self.texts[index]


def table(task: str = "sst2", split: str = "train", labels=None) -> dict[str, list]:
    """Columns of a split, with demo sentences; labels: (row, class) -> label."""
    count, spec = SIZES[split], TASKS[task]
    columns = {
        name: ROWS["train"]["sentence"][i * 50 : i * 50 + count]
        for i, name in enumerate(spec.columns)
    }
    classes = [row % max(spec.num_labels, 2) for row in range(count)]
    columns["label"] = [float(c) for c in classes] if spec.regression else classes
    if labels is not None:
        columns["label"] = [labels(row, c) for row, c in enumerate(classes)]
    return columns


def tables(task: str = "sst2", **splits) -> dict[str, dict]:
    """split -> columns of everything that the task needs; splits: replacements."""
    names = ("train", *TASKS[task].validation)
    return {
        name: splits.get(name) or table(task, "train" if name == "train" else "validation")
        for name in names
    }


def write(folder: Path, task: str, splits: dict, kind: str = "parquet") -> str:
    """Writes a data set in the hub's layout; returns its folder."""
    (folder / task).mkdir(parents=True, exist_ok=True)
    config = f"---\nconfigs:\n- config_name: {task}\n  data_files:\n"
    for split, columns in splits.items():
        path = folder / task / f"{split}.{kind}"
        if isinstance(columns, str):
            path.write_text(columns)
        else:
            data = datasets.Dataset.from_dict(columns) if isinstance(columns, dict) else columns
            {"parquet": data.to_parquet, "csv": data.to_csv, "jsonl": data.to_json}[kind](path)
        config += f"  - split: {split}\n    path: {task}/{split}.{kind}\n"
    (folder / "README.md").write_text(config + "---\n")
    return str(folder)


def configs(vocabulary: int) -> dict:
    """Name -> configuration of a tiny encoder (or of a model that is none)."""
    common = {"vocab_size": vocabulary} | SHAPE
    bert = common | NO_DROPOUT
    distil = {
        "vocab_size": vocabulary,
        "dim": 32,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 48,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "seq_classif_dropout": 0.0,
        "initializer_range": 0.2,
        "max_position_embeddings": 128,
    }
    ids = {
        "pad_token_id": 0,
        "cls_token_id": 2,
        "sep_token_id": 3,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    deberta = {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 16,
        "max_position_embeddings": 128,
        "max_relative_positions": -1,
        "position_biased_input": False,
        "norm_rel_ebd": "layer_norm",
    }
    return {
        "bert": tf.BertConfig(**bert, max_position_embeddings=128),
        "roberta": tf.RobertaConfig(
            **bert, max_position_embeddings=130, pad_token_id=1, type_vocab_size=2
        ),
        "xlm-roberta": tf.XLMRobertaConfig(
            **bert, max_position_embeddings=130, pad_token_id=1, type_vocab_size=2
        ),
        "distilbert": tf.DistilBertConfig(**distil),
        "electra": tf.ElectraConfig(**bert, embedding_size=16, max_position_embeddings=128),
        "mpnet": tf.MPNetConfig(**bert, max_position_embeddings=130, pad_token_id=1),
        "modernbert": tf.ModernBertConfig(**common, **ids, max_position_embeddings=128),
        "albert": tf.AlbertConfig(
            **bert, embedding_size=16, max_position_embeddings=128, num_hidden_groups=1
        ),
        "deberta-v2": tf.DebertaV2Config(**bert, **deberta),
        "deberta-v2 shared": tf.DebertaV2Config(**bert, **deberta, share_att_key=True),
        "gpt2": tf.GPT2Config(
            vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=2, n_positions=128
        ),
        "bart": tf.BartConfig(
            vocab_size=vocabulary,
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_position_embeddings=130,
        ),
    }


def save_model(
    folder: Path, name: str, kind=tf.AutoModel, tokenizer: bool = True, **changes
) -> Path:
    """Saves a tiny random model with the demo's tokenizer; changes: of its configuration."""
    words = tf.AutoTokenizer.from_pretrained(DEMO_MODEL)
    config = configs(len(words))[name]
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    kind.from_config(config).save_pretrained(folder)
    if tokenizer:
        words.save_pretrained(folder)
    return folder


assert list(TASKS["demo"].class_names) == LABEL_NAMES
