"""Scores of every supported encoder equal autograd's gradients; a model whose scores would be wrong
is refused.
"""

import pytest
import small
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

import analyze
import train
from attribution.engine.task import InfluenceTask
from attribution.evidence.baselines import represent
from attribution.files import Refused
from attribution.influence.stored import find_scores
from attribution.training.run import Run
from attribution.training.support import check_attribution
from pipeline import construct_bert, model_inputs

SUPPORTED = ("bert", "roberta", "xlm-roberta", "distilbert", "electra", "mpnet", "modernbert")


@pytest.fixture
def trained_on(tmp_path):
    """kind -> the checkpoint folder of a run of that kind of model, on rte's pairs of texts."""
    data = small.write(tmp_path / "data", "rte", small.tables("rte"))

    def run(kind: str):
        model = small.save_model(tmp_path / "model", kind)
        where = [
            "--dataset_name",
            "rte",
            "--dataset_path",
            data,
            "--checkpoint_dir",
            str(tmp_path / "runs"),
        ]
        train.main(
            [
                *where,
                "--model_name_or_path",
                str(model),
                "--num_train_epochs",
                "1",
                "--learning_rate",
                "1e-3",
            ]
        )
        return tmp_path / "runs"

    return run


def gradients(model: nn.Module, value: torch.Tensor) -> torch.Tensor:
    """The gradient of the value by all weights and biases of linear modules, as one vector."""
    model.zero_grad()
    value.backward()
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return torch.cat([p.grad.flatten() for module in linear for p in module.parameters()]).double()


@pytest.mark.parametrize("kind", SUPPORTED)
def test_scores_equal_inner_products_of_autograds_gradients_and_the_first_token_is_compared(
    trained_on, kind
):
    checkpoints = trained_on(kind)
    analyze.main(
        [
            "--dataset_name",
            "rte",
            "--checkpoint_dir",
            str(checkpoints),
            "--factor_strategy",
            "identity",
        ]
    )
    run = Run.open(checkpoints, "rte")
    rows, queries = run.rows(3)
    model, task = AutoModelForSequenceClassification.from_pretrained(run.folder), InfluenceTask()
    own = [gradients(model, task.compute_train_loss(rows.batch([i]), model)) for i in range(6)]
    asked = [
        gradients(model, task.compute_measurement(queries.batch([q]), model)) for q in range(3)
    ]
    expected = torch.stack(asked) @ torch.stack(own).t()
    _, whole = run.rows(2000)
    stored = find_scores(run, whole.fingerprint())["identity"]
    assert stored.stale is None
    scores = torch.from_numpy(stored.values()[:3, :6]).double()
    assert (scores - expected).norm() < 1e-5 * expected.norm()
    (found,) = represent(model, queries)
    with torch.no_grad():
        outputs = model.base_model(**model_inputs(queries.batch(range(3))))
    assert torch.allclose(torch.from_numpy(found), outputs.last_hidden_state[:, 0], atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("albert", "query is used 2 times in a pass"),
        ("deberta-v2", "reads an input without rows"),
        ("deberta-v2 shared", "is used 2 times|reads an input without rows|share"),
    ],
)
def test_weights_that_serve_twice_and_inputs_without_rows_are_refused_before_training(
    trained_on, kind, message
):
    with pytest.raises(Refused, match=f"models are not supported: .*({message})"):
        trained_on(kind)


@pytest.mark.parametrize("stock", [[], ["--stock"]])
def test_such_a_model_is_refused_by_the_analysis_too_on_both_paths(run_copy, monkeypatch, stock):
    def forward(self, hidden):
        return torch.tanh(self.dense(self.dense(hidden[:, 0])))

    monkeypatch.setattr("transformers.models.bert.modeling_bert.BertPooler.forward", forward)
    with pytest.raises(Refused, match="bert.pooler.dense is used 2 times"):
        analyze.main(
            [
                "--dataset_name",
                "demo",
                "--checkpoint_dir",
                str(run_copy),
                "--max_queries",
                "2",
                *stock,
            ]
        )
    assert not (run_copy / "demo/influence/factors").exists()


def test_the_trial_leaves_the_model_as_it_was(trained):
    rows, _ = Run.open(trained, "demo").rows(1)
    model = construct_bert("demo").train()
    check_attribution(model, rows)
    assert model.training and not any(module._forward_hooks for module in model.modules())
    model.bert.encoder.layer[1].output.dense.weight = model.bert.encoder.layer[
        0
    ].output.dense.weight
    with pytest.raises(Refused, match="share one weight"):
        check_attribution(model, rows)


def test_a_layer_that_is_not_linear_is_refused(trained):
    rows, _ = Run.open(trained, "demo").rows(1)
    model = construct_bert("demo")
    width = model.config.hidden_size
    model.classifier = nn.Sequential(
        nn.Unflatten(1, (width, 1, 1)), nn.Conv2d(width, 2, 1), nn.Flatten()
    )
    with pytest.raises(Refused, match=r"classifier\.1 is no linear layer"):
        check_attribution(model, rows)
