"""The task as kronfluence sees it: training loss, sampled labels, and measurement on queries.

Symbols: B examples, T tokens, C classes.
"""

import torch
from kronfluence.task import Task

from attribution.draws import uniform_hash
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

    def compute_train_loss(self, batch, model, sample: bool = False) -> torch.Tensor:
        """Summed loss of the batch. sample: for the Fisher matrix, with labels drawn from the model
        or their mean.
        """
        logits = model(**model_inputs(batch)).logits
        if sample and self.exact:
            return fisher_column(logits, self.column).sum()
        labels = self.sample_labels(batch["row"], logits) if sample else batch["labels"]
        return compute_loss(logits, labels)

    def compute_measurement(self, batch, model) -> torch.Tensor:
        """Minus the summed margin, so that a positive score means that the training row helps."""
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
