"""Scripts as tests run them: in process, on the embedded data, with quick arguments."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import torch
from safetensors.torch import load_file

import analyze
import evaluate_lds
import run_counterfactual
from attribution.cli import options_of, run_script
from attribution.engine import memory, stock
from attribution.files import read_json, write_json
from attribution.influence.analysis import Influence
from attribution.influence.settings import Settings
from attribution.training.run import Run

ROOT = Path(__file__).resolve().parent.parent
# GPUs of this machine; conftest.py hides them from all but test_cuda.py.
GPUS = torch.cuda.device_count()
DEMO = ["--dataset_name", "demo"]
# Arguments of train.py.
SMALL = [*DEMO, "--max_train_samples", "120", "--num_train_epochs", "2"]
# Arguments of analyze.py.
QUICK = [*DEMO, "--max_queries", "9", "--damping_factor", "1e-4"]
# Arguments of the studies, and of analyze.py before them.
QUERIES = [*DEMO, "--max_queries", "12"]


def outputs(results: Path, figure: Path) -> list[str]:
    """Arguments of a study that writes to these places, with one retrain at a time."""
    places = ["--results_dir", str(results), "--figure_path", str(figure)]
    return [*places, "--jobs_per_device", "1"]


def analyze_quickly(checkpoints: Path, *extra: str) -> None:
    """analyze.py with the quick arguments and these."""
    analyze.main([*QUICK, "--checkpoint_dir", str(checkpoints), *extra])


def in_parts(monkeypatch, count: int) -> None:
    """Divides every phase of an analysis into this many parts; the work of few rows makes one."""
    plan = memory.plan_parts
    monkeypatch.setattr(memory, "plan_parts", lambda *given: replace(plan(*given), count=count))
    monkeypatch.setattr(stock, "plan_partitions", lambda *_: {"partitions": count})


def influence_of(checkpoints: Path, *extra: str) -> Influence:
    """Influence of analyze.py with the quick arguments and these, before it computes anything."""
    args = analyze.parse_args([*QUICK, "--checkpoint_dir", str(checkpoints), *extra])
    run = Run.open(args.checkpoint_dir, args.dataset_name, args.dataset_path)
    train, queries = run.rows(args.max_queries, args.first_query)
    return Influence(run, train, queries, options_of(Settings, args), vars(args))


def scores_of(checkpoints: Path, name: str = "ekfac_damping0.0001") -> torch.Tensor:
    """Stored pairwise scores of the demo: a copy, which outlives the file."""
    path = checkpoints / "demo/influence/scores" / name / "pairwise_scores.safetensors"
    return load_file(path)["all_modules"].clone()


def tamper(path: Path, change: Callable[[dict], dict]) -> None:
    """Writes change(content) in the place of a JSON file's content, as a script would have."""
    content = read_json(path)
    assert content is not None
    write_json(path, change(content))


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-3) -> bool:
    """Whether two tensors differ by less than this share of the second's norm."""
    return ((a - b).norm() / b.norm()).item() < tolerance


def launched(*command: str) -> subprocess.CompletedProcess:
    """A command of this Python's environment, run to its end in the repository."""
    command = [str(Path(sys.executable).parent / command[0]), *command[1:]]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def refusal(capsys, main: Callable, argv: list[str]) -> str:
    """Standard error of the script, which must refuse these arguments."""
    capsys.readouterr()
    assert run_script(main, argv) == 2
    return capsys.readouterr().err


def save_tables(folder: Path, tables: dict[str, dict[str, datasets.Dataset]]) -> None:
    """Writes task -> split -> table as a folder that `load_dataset(folder, task)` opens."""
    config = ""
    for task, splits in tables.items():
        (folder / task).mkdir(parents=True)
        config += f"- config_name: {task}\n  data_files:\n"
        for split, table in splits.items():
            table.to_parquet(folder / task / f"{split}.parquet")
            config += f"  - split: {split}\n    path: {task}/{split}.parquet\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n{config}---\n")


@dataclass(frozen=True)
class Study:
    """A script that retrains, with arguments of a study that takes a second."""

    main: Callable
    name: str  # of its files in the results folder
    plan: list[str]

    def arguments(self, checkpoints: Path, output: Path, *extra: str) -> list[str]:
        """Command line of the quick study with these arguments; all its files go below `output`."""
        figure = output / "figure" / f"{self.name}.png"
        places = outputs(output / "results", figure)
        return [*QUERIES, "--checkpoint_dir", str(checkpoints), *self.plan, *places, *extra]

    def redraw(self, output: Path) -> None:
        """Draws the figure again, from the JSON alone."""
        self.main(
            [
                *DEMO,
                "--plot_only",
                "--results_dir",
                str(output / "results"),
                "--figure_path",
                str(output / "figure" / f"{self.name}.png"),
            ]
        )

    def start(self, checkpoints: Path, output: Path, *extra: str) -> None:
        """Runs the quick study."""
        self.main(self.arguments(checkpoints, output, *extra))

    def run(self, checkpoints: Path, output: Path, *extra: str) -> dict:
        """Runs the quick study; returns the result that it stored."""
        self.start(checkpoints, output, *extra)
        return json.loads((output / "results" / f"{self.name}_demo.json").read_text())

    def refused(self, capsys, checkpoints: Path, output: Path, *extra: str) -> str:
        """The one sentence with which the script refuses these arguments."""
        error = (
            refusal(capsys, self.main, self.arguments(checkpoints, output, *extra))
            .strip()
            .splitlines()[-1]
        )
        assert error.startswith("error: ")
        return error


LDS = Study(
    evaluate_lds.main, "lds", ["--num_masks", "4", "--num_repeats", "2", "--num_bootstrap", "50"]
)
COUNTERFACTUAL = Study(
    run_counterfactual.main,
    "counterfactual",
    [
        "--num_targets",
        "4",
        "--removals",
        "10",
        "30",
        "--num_base_seeds",
        "1",
        "--num_retrain_seeds",
        "2",
        "--strategies",
        "ekfac",
        "random",
    ],
)


def retrains(checkpoints: Path) -> set[Path]:
    """Files of stored retrains of the demo."""
    return set((checkpoints / "demo/retraining").glob("*/*/*.safetensors"))
