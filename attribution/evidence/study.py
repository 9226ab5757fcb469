"""What both studies of retraining share: their arguments, and a run opened for retraining."""

import argparse
import functools
from dataclasses import dataclass
from pathlib import Path

from attribution.evidence.retrainer import Retrainer
from attribution.evidence.retraining import RETRAIN_SEED, Store, default_workers
from attribution.rows import GlueDataset
from attribution.training.fit import choose_device


def add_retrain_seed(group: argparse._ArgumentGroup) -> None:
    """Adds the first seed of retrains."""
    group.add_argument(
        "--retrain_seed", type=int, default=RETRAIN_SEED,
        help=f"seed of the first retrain of a subset, the next ones count up; not that of a scored model "
        f"({RETRAIN_SEED})",
    )  # fmt: skip


def add_study_arguments(parser: argparse.ArgumentParser, name: str) -> argparse._ArgumentGroup:
    """Adds the groups "how it runs" and "what is shown" of the study of this name; returns the latter for more."""
    add = parser.add_argument_group("how it runs").add_argument
    add(
        "--jobs_per_device", type=int,
        help="retrains at the same time: a GPU's processes (1), or on a CPU processes of one thread each (one a core)",
    )
    add("--dry_run", action="store_true", help="say how many retrains are missing and how long they take, then stop")
    group = parser.add_argument_group("what is shown")
    add, figure = group.add_argument, f"figure/{name}.png"
    add(
        "--results_dir", type=Path, default=Path("results"),
        help=f"{name}_DATASET_NAME.json and .md go here (results)",
    )  # fmt: skip
    add("--figure_path", type=Path, default=Path(figure), help=f"where the figure goes ({figure})")
    add("--plot_only", action="store_true", help="draw the figure again from the JSON")
    return group


@dataclass(frozen=True)
class Study:
    """A run, opened for retraining."""

    folder: Path  # the run's
    retrain: Retrainer
    workers: int  # processes at a time

    @functools.cached_property
    def store(self) -> Store:
        """The retrains of this recipe, below the run's folder; made when it is first needed."""
        return Store(self.folder / "retraining", self.retrain.fingerprint(), len(self.queries))

    @property
    def train(self) -> GlueDataset:
        """The training rows."""
        return self.retrain.train

    @property
    def queries(self) -> GlueDataset:
        """The query rows."""
        return self.retrain.queries


def open_study(
    folder: Path, run: dict, train: GlueDataset, queries: GlueDataset, recipe: dict, jobs_per_device: int | None
) -> Study:
    """The run in `folder`, its start weights read.

    recipe: keyword arguments of `fit`. jobs_per_device: None for the default of the machine.
    """
    retrain = Retrainer(run, train, queries, recipe, choose_device())
    workers = jobs_per_device or default_workers(retrain.device, retrain.num_parameters)
    return Study(folder, retrain, workers)
