"""Trains a run's model again on some of its rows, and says what its margins then are."""

import numpy as np
import torch

from attribution.files import fingerprint_of_tensors
from attribution.rows import GlueDataset
from attribution.training.fit import fit, predict
from pipeline import compute_margin, construct_bert, quiet_libraries


class Retrainer:
    """Trains a run's model again on some of its rows: a job of the retraining store, called as (rows, seed).

    Start weights and tokens are read once, and go to other processes by pickling. The head that the start
    lacks is drawn from the job's seed, so that all rows and the run's own seed give the run's own model.
    """

    def __init__(self, run: dict, train: GlueDataset, queries: GlueDataset, recipe: dict, device: torch.device) -> None:
        self.train, self.queries, self.recipe, self.device = train, queries, recipe, device
        model = construct_bert(run["dataset_name"], run["model_name_or_path"], 0, run.get("num_hidden_layers"))
        self.kind, self.config = type(model), model.config
        self.start = {name: value for name, value in model.state_dict().items() if name not in model.drawn}
        self.num_parameters = model.num_parameters()

    def __setstate__(self, state: dict) -> None:
        quiet_libraries()  # this process is a child of one that is
        self.__dict__.update(state)

    def fingerprint(self) -> dict:
        """Named parts of everything that changes a margin, bit for bit: the device and its threads too."""
        shape = {"layers": self.config.num_hidden_layers, "labels": self.config.num_labels}
        device = "cpu, one thread" if self.device.type == "cpu" else torch.cuda.get_device_name(self.device)
        return {
            "start": fingerprint_of_tensors(self.start), "shape": shape, "recipe": self.recipe,
            "training rows": self.train.fingerprint(), "query rows": self.queries.fingerprint(),
            "device": device,
        }  # fmt: skip

    def model(self, seed: int) -> torch.nn.Module:
        """The start, with a head drawn from the seed as `construct_bert` draws it."""
        start = {name: value.clone() for name, value in self.start.items()}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = self.kind.from_pretrained(None, config=self.config, state_dict=start, dtype=torch.float32)
        return model.to(self.device)

    def __call__(self, rows: np.ndarray, seed: int) -> np.ndarray:
        """Margins of the queries (Q,), float32, after training on these rows (ascending) with this seed.

        On the CPU in one thread, whatever the process has: several processes then give the same bits as one.
        """
        threads = torch.get_num_threads()
        if self.device.type == "cpu":
            torch.set_num_threads(1)
        try:
            model = fit(self.model(seed), self.train, rows, seed=seed, **self.recipe)
            return compute_margin(predict(model, self.queries), torch.from_numpy(self.queries.labels)).numpy()
        finally:
            torch.set_num_threads(threads)
