"""What both studies of retraining share: their arguments, and a run opened for retraining."""

import argparse
import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from attribution.data.dataset import GlueDataset
from attribution.data.task import GlueTask
from attribution.evidence.baselines import Models
from attribution.evidence.retrainer import Retrainer, open_start
from attribution.evidence.retraining import RETRAIN_SEED, default_workers, launched
from attribution.evidence.store import Store, earlier_retrains
from attribution.files import Refused, read_json, write_json
from attribution.training.fit import choose_device, fit, name_of, predict
from attribution.training.queries import open_trained
from attribution.training.recipe import MAX_QUERIES
from attribution.training.run import find_again


def add_start_argument(group: argparse._ArgumentGroup) -> None:
    """Adds where the start model is, if it has moved."""
    group.add_argument(
        "--model_name_or_path",
        help="the model that training started from, if it is not where training found it (as in "
        "run.json)",
    )


def add_retrain_seed(group: argparse._ArgumentGroup) -> None:
    """Adds the first seed of retrains."""
    group.add_argument(
        "--retrain_seed",
        type=int,
        default=RETRAIN_SEED,
        help="seed of the first retrain of a subset, the next ones count up; not that of a scored "
        f"model ({RETRAIN_SEED})",
    )


def add_study_arguments(parser: argparse.ArgumentParser, name: str) -> argparse._ArgumentGroup:
    """Adds the groups "how it runs" and "what is shown" of the study of this name; returns the
    latter for more.
    """
    add = parser.add_argument_group("how it runs").add_argument
    add(
        "--jobs_per_device",
        type=int,
        help="retrains at the same time: a GPU's processes (1), or on a CPU processes of one "
        "thread each (one a core)",
    )
    add(
        "--retrain_queries",
        type=int,
        default=MAX_QUERIES,
        help="validation rows, from the first on, that every retrain predicts and stores, so that "
        f"later questions retrain nothing ({MAX_QUERIES}, and never fewer than are asked "
        "about)",
    )
    add(
        "--dry_run",
        action="store_true",
        help="say how many retrains are missing and how long they take, then stop",
    )
    group = parser.add_argument_group("what is shown")
    add = group.add_argument
    add(
        "--results_dir",
        type=Path,
        default=Path("results"),
        help=f"{name}_DATASET_NAME.json, .md and .npz go here (results)",
    )
    add(
        "--figure_path",
        type=Path,
        help=f"where the figure goes (figure/{name}_DATASET_NAME.png, and a copy as "
        f"figure/{name}.png)",
    )
    add("--plot_only", action="store_true", help="draw the figure again from the JSON")
    return group


@dataclass(frozen=True)
class Study:
    """A run, opened for retraining."""

    folder: Path  # the run's
    retrain: Retrainer
    queries: GlueDataset  # that the study asks about; retrains also know more validation rows
    workers: int  # processes at a time

    @functools.cached_property
    def store(self) -> Store:
        """The retrains of this recipe, below the run's folder; made when it is first needed."""
        folder, fingerprint = self.folder / "retraining", self.retrain.fingerprint()
        if earlier := earlier_retrains(folder, fingerprint):
            print(
                f"{earlier:,} retrains in {folder} are of an earlier version, which did not store "
                "correctness; they are kept but not read, and those that are needed are made again"
            )
        return Store(folder, fingerprint, self.queries.digests())

    @property
    def train(self) -> GlueDataset:
        """The training rows."""
        return self.retrain.train


def study_arguments(values: dict) -> dict:
    """The keyword arguments of `open_study` among what was parsed (argument name -> value)."""
    names = ("first_query", "max_queries", "model_name_or_path", "jobs_per_device")
    chosen = {name: values[name] for name in names if name in values}
    return chosen | {"retrains": not values["dry_run"] and values["query_index"] is None}


def open_study(
    folder: Path,
    run: dict,
    rows: tuple[GlueDataset, GlueDataset],
    recipe: dict,
    *,
    max_queries: int,
    model_name_or_path: str | None,
    jobs_per_device: int | None,
    retrains: bool = True,
    first_query: int = 0,
) -> Study:
    """The run in `folder`, its start weights read.

    rows: training rows, and validation rows that retrains shall know, of which max_queries are
    asked about, from first_query on. recipe: keyword arguments of `fit`. model_name_or_path: the
    start model, where it is not where training found it. jobs_per_device: None for the default of
    the machine. retrains: whether more is to come than a count. Raises Refused where the start is
    missing or another one, or where nobody knows the run's recipe.
    """
    check_recipe_known(run)
    start = model_name_or_path or find_again(run, "model_name_or_path", "the start model")
    device = choose_device()
    print(f"retraining on {name_of(device)}")
    retrain = Retrainer(run, start, *rows, recipe, device)
    workers = jobs_per_device or default_workers(device, retrain.num_parameters)
    study = Study(folder, retrain, rows[1].window(first_query, max_queries), workers)
    if retrains:
        rehearse(study, run)
    return study


def models_of(folder: Path, run: dict, task: GlueTask, model_name_or_path: str | None) -> Models:
    """The run's models for baselines. model_name_or_path: the start, where it is not where training
    found it.
    """

    @functools.cache
    def start() -> torch.nn.Module:
        name = model_name_or_path or find_again(run, "model_name_or_path", "the start model")
        return open_start(run, name, task).to(choose_device())

    return Models(functools.cache(lambda: open_trained(folder)), start)


# --- adopted models -------------------------------------------------------------------------------


def check_recipe_known(run: dict) -> None:
    """Raises Refused for an adopted run of which nobody said how it was trained."""
    if run.get("recipe") is None:
        name = run["dataset_name"]
        raise Refused(
            "nobody said how the adopted model was trained, so nothing can be retrained; adopt it "
            f"again with its start and recipe: python train.py --dataset_name {name} --adopt DIR "
            "--overwrite --model_name_or_path START --learning_rate ..."
        )


def rehearse(study: Study, run: dict) -> None:
    """Of an adopted run: retrains once on all rows and prints how much the result is like the
    adopted model.

    What retraining measures is the recipe, which is the adopted model's only as far as somebody
    said so. Done once a recipe; kept beside the retrains.
    """
    if "adopted" not in run or launched()[0] > 0:
        return
    path = study.store.folder / "adopted.json"
    found = read_json(path)
    if found is None or found["weights"] != run["weights"]:
        found = compare(study, run["seed"] if run["seed"] is not None else RETRAIN_SEED) | {
            "weights": run["weights"]
        }
        write_json(path, found)
    what = "Pearson with labels" if study.train.task.regression else "accuracy"
    print(
        f"the stated recipe, once on all rows: {what} {found['retrained']:.3f}, the adopted "
        f"model's {found['adopted']:.3f}; they agree on {found['agreement']:.3f} of "
        f"{len(study.queries):,} queries; what follows measures the recipe"
    )


def compare(study: Study, seed: int) -> dict:
    """What a retrained and the adopted model get right, and how much they agree (for a regression:
    correlations).
    """
    retrain, queries = study.retrain, study.queries
    rows, model = np.arange(len(study.train)), retrain.model(seed)
    logits = [predict(fit(model, study.train, rows, seed=seed, **retrain.recipe), queries)]
    adopted = AutoModelForSequenceClassification.from_pretrained(study.folder, dtype=torch.float32)
    logits.append(predict(adopted.to(retrain.device), queries))
    if queries.task.regression:
        outputs = [values.squeeze(-1).numpy() for values in logits]
        pairs = (
            (outputs[0], queries.labels),
            (outputs[1], queries.labels),
            (outputs[0], outputs[1]),
        )
        scores = [float(np.corrcoef(a, b)[0, 1]) for a, b in pairs]
    else:
        classes = [values.argmax(-1).numpy() for values in logits]
        pairs = (
            (classes[0], queries.labels),
            (classes[1], queries.labels),
            (classes[0], classes[1]),
        )
        scores = [float((a == b).mean()) for a, b in pairs]
    return dict(zip(("retrained", "adopted", "agreement"), scores, strict=True))
