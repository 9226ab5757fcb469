"""The default paths work against a hub, through the real client libraries; a silent hub is noticed
early.
"""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest
from hub_standin import serve
from running import ROOT, save_tables

from attribution import hub as hub_module
from attribution.data.demo import read_rows
from attribution.data.tasks import TASKS
from attribution.files import Refused
from pipeline import DEMO_MODEL

# The commands of the README, with their own arguments; the data behind the names are the demo's.
TRAIN_SST2 = (
    "train.py --dataset_name sst2 --train_batch_size 32 --eval_batch_size 32 --learning_rate 3e-05 "
    "--weight_decay 0.01 --num_train_epochs 3 --seed 1004"
)
TRAIN_RTE = (
    "train.py --dataset_name rte --train_batch_size 32 --eval_batch_size 32 --learning_rate 2e-05 "
    "--weight_decay 0.01 --num_train_epochs 3 --seed 0"
)
SST2 = (
    "analyze.py --dataset_name sst2 --query_batch_size 175 --train_batch_size 128 "
    "--factor_strategy ekfac"
)
RTE = "analyze.py --dataset_name rte --query_batch_size 70 --train_batch_size 128 --factor_strategy"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """nyu-mll/glue with two tasks of 96 demo rows, and the small BERT as bert-base-cased."""
    folder = tmp_path_factory.mktemp("hub")
    tables: dict[str, dict] = {"sst2": {}, "rte": {}}
    for task, columns in (("sst2", ("sentence",)), ("rte", ("sentence1", "sentence2"))):
        for split, rows in read_rows().items():
            table = dict.fromkeys(columns, rows["sentence"][:96]) | {"label": rows["label"][:96]}
            names = list(TASKS[task].class_names)
            data = datasets.Dataset.from_dict(table).cast_column(
                "label", datasets.ClassLabel(names=names)
            )
            tables[task][split] = data
    save_tables(folder / "glue", tables)
    (folder / "sst2").mkdir()
    for split, data in tables["sst2"].items():
        data.to_parquet(folder / "sst2" / f"{split}.parquet")
    repositories = {"nyu-mll/glue": folder / "glue", "somebody/sst2": folder / "sst2"}
    served = {f"datasets/{name}": path for name, path in repositories.items()}
    server = serve(served | {"models/bert-base-cased": DEMO_MODEL})
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def run(command: str, endpoint: str, home: Path, *extra: str) -> subprocess.CompletedProcess:
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))
    }
    environment |= {"HF_HOME": str(home / "hf"), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, *command.split(), "--checkpoint_dir", str(home / "checkpoints"), *extra],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_readmes_commands_run_from_the_hub(hub, tmp_path):
    for command in (
        TRAIN_SST2,
        SST2,
        f"{SST2} --use_half_precision",
        TRAIN_RTE,
        f"{RTE} ekfac",
        f"{RTE} identity",
    ):
        done = run(command, hub, tmp_path)
        assert done.returncode == 0, (command, done.stderr[-2000:])
    stored = {
        path.parent.name for path in (tmp_path / "checkpoints").rglob("pairwise_scores.safetensors")
    }
    assert stored == {"ekfac", "ekfac_half", "identity"}


def test_an_unreachable_hub_is_named_within_15_seconds(tmp_path):
    with socket.socket() as silent:  # answers nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.monotonic()
        done = run(TRAIN_SST2, f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path)
        seconds = time.monotonic() - start
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    for words in ("nyu-mll/glue", "--model_name_or_path", "--dataset_path", "out of reach"):
        assert words in done.stderr
    assert seconds < 15 + 15, "importing the libraries takes part of this"


def test_a_missing_model_is_named(hub, tmp_path):
    done = run(TRAIN_SST2, hub, tmp_path, "--model_name_or_path", "nobody/no-bert")
    assert (
        done.returncode == 2 and "nobody/no-bert" in done.stderr and done.stderr.count("\n") == 1
    ), done.stderr


def test_another_id_of_the_same_task_opens_and_one_of_other_tasks_says_what_is_wanted(
    hub, tmp_path
):
    """A repository of one data set has only a configuration `default`; its columns say whether it
    is the task's.
    """
    done = run(TRAIN_SST2, hub, tmp_path, "--dataset_path", "somebody/sst2")
    assert done.returncode == 0, done.stderr[-2000:]
    done = run(TRAIN_SST2.replace("sst2", "cola"), hub, tmp_path, "--dataset_path", "nyu-mll/glue")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert (
        "no configuration 'cola' (it has " in done.stderr and "cola/train-0.parquet" in done.stderr
    )


@pytest.mark.parametrize("name", ["/nowhere/bert", "./nowhere", "../a/b", "~/bert", "a/b/c"])
def test_a_folder_that_is_not_there_is_named_with_its_flag_and_no_hub_is_asked(name, monkeypatch):
    monkeypatch.setattr(
        hub_module, "hub_answers", lambda: pytest.fail("a folder's name was sent to the hub")
    )
    with pytest.raises(Refused, match=f"no {name!r}; check --adopt"):
        hub_module.open_asset(name, "--adopt", "model", lambda: None)


def test_a_silent_hub_names_the_flag_that_the_name_came_from(monkeypatch):
    monkeypatch.setattr(hub_module, "hub_answers", lambda: False)
    monkeypatch.setattr(hub_module.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Refused, match="with --adopt and --dataset_path"):
        hub_module.open_asset("owner/bert", "--adopt", "model", lambda: Path("nowhere").read_text())
