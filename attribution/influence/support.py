"""Check whether influence scores of a model can be right: a trial pass of two rows, made before
long work begins.

kronfluence attributes to a row the input of a module at the place of the row in the batch, once. A
weight that is used twice (ALBERT's layers, DeBERTa's shared keys), or an input that has no rows
(relative positions), would give wrong scores without a word.
"""

import numpy as np
import torch
from kronfluence.module.tracked_module import TrackedModule
from torch import nn

from attribution.data.dataset import GlueDataset
from attribution.files import Refused
from pipeline import model_inputs

ROWS = 2


@torch.no_grad()
def check_attribution(model: nn.Module, dataset: GlueDataset) -> None:
    """Raises Refused if a module that kronfluence would track runs twice, or reads no rows.

    dataset: rows for the trial; its longest and its shortest are taken. The model's state is left
    as it was.
    """
    kinds = tuple(TrackedModule.SUPPORTED_MODULES)
    modules = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
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
        if counts[0] != ROWS:
            raise Refused(f"{kind} models are not supported: {name} reads an input without rows")
    weights: dict[int, str] = {}
    for name, module in modules.items():
        if (other := weights.setdefault(module.weight.data_ptr(), name)) != name:
            raise Refused(f"{kind} models are not supported: {name} and {other} share one weight")
