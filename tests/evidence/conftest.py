"""Set-up of the tests of what evidence is made of: the small run, ready to be retrained."""

import pytest
import torch

from attribution.evidence.retraining import Retrainer
from attribution.training.run import open_data, open_run


@pytest.fixture(scope="session")
def retrain(trained) -> Retrainer:
    """Retrains the small run, for 20 queries; calls leave it as it was."""
    folder, run = open_run(trained, "demo")
    train, queries = open_data(folder, run, None, 20)
    return Retrainer(run, None, train, queries, run["recipe"], torch.device("cpu"))
