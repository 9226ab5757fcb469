"""Training and prediction: the rows of an epoch, the pieces of a batch, AdamW, and the task's
metrics.

Symbols: N rows, C classes.
"""

import time

import numpy as np
import torch

from attribution.data.dataset import GlueDataset
from attribution.draws import uniform_hash
from attribution.processes import ALONE, Processes
from attribution.progress import steps
from attribution.training.metrics import compute_metrics
from attribution.training.resume import SEEDS_APART, Progress, add_up, share_of
from pipeline import compute_loss, compute_margin, model_inputs


class Diverged(Exception):
    """A loss of training that is not finite."""

    def __init__(self, step: int, rate: float) -> None:
        super().__init__(f"the loss of step {step} is not finite, at a learning rate of {rate:.3g}")


def epoch_order(rows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Rows in the order of a hash of seed, epoch and row: without some rows, the rest keep their
    order.
    """
    return rows[np.argsort(uniform_hash(seed, f"epoch {epoch}", rows), kind="stable")]


def split_batch(lengths: np.ndarray, overhead: float) -> list[np.ndarray]:
    """Positions of a batch's rows, cut into pieces of similar length: the cheapest cut.

    A piece costs its rows times its longest row, in tokens, and `overhead` tokens on top. The
    gradient of the batch is the sum over its pieces, so only the padding changes. Shortest paths
    over the sorted rows.
    """
    order = np.argsort(-lengths, kind="stable")
    if not np.isfinite(overhead):
        return [order] if len(order) else []
    longest = lengths[order]
    places = np.arange(len(order))
    best = np.zeros(len(order) + 1)
    last = []
    for end in range(1, len(order) + 1):
        costs = best[:end] + (end - places[:end]) * longest[:end] + overhead
        last.append(int(np.argmin(costs)))
        best[end] = costs[last[-1]]
    pieces = []
    end = len(order)
    while end:
        start = last[end - 1]
        pieces.append(order[start:end])
        end = start
    return pieces[::-1]


def piece_overhead(model: torch.nn.Module, device: torch.device) -> float:
    """Cost of one more piece, in tokens: infinite on a GPU, which small pieces would leave idle.

    On a CPU a pass takes some 6 ms besides its products (measured with the demo's BERT), the time
    of 4e8 operations, of which a token needs 6 P; and each pass reads all P weights again, which
    costs as much as some 12 tokens.
    """
    if device.type != "cpu":
        return float("inf")
    weights = sum(p.numel() for name, p in model.named_parameters() if "embeddings" not in name)
    return 12 + 4e8 / (6 * weights)


def ignore(*_) -> None:
    """Does nothing when an epoch or a step has ended."""


def fit(
    model: torch.nn.Module,
    dataset: GlueDataset,
    rows: np.ndarray,
    *,
    seed: int,
    learning_rate: float,
    weight_decay: float,
    num_train_epochs: int,
    train_batch_size: int,
    lr_schedule: str = "constant",
    max_grad_norm: float = 0.0,
    freeze_embeddings: bool = False,
    use_half_precision: bool = False,
    on_epoch=ignore,
    on_step=ignore,
    progress: Progress | None = None,
    processes: Processes = ALONE,
) -> torch.nn.Module:
    """Trains the model in place on the given rows (numbers into dataset) with AdamW, and returns
    it.

    on_epoch(epoch, mean loss per example in nats, seconds), on_step(number of steps so far, rows of
    the step): called after every epoch and step. progress: where an interrupted training continues.
    processes: each computes its share of a batch. The random state of the process is left as it
    was. Same arguments, machine, threads and processes give the same bits on the CPU. Raises
    Diverged at the first loss that is not finite.
    """
    device = next(model.parameters()).device
    model.train()
    model.base_model.embeddings.requires_grad_(not freeze_embeddings)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=weight_decay, fused=True)
    steps = num_train_epochs * steps_of(len(rows), train_batch_size)
    factor = {"constant": lambda step: 1.0, "linear": lambda step: 1.0 - step / steps}[lr_schedule]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    overhead = piece_overhead(model, device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed + processes.rank * SEEDS_APART)
        first_epoch = progress.restore(model, optimizer, schedule) if progress else 0
        for epoch in range(first_epoch, num_train_epochs):
            began = time.perf_counter()
            total = torch.zeros((), dtype=torch.float64, device=device)
            order = epoch_order(np.asarray(rows), seed, epoch)
            for first in range(0, len(order), train_batch_size):
                batch = order[first : first + train_batch_size]
                share = share_of(batch, dataset.lengths, processes)
                optimizer.zero_grad()
                loss = add_gradients(
                    model, dataset, share, overhead, use_half_precision, len(batch)
                )
                loss = add_up(trained, loss, processes)
                if not loss.isfinite():
                    raise Diverged(schedule.last_epoch + 1, schedule.get_last_lr()[0])
                if max_grad_norm > 0:
                    torch.nn.utils.clip_grad_norm_(trained, max_grad_norm)
                optimizer.step()
                schedule.step()
                total += loss
                on_step(schedule.last_epoch, len(batch))
            on_epoch(epoch, float(total) / len(rows), time.perf_counter() - began)
            if progress and epoch + 1 < num_train_epochs:
                progress.save(epoch + 1, model, optimizer, schedule)
    return model.eval()


def steps_of(num_rows: int, batch_size: int) -> int:
    """Steps of an epoch over this number of rows."""
    return -(-num_rows // batch_size)


def add_gradients(
    model: torch.nn.Module,
    dataset: GlueDataset,
    rows: np.ndarray,
    overhead: float,
    bfloat16: bool,
    whole: int,
) -> torch.Tensor:
    """Adds the gradient of the summed loss of these rows, divided by `whole`, to the gradients of
    the parameters; returns the summed loss, float64.

    overhead: cost of a piece of the batch, see `split_batch`. bfloat16: autocast. whole: rows of
    the batch, of which these are one process's share.
    """
    device = next(model.parameters()).device
    total = torch.zeros((), dtype=torch.float64, device=device)
    for piece in split_batch(dataset.lengths[rows], overhead):
        batch = dataset.batch(rows[piece])
        batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            logits = model(**model_inputs(batch)).logits
        loss = compute_loss(logits, batch["labels"])
        (loss / whole).backward()
        total += loss.detach()
    return total


@torch.no_grad()
def over_rows(
    read, dataset: GlueDataset, device: torch.device, batch_size: int = 256, phase: str = ""
) -> torch.Tensor:
    """Values (N, K) of read(inputs of a batch) -> (B, K) for all rows, float32, on the CPU, in the
    order of the data set. phase: of the progress that is shown, see `progress.steps`; "": none is.
    """
    chunks = []
    order = np.argsort(-dataset.lengths, kind="stable")
    for first in steps(range(0, len(order), batch_size), phase, shown=bool(phase)):
        batch = model_inputs(dataset.batch(order[first : first + batch_size]))
        chunks.append(read({name: value.to(device) for name, value in batch.items()}).float().cpu())
    values = torch.empty(len(order), chunks[0].shape[1])
    values[torch.from_numpy(order)] = torch.cat(chunks)
    return values


def predict(
    model: torch.nn.Module, dataset: GlueDataset, batch_size: int = 256, phase: str = ""
) -> torch.Tensor:
    """Logits (N, C), float32, on the CPU, in the order of the data set's rows. phase: see
    `over_rows`.
    """
    model.eval()
    device = next(model.parameters()).device
    return over_rows(lambda inputs: model(**inputs).logits, dataset, device, batch_size, phase)


def evaluate_model(
    model: torch.nn.Module, dataset: GlueDataset, batch_size: int
) -> dict[str, float]:
    """Metrics of the task, mean loss per example (nats or squared error) and mean margin; of a
    regression also the standard deviation of its outputs in units of that of the labels.
    """
    logits = predict(model, dataset, batch_size)
    labels = torch.from_numpy(dataset.labels)
    task = dataset.task
    predictions = logits.squeeze(-1) if task.regression else logits.argmax(-1)
    result = compute_metrics(task.metrics, predictions.numpy(), dataset.labels)
    if task.regression:
        result["spread"] = float(predictions.std() / labels.std())
    result["loss"] = compute_loss(logits, labels).item() / len(dataset)
    return result | {"margin": compute_margin(logits, labels).mean().item()}
