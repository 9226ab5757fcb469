"""Models whose influence can be scored: of linear layers, each run once in a pass, on the rows."""

import numpy as np
import torch
from torch import nn

from attribution.data.dataset import GlueDataset
from attribution.files import Refused
from pipeline import model_inputs

# kronfluence attributes to a row what a module read at the row's place in the batch, once a pass. A
# weight that is used twice (ALBERT's layers, DeBERTa's shared keys), or an input that has no rows
# (relative positions), would give wrong scores without a word.
TRACKED = (nn.Linear, nn.Conv2d)  # kinds of modules that kronfluence tracks


@torch.no_grad()
def check_attribution(model: nn.Module, dataset: GlueDataset) -> None:
    """Raises Refused if a module that kronfluence would track runs twice, reads no rows, or
    is not linear.

    dataset: rows for the trial; its longest and its shortest are taken. The model's state is left
    as it was.
    """
    modules = {
        name: module for name, module in model.named_modules() if isinstance(module, TRACKED)
    }
    seen: dict[str, list[int]] = {name: [] for name in modules}
    hooks = [
        module.register_forward_hook(
            lambda _, inputs, __, name=name: seen[name].append(inputs[0].shape[0])
        )
        for name, module in modules.items()
    ]
    training = model.training
    try:
        rows = [int(np.argmax(dataset.lengths)), int(np.argmin(dataset.lengths))]
        batch = model_inputs(dataset.batch(rows))
        model.eval()(**{name: value.to(model.device) for name, value in batch.items()})
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    kind = model.config.model_type
    for name, counts in seen.items():
        if len(counts) != 1:
            times = "is never used" if not counts else f"is used {len(counts)} times"
            raise Refused(
                f"{kind} models are not supported: {name} {times} in a pass, so scores would be "
                "wrong"
            )
        if counts[0] != 2:
            raise Refused(f"{kind} models are not supported: {name} reads an input without rows")
    weights: dict[int, str] = {}
    for name, module in modules.items():
        if not isinstance(module, nn.Linear):
            raise Refused(f"{kind} models are not supported: {name} is no linear layer")
        if (other := weights.setdefault(module.weight.data_ptr(), name)) != name:
            raise Refused(f"{kind} models are not supported: {name} and {other} share one weight")
