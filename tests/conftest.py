"""Shared set-up of the tests: quiet libraries, one thread, and cheap garbage collection."""

import gc

import pytest
import torch

from pipeline import quiet_libraries

quiet_libraries()
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def cheap_garbage_collection():
    """kronfluence collects garbage in every phase, which takes 0.3 s with all the libraries loaded."""
    gc.freeze()
    yield
    gc.unfreeze()
