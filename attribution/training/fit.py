"""Training and prediction: the rows of an epoch, the pieces of a batch, AdamW, and the task's
metrics.

Symbols: N rows, C classes.
"""

import tempfile
import time

import numpy as np
import torch

from attribution.data.dataset import GlueDataset
from attribution.draws import uniform_hash
from attribution.processes import ALONE, Processes
from attribution.training.metrics import GlueMetric
from attribution.training.resume import SEEDS_APART, Progress, add_up, share_of
from pipeline import compute_loss, compute_margin, model_inputs


class Diverged(Exception):
    """Training met a loss that is not finite."""

    def __init__(self, step: int, rate: float) -> None:
        super().__init__(f"the loss of step {step} is not finite, at a learning rate of {rate:.3g}")


def epoch_order(rows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The rows in the order of a hash of seed, epoch and row: without some rows, the others keep
    their order.
    """
    return rows[np.argsort(uniform_hash(seed, f"epoch {epoch}", rows), kind="stable")]


def split_batch(lengths: np.ndarray, overhead: float) -> list[np.ndarray]:
    """Positions of a batch's rows, cut into pieces of like length that are cheapest to run one
    after the other.

    A piece costs its rows times its longest row, in tokens, and `overhead` tokens on top. The
    gradient of the batch is the sum of its pieces', so only the padding changes. Shortest paths
    over the sorted rows.
    """
    order = np.argsort(-lengths, kind="stable")
    best, last = [0.0], []
    for end in range(1, len(order) + 1):
        costs = [
            best[start] + (end - start) * lengths[order[start]] + overhead for start in range(end)
        ]
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

    On a CPU a pass takes some 6 ms beside its products (measured with the demo's BERT), the time of
    4e8 multiply-adds and additions, of which a token needs 6 P; and each pass reads all P weights
    again, which costs as much as some 12 tokens.
    """
    if device.type != "cpu":
        return float("inf")
    weights = sum(p.numel() for name, p in model.named_parameters() if "embeddings" not in name)
    return 12 + 4e8 / (6 * weights)


def unwatched(*_) -> None:
    """Told of an epoch, a batch or a step, does nothing."""


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
    on_epoch=unwatched,
    on_batch=unwatched,
    on_step=unwatched,
    pad_to: int | None = None,
    progress: Progress | None = None,
    processes: Processes = ALONE,
) -> torch.nn.Module:
    """Trains the model in place on the given rows (numbers into dataset) with AdamW, and returns
    it.

    pad_to: tokens of every batch (None: of its longest row). on_epoch(epoch, mean loss per example
    in nats, seconds), on_batch(rows), on_step(number of steps so far): called after every epoch and
    step. progress: where it goes on. processes: each takes its share of a batch. The process's
    random state stays. Same arguments, machine, threads, processes: same bits on the CPU. Raises
    Diverged at the first loss that is not finite.
    """
    device, trained = next(model.parameters()).device, trainable(model.train(), freeze_embeddings)
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=weight_decay, fused=True)
    falling = schedule(
        optimizer, lr_schedule, num_train_epochs * steps_of(len(rows), train_batch_size)
    )
    watch, overhead = LossWatch(device), float("inf") if pad_to else piece_overhead(model, device)

    def step(chosen: np.ndarray) -> torch.Tensor:
        optimizer.zero_grad()
        own, how = (
            share_of(chosen, dataset.lengths, processes),
            (overhead, pad_to, use_half_precision),
        )
        loss = add_up(trained, add_gradients(model, dataset, own, *how, len(chosen)), processes)
        watch.see(loss, falling.get_last_lr()[0])
        clip(trained, max_grad_norm)
        optimizer.step()
        falling.step()
        on_step(falling.last_epoch)
        return loss

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed + processes.rank * SEEDS_APART)
        for epoch in range(
            progress.restore(model, optimizer, falling) if progress else 0, num_train_epochs
        ):
            start = time.perf_counter()
            loss = one_epoch(
                step, epoch_order(np.asarray(rows), seed, epoch), train_batch_size, on_batch
            )
            watch.look()
            on_epoch(epoch, float(loss) / len(rows), time.perf_counter() - start)
            if progress and epoch + 1 < num_train_epochs:
                progress.save(epoch + 1, model, optimizer, falling)
    return model.eval()


def steps_of(num_rows: int, batch_size: int) -> int:
    """Steps of an epoch over so many rows."""
    return -(-num_rows // batch_size)


def trainable(model: torch.nn.Module, freeze_embeddings: bool) -> list[torch.nn.Parameter]:
    """The parameters that are trained."""
    model.base_model.embeddings.requires_grad_(not freeze_embeddings)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def one_epoch(step, order: np.ndarray, batch_size: int, on_batch) -> torch.Tensor:
    """step(rows) -> summed loss for every batch of the rows in this order; returns the sum of all,
    float64.
    """
    total = 0.0
    for first in range(0, len(order), batch_size):
        chosen = order[first : first + batch_size]
        total += step(chosen)
        on_batch(len(chosen))
    return total


def schedule(optimizer, kind: str, steps: int):
    """The learning rate's share of its start, step by step: "constant", or "linear" down to 0."""
    share = {"constant": lambda step: 1.0, "linear": lambda step: 1.0 - step / steps}[kind]
    return torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def clip(parameters: list, max_norm: float) -> None:
    """Scales the gradient down to this norm; 0: not at all."""
    if max_norm > 0:
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)


class LossWatch:
    """Notices the first loss that is not finite: at once on a CPU, every 50 steps on a GPU, which
    need not wait.
    """

    def __init__(self, device: torch.device) -> None:
        self.every = 1 if device.type == "cpu" else 50
        self.first = torch.zeros(
            (), dtype=torch.int64, device=device
        )  # its step, counted from 1; 0: none yet
        self.rates: list[float] = []

    def see(self, loss: torch.Tensor, rate: float) -> None:
        """Takes the next step's loss, a scalar, and its learning rate."""
        self.rates.append(rate)
        bad = ~torch.isfinite(loss) & (self.first == 0)
        self.first = torch.where(bad, len(self.rates), self.first)
        if len(self.rates) % self.every == 0:
            self.look()

    def look(self) -> None:
        """Raises Diverged where there was such a loss."""
        if (step := int(self.first)) > 0:
            raise Diverged(step, self.rates[step - 1])


def add_gradients(
    model: torch.nn.Module,
    dataset: GlueDataset,
    rows: np.ndarray,
    overhead: float,
    pad_to: int | None,
    half: bool,
    whole: int,
) -> torch.Tensor:
    """Adds the gradient of the summed loss of these rows, divided by `whole`, to the parameters';
    returns that sum.

    overhead: cost of a piece of the batch, see `split_batch`. pad_to: tokens of every piece (None:
    its longest row). half: bfloat16 autocast. whole: rows of the batch, of which these are one
    process's share. The sum is float64.
    """
    device = next(model.parameters()).device
    total = torch.zeros((), dtype=torch.float64, device=device)
    lengths = dataset.lengths[rows]
    one = [np.argsort(-lengths, kind="stable")] if len(rows) else []
    for piece in split_batch(lengths, overhead) if np.isfinite(overhead) else one:
        batch = dataset.batch(rows[piece], pad_to)
        batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            logits = model(**model_inputs(batch)).logits
        loss = compute_loss(logits, batch["labels"])
        (loss / whole).backward()
        total += loss.detach()
    return total


@torch.no_grad()
def over_rows(
    read, dataset: GlueDataset, device: torch.device, batch_size: int = 256
) -> torch.Tensor:
    """read(inputs of a batch) -> (B, K) for all rows: (N, K), float32, on the CPU, in the order of
    the data set.
    """
    chunks, order = [], np.argsort(-dataset.lengths, kind="stable")
    for first in range(0, len(order), batch_size):
        batch = model_inputs(dataset.batch(order[first : first + batch_size]))
        chunks.append(read({name: value.to(device) for name, value in batch.items()}).float().cpu())
    values = torch.empty(len(order), chunks[0].shape[1])
    values[torch.from_numpy(order)] = torch.cat(chunks)
    return values


def predict(model: torch.nn.Module, dataset: GlueDataset, batch_size: int = 256) -> torch.Tensor:
    """Logits (N, C), float32, on the CPU, in the order of the data set's rows."""
    model.eval()
    return over_rows(
        lambda inputs: model(**inputs).logits, dataset, next(model.parameters()).device, batch_size
    )


def evaluate_model(
    model: torch.nn.Module, dataset: GlueDataset, batch_size: int = 32
) -> dict[str, float]:
    """The task's own metrics, the mean loss per example (nats or squared error) and the mean
    margin.
    """
    logits, labels = predict(model, dataset, batch_size), torch.from_numpy(dataset.labels)
    predictions = logits.squeeze(-1) if dataset.task.regression else logits.argmax(-1)
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # evaluate makes a folder even where it keeps everything in memory
        metric = GlueMetric(dataset.task.metrics, dataset.task.regression, cache_dir=folder)
        result = metric.compute(predictions=predictions.numpy(), references=dataset.labels)
    result["loss"] = compute_loss(logits, labels).item() / len(dataset)
    return result | {"margin": compute_margin(logits, labels).mean().item()}
