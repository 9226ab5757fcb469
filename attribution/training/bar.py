"""A training run as it is watched: a progress bar, a line an epoch, and a sentence where it
diverges.
"""

import numpy as np
from tqdm import tqdm

from attribution.data.dataset import GlueDataset
from attribution.files import Refused
from attribution.processes import Processes
from attribution.training.fit import Diverged, fit, unwatched
from attribution.training.resume import Progress


def train(
    model,
    dataset: GlueDataset,
    rows: np.ndarray,
    recipe: dict,
    seed: int,
    progress: Progress,
    processes: Processes,
    on_step=unwatched,
) -> list[dict]:
    """Trains the model in place on these rows; returns loss and seconds of every epoch.

    recipe: keyword arguments of `fit`. on_step(number): called after every step. Raises Refused
    where training diverges.
    """
    total = recipe["num_train_epochs"] * len(rows)
    with tqdm(total=total, unit=" examples", leave=False, disable=not processes.main) as bar:

        def report(epoch: int, loss: float, seconds: float) -> None:
            progress.epochs.append({"loss": loss, "seconds": seconds})
            rate = len(rows) / seconds
            bar.write(f"epoch {epoch + 1}: loss {loss:.4f} per example, {rate:,.0f} examples/s")

        try:
            fit(
                model,
                dataset,
                rows,
                seed=seed,
                on_epoch=report,
                on_batch=bar.update,
                on_step=on_step,
                progress=progress,
                processes=processes,
                **recipe,
            )
        except Diverged as error:
            raise Refused(f"training diverged: {error}; lower --learning_rate") from error
    return progress.epochs
