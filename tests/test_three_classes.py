"""With three classes "correct" is the largest logit, not a margin above 0, in every script."""

import json
import shutil

import numpy as np
import pytest
import small
import torch
from transformers import AutoModelForSequenceClassification

import analyze
import evaluate_lds
import run_counterfactual
import train
from attribution.cli import options_of
from attribution.evidence.store import Job
from attribution.files import Refused
from attribution.influence.analysis import Influence
from attribution.influence.settings import Settings, with_members
from attribution.training.fit import predict
from attribution.training.queries import ask
from attribution.training.run import Run
from pipeline import compute_correct, compute_loss, compute_margin, model_inputs


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
    small.write(folder / "data", "mnli", splits)
    train.main([*where, *run_of(folder / "runs")])
    analyze.main(where)
    return folder / "runs"


def run_of(runs) -> list[str]:
    """Arguments of train.py for the run in this checkpoint folder."""
    recipe = ["--num_train_epochs", "4", "--learning_rate", "1e-4"]
    return ["--dataset_path", str(runs.parent / "data"), "--model_name_or_path", "demo", *recipe]


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


def test_a_contrast_of_members_is_the_influence_on_the_log_odds_of_two_classes(runs, tmp_path):
    """With no curvature: minus the gradient of the log-odds times that of a row's loss, by autograd
    over the linear layers, each member divided by its mean squared gradient.
    """
    folder = shutil.copytree(runs, tmp_path / "runs")
    members = ["--num_members", "2"]
    where = ["--dataset_name", "mnli", "--checkpoint_dir", str(folder)]
    train.main([*where, *members, *run_of(runs)])
    args = analyze.parse_args([*where, *members, "--factor_strategy", "identity"])
    run = Run.open(folder, "mnli")
    rows, queries = run.rows(3)
    influence = Influence(run, rows, queries, with_members(options_of(Settings, args), run))
    texts = [queries.columns_of(i) for i in range(3)]
    asked = ask(run, texts, [0, 1, 0])
    found = influence.contrasts(asked, 2)

    def gradients(model, data, measure) -> torch.Tensor:
        """(rows, weights) of measure(logits, labels)."""
        linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
        weights = [x for m in linear for x in m.parameters()]
        found = []
        for i in range(len(data)):
            batch = data.batch([i])
            value = measure(model(**model_inputs(batch)).logits, batch["labels"])
            parts = torch.autograd.grad(value, weights)
            found.append(torch.cat([x.flatten() for x in parts]).double())
        return torch.stack(found)

    scores, divisors = [], []
    for one in influence.analyses:
        model = one.run.model().eval()
        losses = gradients(model, rows, compute_loss)
        odds = gradients(model, asked.data, lambda z, y: z[0, y[0]] - z[0, 2])
        scores.append(-odds @ losses.T)
        divisors.append((losses**2).sum(1).mean())
    mean = sum(x / d for x, d in zip(scores, divisors, strict=True)) / 2 * sum(divisors) / 2
    assert np.abs(found - mean.numpy()).max() < 1e-4 * mean.abs().max()


@pytest.mark.parametrize("strategy", ["ekfac", "replay"])
def test_a_contrast_turns_its_sign_with_its_classes_and_is_refused_where_there_is_none(
    runs, capsys, strategy
):
    where = ["--dataset_name", "mnli", "--checkpoint_dir", str(runs), "--query_index", "1"]
    if strategy == "replay":
        analyze.main([*where[:4], "--factor_strategy", "replay"])
        capsys.readouterr()
        where += ["--factor_strategy", "replay"]

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
        assert answer["query"] == 1
        assert all(row["score"] > 0 for row in answer["sides"][0]["rows"])
        assert all(row["score"] < 0 for row in answer["sides"][1]["rows"])
    assert found[0]["sides"][0]["rows"] != found[1]["sides"][0]["rows"]
    with pytest.raises(Refused, match="what the model said"):
        contrast(said)
    with pytest.raises(Refused, match="does not know the label"):
        contrast("no class")
    where[4:6] = ["--query_text", *found[0]["texts"]]  # the same as a custom query
    (custom,) = [contrast(name) for name in others[:1]]
    assert custom["query"] is None
    for mine, kept in zip(custom["sides"], found[0]["sides"], strict=True):
        pairs = [{row["row"]: row["score"] for row in side["rows"]} for side in (mine, kept)]
        assert pairs[0] == pytest.approx(pairs[1], rel=1e-3)
