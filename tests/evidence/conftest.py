"""Set-up of the tests of evidence: the small run, ready to be retrained."""

import pytest
import torch

from attribution.evidence.retraining import Retrainer
from attribution.training.run import Run


@pytest.fixture(scope="session")
def retrain(trained) -> Retrainer:
    """Retrains the small run, for 20 queries; calls leave it as it was."""
    run = Run.open(trained, "demo")
    train, queries = run.rows(20)
    assert run.recipe is not None
    return Retrainer(run, None, train, queries, run.recipe, torch.device("cpu"))
