"""A start model is what its folder says, or is refused by the weight, head, tokenizer or kind that
is wrong.
"""

import json
import shutil

import pytest
import small
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

import train
from attribution.cli import run_script
from attribution.data.dataset import fingerprint_of_tokenizer
from attribution.files import Refused
from attribution.models import fingerprint_of_start, inputs_of, usable_positions
from pipeline import construct_bert, get_tokenizer


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return small.save_model(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture
def copied(bert, tmp_path):
    shutil.copytree(bert, tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder, change) -> None:
    """Stores change(state) instead of the folder's weights."""
    save_file(
        change(load_file(folder / "model.safetensors")),
        folder / "model.safetensors",
        {"format": "pt"},
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: {f"module.{k}": v for k, v in s.items()},
            "lacks weights of the encoder.*bert.embeddings",
        ),
        (lambda s: {f"x.bert.{k}": v for k, v in s.items()}, "lacks weights of the encoder"),
        (
            lambda s: {k: v for k, v in s.items() if "layer.1." not in k},
            "lacks weights .*bert.encoder.layer.1",
        ),
        (
            lambda s: {k: v for k, v in s.items() if "word_emb" not in k},
            "lacks weights .*word_embeddings",
        ),
        (
            lambda s: s | {"embeddings.position_embeddings.weight": torch.zeros(7, 32)},
            "fit: .*position_embeddings",
        ),
        (
            lambda s: s | {"encoder.layer.0.output.dense.bias": torch.full((32,), torch.nan)},
            "not finite: .*dense.bias",
        ),
    ],
)
def test_encoder_weights_that_lack_do_not_fit_or_are_not_finite_are_named(copied, change, message):
    rewrite(copied, change)
    with pytest.raises(Refused, match=message):
        construct_bert("sst2", str(copied))


def test_head_and_pooler_may_be_drawn_and_are_named_and_so_is_what_is_not_used(
    copied, tmp_path, capsys
):
    rewrite(
        copied,
        lambda s: {k: v for k, v in s.items() if "pooler" not in k} | {"cls.bias": torch.zeros(2)},
    )
    data = small.write(tmp_path / "data", "sst2", small.tables())
    arguments = [
        "--dataset_name",
        "sst2",
        "--dataset_path",
        data,
        "--model_name_or_path",
        str(copied),
    ]
    train.main([*arguments, "--checkpoint_dir", str(tmp_path / "runs"), "--num_train_epochs", "1"])
    out = capsys.readouterr().out
    assert "weights drawn at random: bert.pooler.dense.bias, bert.pooler.dense.weight, class" in out
    assert "stored, but not used: " in out and "cls.bias" in out
    first, second = (construct_bert("sst2", str(copied), seed) for seed in (0, 1))
    assert not torch.equal(first.classifier.weight, second.classifier.weight)
    assert fingerprint_of_start(first) == fingerprint_of_start(second)


def test_encoders_without_prefix_in_half_precision_or_as_bin_load_as_they_are(bert, copied):
    whole = construct_bert("sst2", str(bert)).state_dict()
    state = load_file(copied / "model.safetensors")
    assert not any(key.startswith("bert.") for key in state)
    (copied / "model.safetensors").unlink()
    torch.save({key: value.half() for key, value in state.items()}, copied / "pytorch_model.bin")
    half = construct_bert("sst2", str(copied))
    for key, value in half.state_dict().items():
        assert value.dtype == torch.float32 and torch.allclose(value, whole[key], atol=1e-3), key


def test_a_head_of_other_classes_is_refused_unless_a_new_one_is_asked_for(tmp_path):
    folder = small.save_model(tmp_path, "bert", tf.AutoModelForSequenceClassification, num_labels=3)
    with pytest.raises(Refused, match="head of another number of classes than 2 .*--new_head"):
        construct_bert("rte", str(folder))
    model = construct_bert("rte", str(folder), new_head=True)
    assert model.classifier.weight.shape[0] == 2 and model.drawn == {
        "classifier.weight",
        "classifier.bias",
    }
    kept = construct_bert("mnli", str(folder))
    drawn = construct_bert("mnli", str(folder), new_head=True)
    assert (
        not kept.drawn
        and drawn.drawn
        and not torch.equal(kept.classifier.weight, drawn.classifier.weight)
    )
    assert fingerprint_of_start(kept) == fingerprint_of_start(drawn) == fingerprint_of_start(model)


def test_a_folder_without_tokenizer_is_refused_and_another_ones_can_be_named(tmp_path, capsys):
    folder = small.save_model(tmp_path / "model", "bert", tokenizer=False)
    with pytest.raises(Refused, match="no tokenizer files.*--tokenizer_name_or_path"):
        get_tokenizer(str(folder), "sst2")
    data = small.write(tmp_path / "data", "sst2", small.tables())
    arguments = [
        "--dataset_name",
        "sst2",
        "--dataset_path",
        data,
        "--model_name_or_path",
        str(folder),
    ]
    arguments += ["--checkpoint_dir", str(tmp_path / "runs"), "--num_train_epochs", "1"]
    train.main([*arguments, "--tokenizer_name_or_path", "demo"])
    run = json.loads((tmp_path / "runs/sst2/run.json").read_text())
    assert run["tokenizer"] == fingerprint_of_tokenizer(get_tokenizer(None, "demo"))


@pytest.mark.parametrize("kind", ["gpt2", "bart"])
def test_decoders_and_encoder_decoders_are_refused_at_once(tmp_path, kind):
    folder = small.save_model(tmp_path, kind)
    (folder / "model.safetensors").unlink()  # nothing needs to be read for that
    with pytest.raises(Refused, match="is no encoder"):
        construct_bert("sst2", str(folder))


def test_adapters_and_pointers_are_named_for_what_they_are(copied, tmp_path):
    (copied / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )
    with pytest.raises(Refused, match="Git LFS pointer"):
        construct_bert("sst2", str(copied))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    with pytest.raises(Refused, match="an adapter, not a model"):
        construct_bert("sst2", str(tmp_path / "adapter"))


def test_settings_that_would_break_saving_or_reading_are_reset(copied, tmp_path):
    config = json.loads((copied / "config.json").read_text())
    config |= {
        "output_attentions": True,
        "output_hidden_states": True,
        "return_dict": False,
        "use_cache": True,
    }
    (copied / "config.json").write_text(json.dumps(config))
    model = construct_bert("sst2", str(copied))
    model.save_pretrained(tmp_path / "saved")
    assert model(torch.tensor([[2, 5, 3]])).logits.shape == (1, 2)


# --- tokens, segments, positions ---


@pytest.mark.parametrize(
    ("kind", "positions"), [("bert", 128), ("roberta", 128), ("mpnet", 128), ("modernbert", 128)]
)
def test_positions_kept_for_padding_are_not_used(tmp_path, kind, positions):
    model = construct_bert("sst2", str(small.save_model(tmp_path, kind)))
    assert usable_positions(model) == positions
    reads = inputs_of(model, get_tokenizer(None, "demo"))
    batch = dict.fromkeys(reads, torch.full((1, positions), 5 if kind != "x" else 0))
    batch = {
        name: value if name == "input_ids" else torch.zeros_like(value)
        for name, value in batch.items()
    }
    assert model(**batch).logits.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("bert", {"vocab_size": 60}, "makes input_ids up to .*, but the model knows 60"),
        ("roberta", {"type_vocab_size": 1}, "makes token_type_ids up to 1, but the model knows 1"),
    ],
)
def test_tokens_and_segments_that_the_model_lacks_are_refused(
    tmp_path, capsys, kind, changes, message
):
    folder = small.save_model(tmp_path / "model", kind, **changes)
    data = small.write(tmp_path / "data", "rte", small.tables("rte"))
    arguments = [
        "--dataset_name",
        "rte",
        "--dataset_path",
        data,
        "--model_name_or_path",
        str(folder),
    ]
    with pytest.raises(Refused, match=message):
        train.main([*arguments, "--checkpoint_dir", str(tmp_path / "runs")])


# --- where the start and the data are ---


def test_training_into_the_start_or_beside_a_model_of_ones_own_is_refused(tmp_path, capsys):
    data = small.write(tmp_path / "data", "sst2", small.tables())
    folder = small.save_model(tmp_path / "runs" / "sst2", "bert")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    common = [
        "--dataset_name",
        "sst2",
        "--dataset_path",
        data,
        "--checkpoint_dir",
        str(tmp_path / "runs"),
    ]
    for model, message in (
        (str(folder), "is where the run would be saved"),
        ("demo", "no run of train.py"),
    ):
        assert run_script(train.main, [*common, "--model_name_or_path", model]) == 2
        assert message in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
