"""--fisher exact: the mean over all labels instead of sampled ones, in one pass for two classes."""

import pytest
import torch
from engine.test_modules import N, Rows, arguments, make_analyzer, tiny_bert, work_of
from running import DEMO, analyze_quickly, influence_of, refusal, scores_of
from safetensors.torch import load_file
from torch import nn

import analyze
from attribution.engine.factors import fit_factors
from attribution.engine.memory import Plan
from attribution.engine.task import InfluenceTask
from attribution.fisher import fisher_column
from pipeline import compute_loss


@pytest.mark.parametrize(
    "logits", [[0.3, -1.0], [900.0, 0.0], [0.1, 2.0, -1.0], [-40.0, 0.0, 60.0], [1.0, 2, 3, 4, 5]]
)
def test_columns_are_a_root_of_the_covariance_of_the_logits_gradient(logits):
    z = torch.tensor([logits], dtype=torch.float64, requires_grad=True)
    columns = [
        torch.autograd.grad(fisher_column(z, j).sum(), z)[0][0] for j in range(len(logits) - 1)
    ]
    p = z.detach()[0].softmax(0)
    assert torch.allclose(
        sum(torch.outer(c, c) for c in columns),
        p.diag() - torch.outer(p, p),
        rtol=1e-12,
        atol=1e-15,
    )


def test_two_certain_classes_keep_a_curvature_above_zero():
    """sqrt(p0 p1) comes from log-probabilities: 1 - p would be 0 in float64."""
    z = torch.tensor([[50.0, 0.0]], requires_grad=True)
    gradient = torch.autograd.grad(fisher_column(z, 0).sum(), z)[0]
    assert torch.allclose(gradient, torch.tensor([[1.0, -1.0]]) * 2.718281828**-25, rtol=1e-5)


def all_labels(logits: torch.Tensor) -> list[tuple[float, torch.Tensor]]:
    """(probability, label) whose squared gradients have the right mean: every class, or two points
    of the Gaussian.
    """
    z = logits.detach()[0]
    if len(z) == 1:
        return [(0.5, z + 0.5**0.5), (0.5, z - 0.5**0.5)]
    return [(p.item(), torch.tensor([c])) for c, p in enumerate(z.softmax(0))]


def gradients(num_labels: int, train: Rows):
    """Yields (probability, module name -> (g (T, D_out), a (T, D_in))) for every row and label, by
    autograd alone.
    """
    model, seen = tiny_bert(num_labels=num_labels), {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(
                lambda _, i, o, name=name: o.retain_grad() or seen.update({name: (i[0], o)})
            )
    modules = dict(model.named_modules())
    for row in range(N):
        batch = train.batch([row])
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        for p, label in all_labels(model(**inputs).logits):
            compute_loss(model(**inputs).logits, label).backward()
            found = {}
            for name, (a, out) in seen.items():
                a, g = a.detach().reshape(-1, a.shape[-1]), out.grad.reshape(-1, out.shape[-1])
                ones = torch.ones(len(a), 1, dtype=a.dtype)
                found[name] = g, a if modules[name].bias is None else torch.cat([a, ones], 1)
            yield p, found


@pytest.mark.parametrize("num_labels", [1, 2, 3])
def test_factors_are_the_mean_over_all_labels(num_labels, tmp_path, monkeypatch):
    """Covariances, lambda and counts of the tiny BERT in float64, in several parts and groups,
    against autograd.
    """
    monkeypatch.setattr(
        "engine.test_modules.tiny_bert", lambda dtype, _: tiny_bert(dtype, num_labels)
    )
    monkeypatch.setattr(
        "engine.test_modules.InfluenceTask", lambda seed: InfluenceTask(seed, num_labels)
    )
    train = Rows(N, 1, regression=num_labels == 1)
    train.labels = train.labels.clamp(max=max(num_labels - 1, 1))
    analyzer = make_analyzer(True, tmp_path, torch.float64, num_labels == 1)
    work = work_of(analyzer, "factors_f", Plan(budget=40, count=3))
    fit_factors(analyzer, work, "f", train, arguments("ekfac", torch.float64)[0])
    stored = {path.stem: load_file(path) for path in (tmp_path / "factors/f").glob("*.safetensors")}

    inputs, outputs, corrected = {}, {}, {}
    for p, found in gradients(num_labels, train):
        for name, (g, a) in found.items():
            bases = [
                stored[f"{kind}_eigenvectors"][name].double() for kind in ("gradient", "activation")
            ]
            terms = (p * a.T @ a, p * g.T @ g, p * (bases[0].T @ g.T @ a @ bases[1]).square())
            for total, term in zip((inputs, outputs, corrected), terms, strict=True):
                total[name] = total.get(name, 0) + term
    for name in inputs:
        for kind, expected in (
            ("activation", inputs),
            ("gradient", outputs),
        ):  # of a symmetric sum one half is kept
            found = stored[f"{kind}_covariance"][name].triu()
            assert torch.allclose(found, expected[name].triu(), rtol=1e-9, atol=1e-12), (kind, name)
        assert torch.allclose(
            stored["lambda_matrix"][name].double(), corrected[name], rtol=1e-5, atol=1e-9
        ), name
        once = name == "classifier" or "pooler" in name  # they read one token a row
        tokens = N if once else int(train.lengths.sum())
        for what, count in (
            ("activation_covariance", tokens),
            ("gradient_covariance", tokens),
            ("lambda", N),
        ):
            assert stored[f"num_{what}_processed"][name].item() == count, (what, name)


def test_exact_factors_have_no_chance_in_them_and_names_of_their_own(run_copy):
    analyze_quickly(run_copy)
    first = scores_of(run_copy)
    analyze_quickly(run_copy, "--seed", "7")  # the label seed is no part of what made them
    analyze_quickly(run_copy, "--seed", "7", "--overwrite")
    assert torch.equal(scores_of(run_copy), first)
    analyze_quickly(run_copy, "--fisher", "exact")
    assert torch.equal(scores_of(run_copy, "ekfac_exact_damping0.0001"), first)
    analyze_quickly(run_copy, "--fisher", "sampled")
    assert (run_copy / "demo/influence/factors/ekfac_sampled").is_dir()
    sampled = scores_of(run_copy, "ekfac_sampled_damping0.0001")
    correlation = torch.corrcoef(torch.stack([first.flatten(), sampled.flatten()]))[0, 1]
    assert not torch.equal(first, sampled) and correlation > 0.5


def test_a_name_gives_its_flags_and_identity_has_no_fisher_matrix(run_copy, capsys):
    (analysis,) = influence_of(
        run_copy, "--fisher", "exact", "--use_half_precision", "--query_gradient_rank", "8"
    ).analyses
    assert analysis.settings.factors_name == "ekfac_exact_half"
    assert analysis.factor_parts["fisher"] == "exact" and "seed" not in analysis.factor_parts
    assert analysis.settings.flags == (
        "--factor_strategy ekfac --fisher exact --use_half_precision --query_gradient_rank 8 "
        "--damping_factor 0.0001"
    )
    (identity,) = influence_of(
        run_copy, "--fisher", "exact", "--factor_strategy", "identity"
    ).analyses
    assert identity.settings.name == "identity" and "fisher" not in identity.factor_parts
    refused = [*DEMO, "--checkpoint_dir", str(run_copy), "--stock", "--fisher", "exact"]
    assert "leave out one of --stock and --fisher" in refusal(capsys, analyze.main, refused)
