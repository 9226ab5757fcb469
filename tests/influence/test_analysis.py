"""What is held of the queries is planned, and precision enters kronfluence's arguments where it is
wanted.
"""

import pytest
import torch
from running import influence_of

from attribution.influence.settings import Settings, make_factor_arguments, make_score_arguments


@pytest.mark.parametrize(("passes", "batch"), [(1, 4), (1, 32), (3, 32), (3, 2)])
def test_query_batches_fill_as_few_passes_as_memory_allows(run_copy, monkeypatch, passes, batch):
    monkeypatch.setattr("attribution.engine.memory.cheapest_side", lambda *_: (passes, True))
    influence = influence_of(run_copy, "--query_batch_size", str(batch))  # 9 queries
    plan = influence.analyses[0].plan("pairwise")
    assert 1 <= plan["query_batch"] <= batch
    assert -(-9 // plan["pass_queries"]) == passes


def test_half_precision_rounds_gradients_and_leaves_model_rotations_and_covariances():
    settings = Settings(use_half_precision=True, query_gradient_rank=3, damping_factor=0.5)
    factor, score = make_factor_arguments(settings), make_score_arguments(settings)
    assert {factor.per_sample_gradient_dtype, factor.lambda_dtype, score.score_dtype} == {
        torch.bfloat16
    }
    assert factor.amp_dtype is score.amp_dtype is None and score.precondition_dtype == torch.float32
    assert factor.activation_covariance_dtype == factor.gradient_covariance_dtype == torch.float64
    assert (score.damping_factor, score.query_gradient_low_rank) == (0.5, 3)
    stock = make_factor_arguments(Settings(use_half_precision=True, stock=True))
    assert stock.amp_dtype == stock.activation_covariance_dtype == torch.bfloat16
