"""Folders of the project, stored results, written data, and the arguments of tuning."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np

from attribution.evidence import stats
from attribution.files import write_bytes
from attribution.provenance import origin

ROOT = Path(__file__).resolve().parents[1]  # of the project; every command starts there
RESULTS = ROOT / "results"


def read_result(results: Path, name: str) -> dict:
    """The content of results/NAME.json. Raises FileNotFoundError where there is no such file."""
    return json.loads((results / f"{name}.json").read_text())


def with_replay(read: Callable[[str], dict], name: str) -> dict:
    """A counterfactual result with the arm of a replay, which was studied later, before its
    baselines.

    read: name of a result -> its content. Raises ValueError if the two studies have other targets,
    base runs or seeds.
    """
    result = read(name)
    replayed = read(f"replay/{name}")
    for part in ("targets", "base_margins", "base_correct", "retrain_seeds", "removals", "rows"):
        if result[part] != replayed[part]:
            raise ValueError(f"the two studies {name} differ in {part}")
    place = result["strategies"].index("tfidf")
    strategies = [*result["strategies"]]
    strategies[place:place] = replayed["strategies"]
    arms = {part: result[part] | replayed[part] for part in ("curves", "margins", "correct")}
    return result | {"strategies": strategies} | arms


def noise_ceiling(margins: np.ndarray, controls: np.ndarray | None = None) -> float | None:
    """Noise ceiling of margins (M, R, Q), as `stats.ceiling_of` has it, without an interval."""
    draws = stats.draw(len(margins), margins.shape[2], 1)
    ceiling = stats.ceiling_of(margins, draws, controls)
    return None if ceiling is None else ceiling.value


def from_query(name: str, first_query: int) -> str:
    """Folder name of the scores of this name whose queries begin at first_query."""
    return f"{name}_from{first_query}" if first_query else name


def origin_of(args: argparse.Namespace, device: str, fingerprints: dict | None = None) -> dict:
    """Origin of a result of a benchmark with these arguments, see `provenance.origin`, with the
    variables of lab/commands in place of its folders, which mean nothing on another machine.
    """
    made = origin(device, fingerprints)
    for name, variable in (("dataset_path", "$GLUE_DIR"), ("model_name_or_path", "$MODEL_DIR")):
        if (value := getattr(args, name, None)) is not None:
            made["command"] = made["command"].replace(value, variable)
    return made


def write_tables(folder: Path, task: str, splits: dict[str, datasets.Dataset]) -> None:
    """Writes a data folder that `datasets.load_dataset(folder, task)` opens, as nyu-mll/glue is.

    splits: name of the split -> its rows.
    """
    (folder / task).mkdir(parents=True, exist_ok=True)
    text = f"---\nconfigs:\n- config_name: {task}\n  data_files:\n"
    for split, table in splits.items():
        table.to_parquet(folder / task / f"{split}-0.parquet")
        text += f"  - split: {split}\n    path: {task}/{split}-0.parquet\n"
    write_bytes(folder / "README.md", f"{text}---\n".encode())


def add_results_argument(add, files: str) -> None:
    """Adds the folder of the results; a trial changes none of the project's own, in results/.

    add: a group's add_argument. files: what goes there.
    """
    add(
        "--results_dir",
        type=Path,
        default=Path("checkpoints/lab"),
        help=f"folder of {files} (checkpoints/lab; lab/commands name results)",
    )


def add_tuning_arguments(add) -> None:
    """Adds the random subsets of tuning: other masks and seeds than those of any result.

    add: a group's add_argument.
    """
    add("--num_masks", type=int, default=50, help="masks of the ground truth (50)")
    add("--num_repeats", type=int, default=2, help="its repeats, with other seeds (2)")
    add("--mask_seed", type=int, default=1, help="seed of its masks (1)")
    add("--retrain_seed", type=int, default=200, help="its first retrain seed (200)")
