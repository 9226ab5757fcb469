"""A run opened for retraining, and the arguments that both studies of retraining share."""

import copy
import functools
import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from attribution.data.dataset import GlueDataset
from attribution.evidence.arguments import RETRAIN_SEED
from attribution.evidence.baselines import Models
from attribution.evidence.retraining import (
    Retrainer,
    announce,
    default_workers,
    open_start,
    run_jobs,
)
from attribution.evidence.store import Job, Results, Store
from attribution.files import Refused, read_json, write_json
from attribution.processes import choose_device, name_of, rank_and_size
from attribution.training.fit import fit, predict
from attribution.training.queries import predict_run
from attribution.training.run import RETRAINING_TIME, Run


@dataclass(frozen=True)
class Study:
    """A run opened for retraining."""

    run: Run
    retrain: Retrainer
    queries: GlueDataset  # of the study; retrains also know more validation rows
    workers: int  # processes at a time

    @functools.cached_property
    def store(self) -> Store:
        """Retrains of this recipe, below the run's folder."""
        folder = self.run.folder / "retraining"
        return Store(folder, self.retrain.fingerprint(), self.queries.digests())

    @property
    def train(self) -> GlueDataset:
        """Training rows."""
        return self.retrain.train

    def relabelled(self, labels: np.ndarray) -> "Study":
        """The same with other labels (N,) of the training rows."""
        retrain = copy.copy(self.retrain)
        retrain.train = self.train.relabelled(labels)
        return replace(self, retrain=retrain)

    def announce(self, jobs: list[Job], dry_run: bool) -> bool:
        """Whether to go on, after numbers and time of the jobs are printed; see `announce`."""
        measured = self.run.retraining_seconds
        a_row = None if measured is None else measured / len(self.train)
        return announce(self.store, jobs, dry_run, self.run.training_seconds, self.workers, a_row)

    def run_jobs(self, jobs: list[Job], description: str = "retrains") -> Results:
        """Results of the jobs, of which missing ones are retrained; see `run_jobs`."""
        how = self.workers, description, self._keep_time
        return run_jobs(self.store, jobs, self.retrain, *how)

    def _keep_time(self, jobs: list[Job], seconds: float) -> None:
        """Keeps the time of these retrains, if they were the fastest so far and of the run's own
        recipe.
        """
        if self.retrain.recipe != self.run.recipe or rank_and_size()[0] > 0:
            return
        of_all_rows = seconds / sum(len(job.rows) for job in jobs) * len(self.train)
        if of_all_rows < (self.run.retraining_seconds or math.inf):
            known = {"weights": self.run.weights, "seconds": of_all_rows}
            write_json(self.run.folder / RETRAINING_TIME, known)

    def run_keyed(self, jobs: dict, description: str) -> dict:
        """Key of each job -> (Q, 2): margin and correctness (1 or 0) of every query.

        Both are NaN where training diverged.
        """
        results = self.run_jobs(list(jobs.values()), description)
        there = np.isfinite(results.margins)
        correct = np.where(there, results.correct, np.nan)
        found = np.stack([results.margins.astype(np.float64), correct], axis=-1)
        return dict(zip(jobs, found, strict=True))


def open_study(
    run: Run,
    rows: tuple[GlueDataset, GlueDataset],
    recipe: dict,
    *,
    max_queries: int,
    model_name_or_path: str | None,
    jobs_per_device: int | None,
    retrains: bool = True,
    first_query: int = 0,
) -> Study:
    """The run opened for retraining, with its start weights read.

    rows: training rows, and the validation rows that retrains predict; the study's queries are
    max_queries of them, from first_query on. recipe: keyword arguments of `fit`.
    model_name_or_path: the start model, if it has moved. jobs_per_device: None for the machine's
    default. retrains: whether retrains follow. Raises Refused if the start model is missing or
    another one, or if the run's recipe is not known.
    """
    check_recipe_known(run)
    start = model_name_or_path or run.find_again("model_name_or_path")
    device = choose_device()
    print(f"retraining on {name_of(device)}")
    retrain = Retrainer(run, start, *rows, recipe, device)
    workers = jobs_per_device or default_workers(device, retrain.num_parameters)
    study = Study(run, retrain, rows[1].window(first_query, max_queries), workers)
    if retrains and run.adopted and rank_and_size()[0] == 0:
        rehearse(study)
    return study


def models_of(run: Run, model_name_or_path: str | None) -> Models:
    """The run's models for baselines. model_name_or_path: the start model, if it has moved."""

    @functools.cache
    def start() -> torch.nn.Module:
        name = model_name_or_path or run.find_again("model_name_or_path")
        return open_start(run, name).to(choose_device())

    return Models(functools.cache(lambda: run.model(choose_device())), start)


# --- adopted models -------------------------------------------------------------------------------


def check_recipe_known(run: Run) -> None:
    """Raises Refused for an adopted run whose recipe was not stated."""
    if run.recipe is None:
        raise Refused(
            "it is not known how the adopted model was trained, so nothing can be retrained; adopt "
            f"it again with its start and recipe: {run.command} --overwrite "
            "--model_name_or_path START --learning_rate ..."
        )


def rehearse(study: Study) -> None:
    """Retrains an adopted run once on all rows, and prints how close the result is to the model.

    What retraining measures is the stated recipe, which need not be the adopted model's. Done once
    a recipe; the result is kept beside the retrains.
    """
    run = study.run
    path = study.store.folder / "adopted.json"
    found = read_json(path)
    if found is None or found["weights"] != run.weights:
        found = compare_with_retrained(study) | {"weights": run.weights}
        write_json(path, found)
    what = "Pearson with labels" if run.task.regression else "accuracy"
    print(
        f"the stated recipe, once on all rows: {what} {found['retrained']:.3f}, the adopted "
        f"model's {found['adopted']:.3f}; they agree on {found['agreement']:.3f} of "
        f"{len(study.queries):,} queries; what follows measures the recipe"
    )


def compare_with_retrained(study: Study) -> dict:
    """Accuracies of a retrained and the adopted model, and their agreement (of a regression:
    Pearson correlations).
    """
    retrain = study.retrain
    queries = study.queries
    regression = queries.task.regression
    rows = np.arange(len(study.train))
    seed = RETRAIN_SEED if study.run.seed is None else study.run.seed
    model = fit(retrain.model(seed), study.train, rows, seed=seed, **retrain.recipe)

    def answers(logits: torch.Tensor) -> np.ndarray:
        return (logits[:, 0] if regression else logits.argmax(-1)).numpy()

    def agree(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.corrcoef(a, b)[0, 1] if regression else (a == b).mean())

    retrained = answers(predict(model, queries))
    adopted = answers(predict_run(study.run, queries))
    return {
        "retrained": agree(retrained, queries.labels),
        "adopted": agree(adopted, queries.labels),
        "agreement": agree(retrained, adopted),
    }
