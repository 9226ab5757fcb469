"""The fast path equals kronfluence's own, and a dense formula written without kronfluence."""

import logging
import shutil
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from kronfluence.analyzer import Analyzer
from kronfluence.analyzer import prepare_model as prepare_stock
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.module.linear import TrackedLinear
from kronfluence.module.tracked_module import TrackedModule
from kronfluence.utils.dataset import DataLoaderKwargs
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from attribution.data.dataset import collate
from attribution.engine import modules, scoring
from attribution.engine.analyzer import EigenAnalyzer
from attribution.engine.factors import fit_factors
from attribution.engine.memory import Plan, plan_pairwise, plan_parts, shapes_of
from attribution.engine.resume import Work
from attribution.engine.scoring import Scorer
from attribution.engine.task import InfluenceTask
from attribution.files import checksums
from attribution.processes import ALONE

N, Q = 23, 7  # an uneven last batch for every batch size used here


class Rows(torch.utils.data.Dataset):
    """Random token rows of uneven length, with the methods of GlueDataset that need no text."""

    def __init__(self, count: int, seed: int, regression: bool = False) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.lengths = torch.randint(3, 12, (count,), generator=generator).numpy()
        self.ids = torch.randint(1, 40, (count, 12), generator=generator)
        self.labels = torch.randint(0, 3, (count,), generator=generator)
        if regression:
            self.labels = torch.rand(count, generator=generator, dtype=torch.float64) * 5

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int):
        return self, int(index)

    def first(self, count: int) -> "Rows":
        """The data set itself: tests fit factors on all of its rows."""
        assert count >= len(self)
        return self

    def batch(self, rows, width=None):
        rows = torch.as_tensor(rows)
        lengths = torch.from_numpy(self.lengths)[rows]
        mask = (torch.arange(width or int(lengths.max())) < lengths[:, None]).long()
        ids = self.ids[rows, : mask.shape[1]] * mask
        return {"input_ids": ids, "attention_mask": mask, "labels": self.labels[rows], "row": rows}


def tiny_bert(dtype=torch.float64, num_labels: int = 3) -> nn.Module:
    """Two layers, hidden 8; the second layer's output projections have no bias."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=16,
        num_labels=num_labels,
        initializer_range=0.4,
    )
    model = BertForSequenceClassification(config).to(dtype).eval()
    model.bert.encoder.layer[1].output.dense.bias = None
    model.bert.encoder.layer[1].attention.self.key.bias = None
    return model


def arguments(strategy: str, dtype, rank=None, damping=1e-3):
    factor = FactorArguments(strategy=strategy, eigendecomposition_dtype=torch.float64)
    for name in ("activation_covariance", "gradient_covariance", "per_sample_gradient", "lambda"):
        setattr(factor, f"{name}_dtype", dtype)
    score = ScoreArguments(damping_factor=damping, query_gradient_low_rank=rank, use_full_svd=True)
    for name in ("query_gradient_svd", "per_sample_gradient", "precondition", "score"):
        setattr(score, f"{name}_dtype", dtype)
    return factor, score


def make_analyzer(fast: bool, folder: Path, dtype, regression: bool):
    """kronfluence's Analyzer of the tiny BERT, or the EigenAnalyzer."""
    task = InfluenceTask(seed=3)
    model = tiny_bert(dtype, 1 if regression else 3)
    model = (modules.prepare_model if fast else prepare_stock)(model, task)
    if fast:
        return EigenAnalyzer(folder, model, task, log_level=logging.ERROR)
    kwargs = {"output_dir": str(folder), "disable_tqdm": True, "log_level": logging.ERROR}
    return Analyzer("kronfluence", model, task, **kwargs)


def work_of(analyzer: EigenAnalyzer, name: str, plan: Plan) -> Work:
    """New work in the analyzer's folder, see `EigenAnalyzer.factors_output_dir`."""
    folder = analyzer.influence / "kronfluence" / name
    return Work(folder, {}, name, lambda: asdict(plan), False)


def stored_factors(analyzer) -> dict:
    """Covariances, eigenvectors, eigenvalues, lambda matrices and counts under the name f."""
    factors: dict = {}
    for load in (
        analyzer.load_covariance_matrices,
        analyzer.load_eigendecomposition,
        analyzer.load_lambda_matrices,
    ):
        factors |= load("f") or {}
    return factors


def run_stock(folder: Path, strategy: str, dtype, rank, regression: bool):
    """Factors and scores by kronfluence's own calls, phase by phase."""
    train = Rows(N, 1, regression)
    queries = Rows(Q, 2, regression)
    analyzer = make_analyzer(False, folder, dtype, regression)
    factor_args, score_args = arguments(strategy, dtype, rank)
    loading = {"dataloader_kwargs": DataLoaderKwargs(collate_fn=partial(collate, pad_to=12))}
    fitting = {"dataset": train, "per_device_batch_size": 5, "factor_args": factor_args} | loading
    analyzer.task.phase = "covariance"
    if strategy in ("kfac", "ekfac"):
        analyzer.fit_covariance_matrices("f", **fitting)
        analyzer.perform_eigendecomposition("f", factor_args=factor_args)
    analyzer.task.phase = "lambda"
    if strategy != "kfac":  # for identity it fits nothing, but leaves its arguments
        analyzer.fit_lambda_matrices("f", **fitting)
    loading |= {"train_dataset": train, "per_device_train_batch_size": 5}
    analyzer.compute_pairwise_scores(
        "s",
        "f",
        query_dataset=queries,
        per_device_query_batch_size=3,
        score_args=score_args,
        **loading,
    )
    analyzer.compute_self_scores("o", "f", score_args=arguments(strategy, dtype)[1], **loading)
    pairwise = analyzer.load_pairwise_scores("s")["all_modules"]
    own = analyzer.load_self_scores("o")["all_modules"]
    return stored_factors(analyzer), pairwise, own


def run_ours(
    folder: Path,
    strategy: str,
    dtype,
    rank,
    regression: bool,
    rotate: str,
    budget: int,
    from_factors: Path | None,
    queries_batch: int,
):
    """Factors and scores of the fast path; queries in passes of two batches."""
    train = Rows(N, 1, regression)
    queries = Rows(Q, 2, regression)
    analyzer = make_analyzer(True, folder, dtype, regression)
    factor_args, score_args = arguments(strategy, dtype, rank)
    where = shapes_of(analyzer.model), torch.device("cpu"), ALONE
    if from_factors is None:
        plan = plan_parts(*where, "factors", budget, train.lengths, 0)
        fit_factors(analyzer, work_of(analyzer, "factors_f", plan), "f", train, factor_args)
    else:
        analyzer.factors_output_dir = lambda factors_name: from_factors
    analyzer.task.phase = "lambda"
    factors = analyzer.load_all_factors("f")
    plan = plan_parts(*where, "pairwise", budget, train.lengths, Q)
    plan = plan_pairwise(
        plan,
        *where,
        train.lengths,
        queries.lengths,
        queries_batch,
        score_args,
    )
    if rotate != "auto":
        plan = replace(plan, rotate_rows=rotate == "rows")
    plan = replace(plan, query_batch=queries_batch, pass_queries=min(Q, 2 * queries_batch))
    work = work_of(analyzer, "scores_s", plan)
    pairwise = Scorer(analyzer, factors, factor_args, score_args, train, queries, work).compute()
    plan = plan_parts(*where, "self", budget, train.lengths, 0)
    work = work_of(analyzer, "scores_o", plan)
    score_args = arguments(strategy, dtype)[1]
    own = Scorer(analyzer, factors, factor_args, score_args, train, None, work).compute()
    return stored_factors(analyzer), pairwise, own


def run(
    fast: bool,
    folder: Path,
    strategy: str,
    dtype=torch.float64,
    rank=None,
    rotate="auto",
    budget=40,
    regression=False,
    from_factors=None,
    queries_batch=3,
):
    """(factors, pairwise scores (Q, N), self scores (N,)) of the tiny BERT, by one of two paths.

    rotate: "rows", "queries", or the cheaper one. from_factors: folder of factors to score with.
    """
    common = (folder, strategy, dtype, rank, regression)
    if not fast:
        return run_stock(*common)
    return run_ours(*common, rotate, budget, from_factors, queries_batch)


@pytest.fixture(autouse=True)
def scores_in_float64(monkeypatch):
    """Scores are stored in float32, which would hide differences."""
    monkeypatch.setattr(scoring, "STORED", torch.float64)


def distance(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """Frobenius norm of the difference relative to the reference."""
    return ((ours.double() - reference.double()).norm() / reference.double().norm()).item()


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """strategy (and low rank, regression) -> (folder of factors, results) of kronfluence as it
    comes, in float64.
    """
    done = {}

    def get(strategy, rank=None, regression=False):
        key = strategy, rank, regression
        if key not in done:
            folder = tmp_path_factory.mktemp("stock")
            results = run(False, folder, strategy, rank=rank, regression=regression)
            done[key] = folder / "kronfluence" / "factors_f", results
        return done[key]

    return get


@pytest.mark.parametrize("strategy", ["identity", "diagonal", "kfac", "ekfac"])
@pytest.mark.parametrize("rotate", ["rows", "queries"])
def test_scores_equal_stock_in_float64_whichever_side_is_rotated(stock, tmp_path, strategy, rotate):
    folder, (_, pairwise, own) = stock(strategy)
    _, ours, ours_own = run(True, tmp_path, strategy, rotate=rotate, from_factors=folder)
    assert distance(ours, pairwise) < 1e-9
    assert distance(ours_own, own) < 1e-9


@pytest.mark.parametrize("strategy", ["kfac", "ekfac"])
def test_directions_without_a_gradient_of_the_rows_are_left_out_of_no_score(
    tmp_path, monkeypatch, strategy
):
    """Five rows reach five directions of eight; in float64 stock's scores are the same."""
    monkeypatch.setitem(globals(), "N", 5)
    _, pairwise, own = run(False, tmp_path / "stock", strategy, regression=True)
    real = modules.prepare_model

    def prepared(model, task):
        for module in modules.tracked(model := real(model, task)):
            module.spanned = (True, True)
        return model

    monkeypatch.setattr(modules, "prepare_model", prepared)
    folder = tmp_path / "stock/kronfluence/factors_f"
    factors, ours, ours_own = run(
        True, tmp_path / "ours", strategy, regression=True, from_factors=folder
    )
    left_out = {name: modules.unreached(v) for name, v in factors["gradient_eigenvalues"].items()}
    assert left_out["bert.pooler.dense"].sum() == 3
    assert distance(ours, pairwise) < 1e-9
    assert distance(ours_own, own) < 1e-9


def test_factors_equal_stock_in_float64(stock, tmp_path):
    folder, (reference, _, _) = stock("ekfac")
    ours, pairwise, _ = run(True, tmp_path, "ekfac")
    for name in ("activation_covariance", "gradient_covariance"):
        assert set(ours[name]) == set(reference[name])
        for module in reference[name]:
            assert distance(ours[name][module], reference[name][module]) < 1e-9, (name, module)
    for name in (
        "num_activation_covariance_processed",
        "num_gradient_covariance_processed",
        "num_lambda_processed",
    ):
        assert ours[name] == reference[name]
    for name in ("activation_eigenvalues", "gradient_eigenvalues"):
        for module in reference[name]:
            assert torch.allclose(ours[name][module], reference[name][module], atol=1e-12)


def test_low_rank_scores_equal_stock_with_full_svd(stock, tmp_path):
    folder, (_, pairwise, _) = stock("ekfac", rank=2)
    _, ours, _ = run(True, tmp_path, "ekfac", rank=2, from_factors=folder)
    assert distance(ours, pairwise) < 1e-9


def test_lambda_equals_stock_from_the_same_eigenvectors(stock, tmp_path):
    """From the same stored eigenvectors: single entries of degenerate eigenspaces mean nothing."""
    folder, (reference, _, _) = stock("ekfac")
    train = Rows(N, 1)
    for name, threshold in (("tokens", 1e9), ("gradients", -1)):
        analyzer = make_analyzer(True, tmp_path / name, torch.float64, False)
        work = work_of(analyzer, "factors_f", Plan(40, 1))
        shutil.copytree(folder, work.folder, dirs_exist_ok=True)
        work.record["parts"] = {
            "covariance": checksums(work.folder.glob("*covariance*.safetensors")),
            "eigendecomposition": checksums(work.folder.glob("*_eigen*.safetensors")),
        }
        # Both sides of the choice of what is rotated.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                modules, "rotation_pays", lambda tokens, d_in, d_out, t=threshold: tokens < t
            )
            fit_factors(analyzer, work, "f", train, arguments("ekfac", torch.float64)[0])
        vectors = analyzer.load_eigendecomposition("f")["activation_eigenvectors"]
        for module, basis in reference["activation_eigenvectors"].items():
            assert torch.equal(vectors[module], basis)
        ours = analyzer.load_lambda_matrices("f")["lambda_matrix"]
        for module, matrix in reference["lambda_matrix"].items():
            assert distance(ours[module], matrix) < 1e-9, (name, module)


def test_regression_scores_equal_stock(stock, tmp_path):
    folder, (_, pairwise, own) = stock("ekfac", regression=True)
    _, ours, ours_own = run(True, tmp_path, "ekfac", regression=True, from_factors=folder)
    assert distance(ours, pairwise) < 1e-9 and distance(ours_own, own) < 1e-9


def test_float32_is_within_the_noise_of_stock(stock, tmp_path):
    _, (_, exact, _) = stock("ekfac")
    _, theirs, _ = run(False, tmp_path / "stock", "ekfac", dtype=torch.float32)
    _, ours, _ = run(True, tmp_path / "ours", "ekfac", dtype=torch.float32)
    assert distance(ours, exact) < 3 * distance(theirs, exact) + 1e-6


def test_nothing_changes_with_batch_size_or_token_budget(tmp_path):
    _, first, own = run(True, tmp_path / "a", "ekfac", budget=12, queries_batch=1)
    _, second, other = run(True, tmp_path / "b", "ekfac", budget=1000, queries_batch=7)
    assert distance(second, first) < 1e-9 and distance(other, own) < 1e-9


def test_scores_equal_the_dense_formula_without_kronfluence(stock, tmp_path):
    """EKFAC by hand: full gradients from autograd, explicit Kronecker eigenbases, a plain matrix
    product.
    """
    folder, (factors, _, _) = stock("ekfac")
    _, ours, ours_own = run(True, tmp_path, "ekfac", from_factors=folder)
    model, task = tiny_bert(), InfluenceTask()
    layers = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)
    }

    def gradients(value: torch.Tensor) -> dict[str, torch.Tensor]:
        model.zero_grad()
        value.backward()
        out = {}
        for name, layer in layers.items():
            bias = [] if layer.bias is None else [layer.bias.grad[:, None]]
            out[name] = torch.cat([layer.weight.grad, *bias], dim=1)
        return out

    train, queries = Rows(N, 1), Rows(Q, 2)
    rows = [gradients(task.compute_train_loss(train.batch([i]), model)) for i in range(N)]
    asked = [gradients(task.compute_measurement(queries.batch([q]), model)) for q in range(Q)]
    expected, expected_own = (
        torch.zeros(Q, N, dtype=torch.float64),
        torch.zeros(N, dtype=torch.float64),
    )
    for name in layers:
        basis = torch.kron(
            factors["gradient_eigenvectors"][name], factors["activation_eigenvectors"][name]
        )
        inverse = 1 / (factors["lambda_matrix"][name].flatten() / N + 1e-3)
        curvature_inverse = basis @ torch.diag(inverse) @ basis.t()
        g = torch.stack([row[name].flatten() for row in rows])
        expected += (
            torch.stack([query[name].flatten() for query in asked]) @ curvature_inverse @ g.t()
        )
        expected_own += ((g @ curvature_inverse) * g).sum(1)
    assert distance(ours, expected) < 1e-9 and distance(ours_own, expected_own) < 1e-9


def test_registration_leaks_nothing():
    before = dict(TrackedModule.SUPPORTED_MODULES)
    model = modules.prepare_model(tiny_bert(), InfluenceTask())
    assert any(isinstance(module, modules.EigenLinear) for module in model.modules())
    assert before == TrackedModule.SUPPORTED_MODULES and before[nn.Linear] is TrackedLinear
    stock_model = prepare_stock(tiny_bert(), InfluenceTask())
    assert not any(isinstance(module, modules.EigenLinear) for module in stock_model.modules())


def test_modules_that_read_one_tensor_share_its_covariance_and_rotation(tmp_path):
    factors, _, _ = run(True, tmp_path, "ekfac")
    layer = "bert.encoder.layer.0.attention.self."
    vectors = factors["activation_eigenvectors"]
    assert torch.equal(vectors[layer + "query"], vectors[layer + "value"])
