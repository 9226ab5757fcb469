"""Trains a run's model again on some of its rows, and says what it then says about the queries."""

import numpy as np
import torch

from attribution.data.dataset import GlueDataset
from attribution.data.task import GlueTask
from attribution.evidence.store import Result
from attribution.files import Refused, fingerprint_of_tensors
from attribution.models import fingerprint_of_start
from attribution.training.fit import Diverged, fit, predict
from attribution.training.run import start_of
from pipeline import compute_correct, compute_margin, construct_bert, quiet_libraries


def open_start(run: dict, start: str | None, task: GlueTask) -> torch.nn.Module:
    """The model that the run was trained from, with some head where it has none; `drawn` names that
    head's weights.

    start: its folder or hub id, None for the default. Raises Refused where it has other weights
    than it had then.
    """
    model = construct_bert(
        run["dataset_name"],
        start,
        0,
        run.get("num_hidden_layers"),
        run.get("new_head", False),
        task=task,
    )
    if "start" not in run:
        print(
            "the run does not say which weights it started from: the start of retrains cannot be "
            "checked"
        )
    elif fingerprint_of_start(model) != run["start"]:
        raise Refused(
            f"the start model {start or 'of the demo'} has other weights than the one that the run "
            "was trained from; name that one with --model_name_or_path"
        )
    return model


def behaviour(config) -> dict:
    """What a model's configuration says of dropout, epsilon and activation, where that is not its
    class's default.
    """
    usual, parts = type(config)().to_dict(), ("drop", "eps", "act")
    return {
        name: value
        for name, value in config.to_dict().items()
        if any(part in name for part in parts) and value != usual.get(name)
    }


class Retrainer:
    """Trains a run's model again on some of its rows: a job of the retraining store, called as
    (rows, seed).

    Start weights and tokens are read once, and go to other processes by pickling. The head that the
    start lacks is drawn from the job's seed, so that all rows and the run's own seed give the run's
    own model. start: folder or hub id of the start model, None for the default. Raises Refused
    where the start is not the one that the run was trained from.
    """

    def __init__(
        self,
        run: dict,
        start: str | None,
        train: GlueDataset,
        queries: GlueDataset,
        recipe: dict,
        device: torch.device,
    ) -> None:
        self.train, self.queries, self.recipe, self.device = train, queries, recipe, device
        self.digests = queries.digests()
        self.run_start = start_of(run)
        model = open_start(run, start, train.task)
        self.kind, self.config = type(model), model.config
        self.behaviour = behaviour(model.config) if start else {}
        self.start = {
            name: value for name, value in model.state_dict().items() if name not in model.drawn
        }
        self.num_parameters = model.num_parameters()

    def __setstate__(self, state: dict) -> None:
        quiet_libraries()  # this process is a child of one that is
        self.__dict__.update(state)

    def fingerprint(self) -> dict:
        """Named parts of everything that changes a margin; only another torch or processor may
        round otherwise.

        Queries are not among them: the store knows each query row by a digest of its own.
        """
        shape = {
            "layers": self.config.num_hidden_layers,
            "labels": self.config.num_labels,
        } | self.behaviour
        device = (
            "cpu, one thread"
            if self.device.type == "cpu"
            else torch.cuda.get_device_name(self.device)
        )
        return {
            "start": fingerprint_of_tensors(self.start),
            "shape": shape,
            "recipe": self.recipe,
            "training rows": self.train.fingerprint(),
            "device": device,
            "results": "margins and correctness",
        }

    def model(self, seed: int) -> torch.nn.Module:
        """The start, with a head drawn from the seed as `construct_bert` draws it."""
        start = {name: value.clone() for name, value in self.start.items()}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = self.kind.from_pretrained(
                None, config=self.config, state_dict=start, dtype=torch.float32
            )
        return model.to(self.device)

    def __call__(self, rows: np.ndarray, seed: int) -> Result:
        """What the queries get after training on these rows (ascending) with this seed; NaN where
        it diverged.

        On the CPU in one thread, whatever the process has: several processes then give the same
        bits as one.
        """
        threads = torch.get_num_threads()
        if self.device.type == "cpu":
            torch.set_num_threads(1)
        try:
            logits = predict(
                fit(self.model(seed), self.train, rows, seed=seed, **self.recipe), self.queries
            )
        except Diverged:
            logits = torch.full((len(self.queries), self.config.num_labels), torch.nan)
        finally:
            torch.set_num_threads(threads)
        labels, regression = torch.from_numpy(self.queries.labels), self.queries.task.regression
        outputs = logits.squeeze(-1) if regression else torch.full((len(labels),), torch.nan)
        correct = compute_correct(logits, labels)
        return Result(
            self.digests, compute_margin(logits, labels).numpy(), correct.numpy(), outputs.numpy()
        )
