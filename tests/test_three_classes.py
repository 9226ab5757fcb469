"""With three classes "correct" is the largest logit, not a margin above 0, in every script."""

import json

import numpy as np
import pytest
import small
import torch
from transformers import AutoModelForSequenceClassification

import analyze
import evaluate_lds
import run_counterfactual
import train
from attribution.evidence.store import Job
from attribution.files import Refused
from attribution.training.fit import predict
from attribution.training.run import Run
from pipeline import compute_correct, compute_margin


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The checkpoint folder of a scored mnli run on rows that the small BERT can learn only in
    part.
    """
    folder = tmp_path_factory.mktemp("mnli")
    names = ("train", "validation_matched", "validation_mismatched")
    splits = {
        name: small.table("mnli", "train" if name == "train" else "validation") for name in names
    }
    where = ["--dataset_name", "mnli", "--checkpoint_dir", str(folder / "runs")]
    data = small.write(folder / "data", "mnli", splits)
    recipe = ["--num_train_epochs", "4", "--learning_rate", "1e-4"]
    train.main([*where, "--dataset_path", data, "--model_name_or_path", "demo", *recipe])
    analyze.main(where)
    return folder / "runs"


def arguments(runs, out, *extra: str) -> list[str]:
    shown = [
        "--results_dir",
        str(out),
        "--figure_path",
        str(out / "f.png"),
        "--jobs_per_device",
        "1",
    ]
    return ["--dataset_name", "mnli", "--checkpoint_dir", str(runs), *shown, *extra]


def test_correct_is_the_largest_logit_and_margins_need_more():
    logits, labels = (
        torch.tensor([[1.0, 0.9, 0.8], [0.0, 5.0, 0.0], [torch.nan] * 3]),
        torch.tensor([0, 1, 0]),
    )
    assert compute_correct(logits, labels).tolist() == [True, True, False]
    assert (compute_margin(logits, labels) > 0).tolist() == [False, True, False]
    assert not compute_correct(torch.zeros(2, 1), torch.zeros(2)).any()


def test_retrains_store_both_and_the_lds_table_says_the_accuracy(runs, tmp_path):
    plan = ["--num_masks", "3", "--num_repeats", "2", "--num_bootstrap", "20"]
    evaluate_lds.main(arguments(runs, tmp_path, *plan))
    result = json.loads((tmp_path / "lds_mnli.json").read_text())
    truth = np.load(next((runs / "mnli/retraining").glob("*/lds_*.npz")))
    assert result["retrained_accuracy"] == pytest.approx(truth["correct"].mean())
    above = truth["margins"] > 0
    assert (truth["correct"] >= above).all() and truth["correct"].mean() > above.mean()
    kept = np.load(tmp_path / "lds_mnli.npz")
    assert np.array_equal(kept["masks"], truth["masks"]) and np.array_equal(
        kept["margins"], truth["margins"]
    )
    external = [f"--{name}_path={tmp_path / 'lds_mnli.npz'}" for name in ("masks", "margins")]
    place = ["--checkpoint_dir", str(runs), "--results_dir", str(tmp_path / "external")]
    evaluate_lds.main(["--dataset_name", "mnli", *place, "--num_bootstrap", "20", *external])
    assert (
        json.loads((tmp_path / "external/lds_mnli.json").read_text())["retrained_accuracy"] is None
    )


def test_targets_and_flips_are_counted_by_correctness(runs, tmp_path, capsys):
    plan = [
        "--strategies",
        "ekfac",
        "random",
        "--num_targets",
        "12",
        "--removals",
        "2",
        "5",
        "--num_base_seeds",
        "1",
    ]
    run_counterfactual.main(arguments(runs, tmp_path, *plan, "--num_retrain_seeds", "2"))
    result = json.loads((tmp_path / "counterfactual_mnli.json").read_text())
    run = Run.open(runs, "mnli")
    _, queries = run.rows(12)
    correct = np.array(result["base_run_correct"], bool)
    assert (
        result["base_accuracy"] == correct.mean()
        and result["targets"] == np.flatnonzero(correct.all(0)).tolist()
    )
    logits = predict(
        AutoModelForSequenceClassification.from_pretrained(run.folder), queries
    )  # of seed 0, a base seed
    assert correct[0].tolist() == compute_correct(logits, torch.from_numpy(queries.labels)).tolist()
    for name, curve in result["curves"].items():
        each = np.array(result["correct"][name], dtype=float)[:, 0]  # (targets, removals, seeds)
        for level in (0, 1):
            flips = [np.mean(t[level]) < 0.5 if np.isfinite(t[level]).all() else True for t in each]
            flips = [
                f or (level == 1 and np.mean(t[0]) < 0.5) for f, t in zip(flips, each, strict=True)
            ]
            assert curve["flipped"][level + 1] == pytest.approx(np.mean(flips))


def test_the_key_of_a_job_is_its_rows_and_seed():
    job = Job.of(np.arange(3), 7)
    assert (
        job.rows.tolist() == [0, 1, 2]
        and job.key != Job.of(np.arange(3), 8).key != Job.of(np.arange(4), 7).key
    )


def test_a_contrast_of_two_classes_is_made_of_the_margins_of_both():
    logits = torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p = logits.softmax(-1)

    def slope(label: int) -> torch.Tensor:
        z = logits.clone().requires_grad_()
        margin = compute_margin(z[None], torch.tensor([label]))
        return torch.autograd.grad(margin.sum(), z)[0]

    one = torch.eye(4, dtype=torch.float64)
    for said, other in ((0, 3), (2, 1)):
        found = (1 - p[said]) * slope(said) - (1 - p[other]) * slope(other)
        assert torch.allclose(found, one[said] - one[other])


def test_a_contrast_turns_its_sign_with_its_classes_and_is_refused_where_there_is_none(
    runs, capsys
):
    where = ["--dataset_name", "mnli", "--checkpoint_dir", str(runs), "--query_index", "1"]

    def contrast(against: str) -> dict:
        capsys.readouterr()
        analyze.main([*where, "--contrast", against, "--top_k", "40", "--format", "json"])
        return json.loads(capsys.readouterr().out)

    names = {"entailment", "neutral", "contradiction"}
    analyze.main([*where, "--format", "json"])
    said = json.loads(capsys.readouterr().out)["said"]
    others = sorted(names - {said})
    found = [contrast(name) for name in others]
    for answer, name in zip(found, others, strict=True):
        assert [side["towards"] for side in answer["sides"]] == [said, name]
        assert all(row["score"] > 0 for row in answer["sides"][0]["rows"])
        assert all(row["score"] < 0 for row in answer["sides"][1]["rows"])
    assert found[0]["sides"][0]["rows"] != found[1]["sides"][0]["rows"]
    with pytest.raises(Refused, match="what the model said"):
        contrast(said)
    with pytest.raises(Refused, match="does not know the query label"):
        contrast("no class")
