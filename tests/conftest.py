"""Shared set-up of the tests: quiet libraries, one thread, cheap garbage collection, one small
trained run.
"""

import gc
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from running import ROOT, SMALL

import train
from pipeline import quiet_libraries

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # what tests compare bit for bit is promised of the CPU
quiet_libraries()
torch.set_num_threads(1)
settings.register_profile("no deadline", deadline=None)  # a busy machine is slow, not wrong
settings.load_profile("no deadline")


@pytest.fixture(autouse=True)
def cheap_garbage_collection():
    """kronfluence collects garbage in every phase: 0.3 s with all the libraries loaded."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A checkpoint folder with a demo run on 120 rows; tests copy it (see `run_copy`) before they
    change it.
    """
    folder = tmp_path_factory.mktemp("trained")
    train.main([*SMALL, "--checkpoint_dir", str(folder)])
    return folder


@pytest.fixture
def run_copy(trained, tmp_path) -> Path:
    """A copy of the small run that the test may change."""
    return shutil.copytree(trained, tmp_path / "checkpoints")


@pytest.fixture
def copied(scored, tmp_path) -> Path:
    """A copy of the module's own fixture `scored` (a run with scores and retrains) that the test
    may change.
    """
    return shutil.copytree(scored, tmp_path / "checkpoints")


@pytest.fixture(scope="session")
def glue_dir() -> Path:
    """Real GLUE data: $GLUE_DIR, by default ../shared/glue. Tests that need it skip where there is
    none.
    """
    folder = Path(os.environ.get("GLUE_DIR", ROOT.parent / "shared" / "glue"))
    if not folder.is_dir():
        pytest.skip(f"no GLUE data in {folder}; set GLUE_DIR")
    return folder
