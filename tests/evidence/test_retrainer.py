"""A retrain on all rows is the training of the run itself."""

import numpy as np
import torch
import transformers

from attribution.evidence.retraining import behaviour, run_jobs
from attribution.evidence.store import Job, Store
from attribution.training.fit import fit, predict
from attribution.training.run import Run
from pipeline import compute_margin, construct_bert


def test_removing_nothing_is_plain_training_bit_for_bit_and_the_store_changes_nothing(
    retrain, trained, tmp_path
):
    rows = np.arange(len(retrain.train))
    retrain(rows[5:], 1)  # what a process did before leaves no trace
    model = fit(construct_bert("demo", seed=3), retrain.train, rows, seed=3, **retrain.recipe)
    plain = compute_margin(
        predict(model, retrain.queries), torch.from_numpy(retrain.queries.labels)
    ).numpy()
    assert np.array_equal(retrain(rows, 3).margins, plain)
    assert not np.array_equal(retrain(rows, 4).margins, plain)
    assert not np.array_equal(retrain(rows[1:], 3).margins, plain)
    run = Run.open(trained, "demo")
    model = type(model).from_pretrained(run.folder)  # of seed 0
    of_run = compute_margin(
        predict(model, retrain.queries), torch.from_numpy(retrain.queries.labels)
    ).numpy()
    assert np.array_equal(retrain(rows, 0).margins, of_run)
    store = Store(tmp_path, retrain.fingerprint(), retrain.digests)
    results = run_jobs(store, [Job.of(rows, 3)], retrain)
    assert np.array_equal(results.margins[0], plain) and np.array_equal(
        results.correct[0], plain > 0
    )


def test_another_dropout_or_epsilon_is_another_recipe_and_the_class_defaults_have_no_name():
    usual = transformers.BertConfig(num_hidden_layers=2, hidden_size=32)
    assert behaviour(usual) == {}
    changed = transformers.BertConfig(
        hidden_dropout_prob=0.5, layer_norm_eps=1e-2, hidden_act="relu"
    )
    assert behaviour(changed) == {
        "hidden_dropout_prob": 0.5,
        "layer_norm_eps": 1e-2,
        "hidden_act": "relu",
    }
