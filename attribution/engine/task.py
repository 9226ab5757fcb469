"""The task as kronfluence sees it: training loss, sampled labels, and measurement on queries.

Symbols: B examples, T tokens, C classes.
"""

import torch
from kronfluence.task import Task

from attribution.draws import uniform_hash
from attribution.engine.trackers import Shared
from attribution.fisher import fisher_column, sample_labels
from pipeline import compute_loss, compute_margin, model_inputs


class InfluenceTask(Task):
    """Task in kronfluence's interface: training loss, sampled labels, and measurement on queries.

    The measurement is *minus* the summed margin, so that its gradient times the inverse Hessian
    times the gradient of the loss is positive for training rows that help.
    """

    def __init__(self, seed: int = 0, exact_labels: int | None = None) -> None:
        """exact_labels: outputs C, for the mean over all labels; None for sampled labels."""
        self.seed = seed
        self.phase = "factors"  # sampled labels are a function of seed, phase and row
        self.exact = exact_labels is not None
        # Passes over a batch for the factors: C - 1 for the mean over C classes, else one. And the
        # column of the current pass.
        self.columns = max(1, (exact_labels or 1) - 1)
        self.column = 0
        self.shared: Shared | None = None  # of the model's modules, if there is a tape

    def compute_train_loss(self, batch, model, sample: bool = False) -> torch.Tensor:
        """Summed loss of the batch. sample: for the Fisher matrix, with labels drawn from the model
        or their mean.

        With a tape it is the sum of the model's one output, whose gradient is multiplied by
        `Shared.scale`; a batch that is on the tape updates the trackers here, and its loss is 0.
        """
        if self.shared is None or self.shared.tape is None:
            return self.loss(model(**model_inputs(batch)).logits, batch, sample)
        tape = self.shared.tape
        rows = tuple(batch["row"].tolist())
        known = tape.find(rows)
        if known is not None:
            self.shared.scale = self.slopes(known.logits, batch, sample)
            with torch.no_grad():
                self.shared.play(known)
            return torch.zeros((), requires_grad=True)
        tape.begin(rows, batch["input_ids"].numel(), model.dtype.itemsize)
        logits = model(**model_inputs(batch)).logits
        self.shared.scale = self.slopes(logits, batch, sample)
        if tape.recording is not None:
            tape.recording.logits = logits.detach()
        return (logits[:, -1] - logits[:, 0] if logits.shape[-1] == 2 else logits).sum()

    def loss(self, logits: torch.Tensor, batch, sample: bool) -> torch.Tensor:
        """Summed loss of logits (B, C); see `compute_train_loss`."""
        if sample and self.exact:
            return fisher_column(logits, self.column).sum()
        labels = self.sample_labels(batch["row"], logits) if sample else batch["labels"]
        return compute_loss(logits, labels)

    def slopes(self, logits: torch.Tensor, batch, sample: bool) -> torch.Tensor:
        """(B,): derivative of the loss by the one output: z_1 - z_0 of two classes, or z.

        By z_0 it is the negative, because a constant that is added to all logits changes no loss.
        """
        logits = logits.detach().requires_grad_()
        with torch.enable_grad():
            (found,) = torch.autograd.grad(self.loss(logits, batch, sample), logits)
        return found[:, -1]

    def compute_measurement(self, batch, model) -> torch.Tensor:
        """Minus the summed margin, so that a positive score means that the training row helps."""
        if self.shared is not None and self.shared.tape is not None:
            self.shared.scale = self.shared.tape.recording = None
        logits = model(**model_inputs(batch)).logits
        return -compute_margin(logits, batch["labels"]).sum()

    def get_attention_mask(self, batch) -> torch.Tensor:
        """(B, T), zero on padding, which input covariances leave out."""
        return batch["attention_mask"]

    @torch.no_grad()
    def sample_labels(self, rows: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Labels (B,) drawn from the model's distribution: a function of seed, phase and row
        (see `draws`).
        """
        return sample_labels(uniform_hash(self.seed, self.phase, rows.cpu().numpy()), logits)
