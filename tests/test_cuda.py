"""The scripts on a real GPU: what they compute there is what the CPU computes, up to rounding.
Skipped without one.

All other tests run on the CPU; `test_pretended_gpu.py` tells what can be told without a GPU.
Tolerances are shares of the norm. On an H200, float32 scores differed by 1e-6, bfloat16 by 2e-4 and
TF32 by 1e-3.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from running import GPUS, LDS, QUERIES, QUICK, ROOT, SMALL, analyze_quickly, close, scores_of

import train
from attribution.files import read_json

pytestmark = pytest.mark.skipif(GPUS == 0, reason="no GPU here")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]


def on_gpu(*command: str) -> subprocess.CompletedProcess:
    """A command run to its end in the repository with the first GPU; a script, by this Python."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "0", "OMP_NUM_THREADS": "1"}
    if command[0].endswith(".py"):
        command = (sys.executable, *command)
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )


def analyzed(checkpoints: Path, *flags: str, launcher=()) -> None:
    """Runs analyze.py with the quick arguments and these on the GPU."""
    done = on_gpu(*launcher, "analyze.py", *QUICK, "--checkpoint_dir", str(checkpoints), *flags)
    assert done.returncode == 0 and "cuda:0" in done.stdout, done.stdout + done.stderr


@pytest.fixture(scope="module")
def gpu_run(tmp_path_factory) -> Path:
    """A checkpoint folder with the small run, trained on the GPU."""
    folder = tmp_path_factory.mktemp("gpu")
    done = on_gpu("train.py", *SMALL, "--checkpoint_dir", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


def test_training_ends_where_it_ends_on_the_cpu(gpu_run, tmp_path):
    train.main([*SMALL, "--checkpoint_dir", str(tmp_path)])
    found, expected = (read_json(folder / "demo/run.json") for folder in (gpu_run, tmp_path))
    assert found["device"] != expected["device"]
    for name, value in expected["evaluation"].items():
        assert found["evaluation"][name] == pytest.approx(value, abs=1e-3), name


@pytest.mark.parametrize(
    ("flags", "tolerance"),
    [
        ([], 1e-4),
        (["--fisher", "exact"], 1e-4),
        (["--covariance_dtype", "mixed"], 1e-4),
        (["--factor_strategy", "diagonal"], 1e-4),
        (["--query_gradient_rank", "4"], 1e-3),
        (["--use_half_precision"], 1e-2),
        (["--tf32"], 1e-2),
    ],
)
def test_scores_are_the_cpus(gpu_run, tmp_path, flags, tolerance):
    folder = shutil.copytree(gpu_run, tmp_path / "checkpoints")
    analyze_quickly(folder, *flags)
    name = next((folder / "demo/influence/scores").iterdir()).name
    expected = scores_of(folder, name)
    analyzed(folder, *flags, "--overwrite")
    assert close(scores_of(folder, name), expected, tolerance)


def test_two_processes_may_share_it_for_scores_but_not_for_training(gpu_run, tmp_path):
    folder = shutil.copytree(gpu_run, tmp_path / "checkpoints")
    analyze_quickly(folder)
    expected = scores_of(folder)
    analyzed(folder, "--overwrite", launcher=TORCHRUN)
    assert close(scores_of(folder), expected, 1e-4)
    refused = on_gpu(*TORCHRUN, "train.py", *SMALL, "--checkpoint_dir", str(tmp_path / "two"))
    assert refused.returncode != 0 and "would share GPUs" in refused.stderr


def test_retrains_share_it(gpu_run, tmp_path):
    folder = shutil.copytree(gpu_run, tmp_path / "checkpoints")
    assert on_gpu("analyze.py", *QUERIES, "--checkpoint_dir", str(folder)).returncode == 0
    done = on_gpu("evaluate_lds.py", *LDS.arguments(folder, tmp_path, "--jobs_per_device", "2"))
    assert done.returncode == 0, done.stderr
    assert "ekfac" in (read_json(tmp_path / "results/lds_demo.json") or {})["scores"]
