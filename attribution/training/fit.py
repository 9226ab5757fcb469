"""Training and prediction: the rows of an epoch, the pieces of a batch, AdamW, and the task's metrics.

Symbols: N rows, C classes.
"""

import os
import time

import numpy as np
import torch

from attribution.draws import uniform_hash
from attribution.rows import GlueDataset
from attribution.training.metrics import GlueMetric
from pipeline import compute_loss, compute_margin, model_inputs


def choose_device() -> torch.device:
    """This process's GPU (LOCAL_RANK of a launcher), else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def epoch_order(rows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The rows in the order of a hash of seed, epoch and row: without some rows, the others keep their order."""
    return rows[np.argsort(uniform_hash(seed, f"epoch {epoch}", rows), kind="stable")]


def split_batch(lengths: np.ndarray, overhead: float) -> list[np.ndarray]:
    """Positions of a batch's rows, cut into pieces of like length that are cheapest to run one after the other.

    A piece costs its rows times its longest row, in tokens, and `overhead` tokens on top. The gradient of the
    batch is the sum of its pieces', so only the padding changes. Shortest paths over the sorted rows.
    """
    order = np.argsort(-lengths, kind="stable")
    best, last = [0.0], []
    for end in range(1, len(order) + 1):
        costs = [best[start] + (end - start) * lengths[order[start]] + overhead for start in range(end)]
        last.append(int(np.argmin(costs)))
        best.append(min(costs))
    pieces, end = [], len(order)
    while end:
        start = last[end - 1]
        pieces.append(order[start:end])
        end = start
    return pieces[::-1]


def piece_overhead(model: torch.nn.Module, device: torch.device) -> float:
    """What one more piece costs, in tokens: endless on a GPU, which small pieces would leave idle.

    On a CPU a pass takes some 6 ms beside its products (measured with the demo's BERT), the time of 4e8
    multiply-adds and additions, of which a token needs 6 P; and each pass reads all P weights again, which costs
    as much as some 12 tokens.
    """
    if device.type != "cpu":
        return float("inf")
    weights = sum(p.numel() for name, p in model.named_parameters() if "embeddings" not in name)
    return 12 + 4e8 / (6 * weights)


def fit(
    model: torch.nn.Module, dataset: GlueDataset, rows: np.ndarray, *, seed: int, learning_rate: float,
    weight_decay: float, num_train_epochs: int, train_batch_size: int, lr_schedule: str = "constant",
    max_grad_norm: float = 0.0, freeze_embeddings: bool = False, use_half_precision: bool = False,
    pad_to: int | None = None, on_epoch=None, on_batch=None,
) -> torch.nn.Module:  # fmt: skip
    """Trains the model in place on the given rows (numbers into dataset) with AdamW, and returns it.

    pad_to: pad every batch to so many tokens (None: to its longest row). on_epoch(epoch, mean loss per
    example in nats, seconds) is called after every epoch, on_batch(rows) after every step. Leaves the process's
    random state as it was. Same arguments, machine and threads: same weights, bit for bit on the CPU.
    """
    device = next(model.parameters()).device
    model.base_model.embeddings.requires_grad_(not freeze_embeddings)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=weight_decay, fused=True)
    steps = num_train_epochs * -(-len(rows) // train_batch_size)
    falling = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 1.0 if lr_schedule == "constant" else 1.0 - step / steps
    )
    overhead = float("inf") if pad_to else piece_overhead(model, device)
    model.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for epoch in range(num_train_epochs):
            start, total = time.perf_counter(), torch.zeros((), dtype=torch.float64, device=device)
            order = epoch_order(np.asarray(rows), seed, epoch)
            for first in range(0, len(order), train_batch_size):
                chosen = order[first : first + train_batch_size]
                optimizer.zero_grad(set_to_none=True)
                total += add_gradients(model, dataset, chosen, overhead, pad_to, use_half_precision)
                if max_grad_norm > 0:
                    torch.nn.utils.clip_grad_norm_(trained, max_grad_norm)
                optimizer.step()
                falling.step()
                if on_batch:
                    on_batch(len(chosen))
            if on_epoch:
                on_epoch(epoch, total.item() / len(order), time.perf_counter() - start)
    return model.eval()


def add_gradients(
    model: torch.nn.Module, dataset: GlueDataset, rows: np.ndarray, overhead: float, pad_to: int | None, half: bool
) -> torch.Tensor:
    """Adds the gradient of the mean loss of these rows to the parameters'; returns the summed loss, float64.

    overhead: cost of a piece of the batch, see `split_batch`. pad_to: tokens of every piece (None: its longest row).
    half: bfloat16 autocast.
    """
    device = next(model.parameters()).device
    total = torch.zeros((), dtype=torch.float64, device=device)
    for piece in split_batch(dataset.lengths[rows], overhead):
        batch = dataset.batch(rows[piece], pad_to)
        batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits = model(**model_inputs(batch)).logits
        loss = compute_loss(logits, batch["labels"])
        (loss / len(rows)).backward()
        total += loss.detach()
    return total


@torch.no_grad()
def predict(model: torch.nn.Module, dataset: GlueDataset, batch_size: int = 256) -> torch.Tensor:
    """Logits (N, C), float32, on the CPU, in the order of the data set's rows."""
    device = next(model.parameters()).device
    model.eval()
    chunks, order = [], np.argsort(-dataset.lengths, kind="stable")
    for first in range(0, len(order), batch_size):
        batch = model_inputs(dataset.batch(order[first : first + batch_size]))
        chunks.append(model(**{name: value.to(device) for name, value in batch.items()}).logits.float().cpu())
    logits = torch.empty(len(order), chunks[0].shape[1])
    logits[torch.from_numpy(order)] = torch.cat(chunks)
    return logits


def evaluate_model(model: torch.nn.Module, dataset: GlueDataset, batch_size: int = 32) -> dict[str, float]:
    """The task's own metrics, the mean loss per example (nats or squared error) and the mean margin."""
    logits, labels = predict(model, dataset, batch_size), torch.from_numpy(dataset.labels)
    predictions = logits.squeeze(-1) if dataset.task.regression else logits.argmax(-1)
    metric = GlueMetric(dataset.task.metrics, dataset.task.regression)
    result = metric.compute(predictions=predictions.numpy(), references=dataset.labels)
    result["loss"] = compute_loss(logits, labels).item() / len(dataset)
    return result | {"margin": compute_margin(logits, labels).mean().item()}
