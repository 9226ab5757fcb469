"""Fine-tunes BERT on a GLUE task (or the embedded demo) and saves what analyze.py reads.

    python train.py --dataset_name demo
    python train.py --dataset_name sst2 --checkpoint_dir ./checkpoints --train_batch_size 32 \\
        --eval_batch_size 32 --learning_rate 3e-05 --weight_decay 0.01 --num_train_epochs 3 --seed 1004
    python train.py --dataset_name rte --dataset_path DIR --model_name_or_path DIR   # nothing from a hub

The run is the folder CHECKPOINT_DIR/DATASET_NAME: weights, configuration and tokenizer as
`save_pretrained` writes them, and run.json. Symbols: B examples, C classes, N training rows.
"""

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification

from attribution.metrics import GlueMetric
from attribution.store import (
    Refused,
    check_positive,
    checksums,
    environment,
    exclusive,
    fingerprint_of_tensors,
    run_script,
    write_json,
)
from pipeline import (
    MAX_LENGTH,
    TASKS,
    GlueDataset,
    compute_loss,
    compute_margin,
    construct_bert,
    get_glue_dataset,
    get_task,
    get_tokenizer,
    load_tables,
    model_inputs,
    quiet_libraries,
    uniform_hash,
)  # fmt: skip

RECIPE = {
    "learning_rate": 3e-5, "weight_decay": 0.01, "num_train_epochs": 3, "train_batch_size": 32,
    "lr_schedule": "constant", "max_grad_norm": 0.0, "freeze_embeddings": False, "use_half_precision": False,
}  # fmt: skip
SCHEDULES = ("constant", "linear")


def add_recipe_arguments(parser: argparse.ArgumentParser, default: str = "") -> None:
    """The arguments that decide what a training run computes; None where nothing was asked (see `recipe_of`).

    default: where the value comes from if none is given; empty for the documented run of the data set.
    """
    demo = TASKS["demo"].recipe

    def of(name: str) -> str:
        return default or f"{RECIPE[name]}" + (f"; demo {demo[name]}" if name in demo else "")

    group = parser.add_argument_group("recipe")
    add, switch = group.add_argument, argparse.BooleanOptionalAction
    add("--learning_rate", type=float, help=f"AdamW step size ({of('learning_rate')})")
    add("--weight_decay", type=float, help=f"AdamW decay of all parameters ({of('weight_decay')})")
    add("--num_train_epochs", type=int, help=f"passes over the data ({of('num_train_epochs')})")
    add("--train_batch_size", type=int, help=f"rows a step ({of('train_batch_size')})")
    add("--lr_schedule", choices=SCHEDULES, help=f"constant is the published recipe; linear falls to 0 ({of('lr_schedule')})")
    add("--max_grad_norm", type=float, help=f"clip the gradient's norm to this; 0: off, as published ({of('max_grad_norm')})")
    add("--freeze_embeddings", action=switch, help=f"leave the embeddings as they were; influence scores see linear layers only ({of('freeze_embeddings')})")
    add("--use_half_precision", action=switch, help=f"bfloat16 autocast ({of('use_half_precision')})")


def parse_args(argv=None) -> argparse.Namespace:
    """The command line, checked. Raises Refused for values that no run could use."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    parser.add_argument("--model_name_or_path", help="folder or hub id of a BERT (bert-base-cased; demo: the small BERT in demo/)")  # fmt: skip # noqa: E501
    parser.add_argument("--num_hidden_layers", type=int, help="keep the first so many layers of the model (all)")
    parser.add_argument("--eval_batch_size", type=int, default=32, help="rows a batch in evaluation")
    parser.add_argument("--seed", type=int, default=0, help="start of the head, order of rows, dropout")
    add_recipe_arguments(parser)
    args = parser.parse_args(argv)
    check_positive(args, "eval_batch_size", "max_train_samples", "max_length", "num_hidden_layers")
    check_recipe(args)
    return args


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that say where data and checkpoints are."""
    parser.add_argument("--dataset_name", required=True, help=f"one of {', '.join(TASKS)}")
    parser.add_argument("--dataset_path", help="folder or hub id that datasets.load_dataset(path, task) opens (nyu-mll/glue; demo: embedded)")  # fmt: skip # noqa: E501
    parser.add_argument("--checkpoint_dir", type=Path, default=Path("checkpoints"), help="where runs live, one folder a data set")  # fmt: skip # noqa: E501
    parser.add_argument("--max_train_samples", type=int, help="use the first so many training rows (all; rte 2432, as the published study)")  # fmt: skip # noqa: E501
    parser.add_argument("--max_length", type=int, help=f"tokens after which a row is cut ({MAX_LENGTH})")


def check_recipe(args: argparse.Namespace) -> None:
    """Raises Refused for a recipe argument outside its range."""
    check_positive(args, "train_batch_size", "num_train_epochs", "learning_rate")
    for name in ("weight_decay", "max_grad_norm"):
        if (getattr(args, name) or 0.0) < 0:
            raise Refused(f"--{name} must not be negative")


def recipe_of(args: argparse.Namespace, base: dict | None = None) -> dict:
    """The keyword arguments of `fit`: what was asked, else `base` (a run's recipe), else the data set's defaults."""
    recipe = base or RECIPE | get_task(args.dataset_name).recipe
    return recipe | {name: getattr(args, name) for name in RECIPE if getattr(args, name) is not None}


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
    random state as it was.
    Same arguments, same machine and thread count: same weights, bit for bit on the CPU.
    """
    device = next(model.parameters()).device
    model.base_model.embeddings.requires_grad_(not freeze_embeddings)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=weight_decay, fused=True)
    steps = num_train_epochs * -(-len(rows) // train_batch_size)
    falling = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 1.0 if lr_schedule == "constant" else 1.0 - step / steps
    )
    overhead = piece_overhead(model, device)
    model.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for epoch in range(num_train_epochs):
            start, total = time.perf_counter(), torch.zeros((), dtype=torch.float64, device=device)
            order = epoch_order(np.asarray(rows), seed, epoch)
            for first in range(0, len(order), train_batch_size):
                chosen = order[first : first + train_batch_size]
                optimizer.zero_grad(set_to_none=True)
                for piece in split_batch(dataset.lengths[chosen], float("inf") if pad_to else overhead):
                    batch = dataset.batch(chosen[piece], pad_to)
                    batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
                    with torch.autocast(device.type, torch.bfloat16, enabled=use_half_precision):
                        logits = model(**model_inputs(batch)).logits
                    loss = compute_loss(logits, batch["labels"])
                    (loss / len(chosen)).backward()
                    total += loss.detach()
                if max_grad_norm > 0:
                    torch.nn.utils.clip_grad_norm_(trained, max_grad_norm)
                optimizer.step()
                falling.step()
                if on_batch:
                    on_batch(len(chosen))
            if on_epoch:
                on_epoch(epoch, total.item() / len(order), time.perf_counter() - start)
    return model.eval()


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


def save_run(folder: Path, model, tokenizer, record: dict) -> None:
    """Saves model and tokenizer beside the run, moves them in, and writes run.json last, with checksums.

    Without run.json, or with files that are not those it names, a folder does not count as a checkpoint.
    """
    saving = folder / ".saving"
    shutil.rmtree(saving, ignore_errors=True)
    try:
        model.save_pretrained(saving)
        tokenizer.save_pretrained(saving)
        files = checksums(path for path in saving.iterdir() if path.is_file())
        (folder / "run.json").unlink(missing_ok=True)
        for name in files:
            (saving / name).replace(folder / name)
    finally:
        shutil.rmtree(saving, ignore_errors=True)
    write_json(folder / "run.json", record | {"files": files, "weights": fingerprint_of_tensors(model.state_dict())})


def represent(folder: Path, device: torch.device, *sets: GlueDataset) -> list[np.ndarray]:
    """[CLS] of the last layer of the model in the folder, (rows, D) float32, for every data set."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).to(device)
    model.classifier = torch.nn.Identity()
    model.base_model.pooler = FirstToken()
    return [predict(model, data).numpy() for data in sets]


class FirstToken(torch.nn.Module):
    """The last layer's [CLS] (B, D) instead of the pooler's product."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden[:, 0]


def choose_device() -> torch.device:
    """This process's GPU (LOCAL_RANK of a launcher), else the CPU."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else torch.device("cpu")


def main(argv=None) -> None:
    """Fine-tunes and evaluates one model and stores it. Raises Refused on bad input."""
    quiet_libraries()
    args = parse_args(argv)
    task, recipe = get_task(args.dataset_name), recipe_of(args)
    tables = load_tables(args.dataset_name, args.dataset_path)
    tokenizer = get_tokenizer(args.model_name_or_path, args.dataset_name)
    max_length = args.max_length or min(MAX_LENGTH, tokenizer.model_max_length)
    shared = {"tokenizer": tokenizer, "max_length": max_length, "tables": tables}
    max_samples = args.max_train_samples or task.max_train_samples
    train = get_glue_dataset(args.dataset_name, "train", max_samples=max_samples, **shared)
    validation = {name: get_glue_dataset(args.dataset_name, name, **shared) for name in task.validation}
    device = choose_device()
    model = construct_bert(args.dataset_name, args.model_name_or_path, args.seed, args.num_hidden_layers).to(device)
    if max_length > (most := model.config.max_position_embeddings):
        raise Refused(f"--max_length {max_length} is more than the {most} positions of this model")
    print(f"{args.dataset_name}: {len(train):,} training rows, {sum(p.numel() for p in model.parameters()):,} parameters")

    epochs = []
    with exclusive(args.checkpoint_dir / args.dataset_name):
        with tqdm(total=recipe["num_train_epochs"] * len(train), unit=" examples", leave=False) as bar:

            def report(epoch: int, loss: float, seconds: float) -> None:
                epochs.append({"loss": loss, "seconds": seconds})
                bar.write(f"epoch {epoch + 1}: loss {loss:.4f} per example, {len(train) / seconds:,.0f} examples/s")

            fit(model, train, np.arange(len(train)), seed=args.seed, on_epoch=report, on_batch=bar.update, **recipe)
        results = {name: evaluate_model(model, data, args.eval_batch_size) for name, data in validation.items()}
        for name, result in results.items():
            print(f"{name}: " + ", ".join(f"{key} {value:.4f}" for key, value in result.items()))
        record = {
            "dataset_name": args.dataset_name, "dataset_path": args.dataset_path, "max_train_samples": max_samples,
            "model_name_or_path": args.model_name_or_path, "num_hidden_layers": args.num_hidden_layers,
            "max_length": max_length, "seed": args.seed,
            "recipe": recipe, "num_labels": task.num_labels, "train_rows": train.fingerprint(),
            "epochs": epochs, "evaluation": results, **environment(device),
        }  # fmt: skip
        save_run(args.checkpoint_dir / args.dataset_name, model, tokenizer, record)
    print(f"saved {args.checkpoint_dir / args.dataset_name}")


if __name__ == "__main__":
    sys.exit(run_script(main))
