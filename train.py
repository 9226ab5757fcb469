"""Fine-tunes BERT on a GLUE task (or the embedded demo) and saves what analyze.py reads.

    python train.py --dataset_name demo
    python train.py --dataset_name sst2 --checkpoint_dir ./checkpoints --train_batch_size 32 \\
        --eval_batch_size 32 --learning_rate 3e-05 --weight_decay 0.01 --num_train_epochs 3 --seed 1004
    python train.py --dataset_name rte --dataset_path DIR --model_name_or_path DIR   # nothing from a hub

The run is the folder CHECKPOINT_DIR/DATASET_NAME: weights, configuration and tokenizer as
`save_pretrained` writes them, and run.json. Symbols: B examples, C classes, N training rows.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

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

RECIPE = {"learning_rate": 3e-5, "weight_decay": 0.01, "num_train_epochs": 3, "train_batch_size": 32}
SCHEDULES = ("constant", "linear")


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that decide what a training run computes; their defaults depend on the data set."""
    demo = TASKS["demo"].recipe
    group = parser.add_argument_group("recipe")
    add = group.add_argument
    add("--learning_rate", type=float, help=f"AdamW step size ({RECIPE['learning_rate']}; demo {demo['learning_rate']})")
    add("--weight_decay", type=float, help=f"AdamW decay of all parameters ({RECIPE['weight_decay']})")
    add("--num_train_epochs", type=int, help=f"passes over the data ({RECIPE['num_train_epochs']}; demo {demo['num_train_epochs']})")  # fmt: skip # noqa: E501
    add("--train_batch_size", type=int, help=f"rows a step ({RECIPE['train_batch_size']})")
    add("--lr_schedule", choices=SCHEDULES, default="constant", help="constant is the published recipe; linear falls to 0")  # fmt: skip # noqa: E501
    add("--max_grad_norm", type=float, default=0.0, help="clip the gradient's norm to this (0: off, as published)")
    add("--freeze_embeddings", action="store_true", help="leave the embeddings as they were; influence scores see linear layers only")  # fmt: skip # noqa: E501
    add("--use_half_precision", action="store_true", help="bfloat16 autocast")


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_arguments(parser)
    parser.add_argument("--model_name_or_path", help="folder or hub id of a BERT (bert-base-cased; demo: the small BERT in demo/)")  # fmt: skip # noqa: E501
    parser.add_argument("--eval_batch_size", type=int, default=32, help="rows a batch in evaluation")
    parser.add_argument("--seed", type=int, default=0, help="start of the head, order of rows, dropout")
    add_recipe_arguments(parser)
    args = parser.parse_args(argv)
    check_positive(args, "eval_batch_size", "train_batch_size", "num_train_epochs", "max_train_samples", "max_length")
    if args.learning_rate is not None and args.learning_rate <= 0:
        raise Refused("--learning_rate must be above 0")
    return args


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that say where data and checkpoints are."""
    parser.add_argument("--dataset_name", required=True, help=f"one of {', '.join(TASKS)}")
    parser.add_argument("--dataset_path", help="folder or hub id that datasets.load_dataset(path, task) opens (nyu-mll/glue; demo: embedded)")  # fmt: skip # noqa: E501
    parser.add_argument("--checkpoint_dir", type=Path, default=Path("checkpoints"), help="where runs live, one folder a data set")  # fmt: skip # noqa: E501
    parser.add_argument("--max_train_samples", type=int, help="use the first so many training rows (all; rte 2432, as the published study)")  # fmt: skip # noqa: E501
    parser.add_argument("--max_length", type=int, help=f"tokens after which a row is cut ({MAX_LENGTH})")


def recipe_of(args: argparse.Namespace) -> dict:
    """The keyword arguments of `fit`: what was asked, else the data set's defaults, else RECIPE."""
    recipe = RECIPE | get_task(args.dataset_name).recipe
    recipe |= {name: getattr(args, name) for name in RECIPE if getattr(args, name) is not None}
    others = ("lr_schedule", "max_grad_norm", "freeze_embeddings", "use_half_precision")
    return recipe | {name: getattr(args, name) for name in others}


def epoch_order(rows: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The rows in the order of a hash of seed, epoch and row: without some rows, the others keep their order."""
    return rows[np.argsort(uniform_hash(seed, f"epoch {epoch}", rows), kind="stable")]


def fit(
    model: torch.nn.Module, dataset: GlueDataset, rows: np.ndarray, *, seed: int, learning_rate: float,
    weight_decay: float, num_train_epochs: int, train_batch_size: int, lr_schedule: str = "constant",
    max_grad_norm: float = 0.0, freeze_embeddings: bool = False, use_half_precision: bool = False,
    pad_to: int | None = None, on_epoch=None, on_batch=None,
) -> torch.nn.Module:  # fmt: skip
    """Trains the model in place on the given rows (numbers into dataset) with AdamW, and returns it.

    pad_to: pad every batch to so many tokens (None: to its longest row). on_epoch(epoch, mean loss per
    example in nats, seconds) is called after every epoch, on_batch(rows) after every step. Leaves the process's random state as it was.
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
    model.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for epoch in range(num_train_epochs):
            start, total = time.perf_counter(), torch.zeros((), dtype=torch.float64, device=device)
            order = epoch_order(np.asarray(rows), seed, epoch)
            for first in range(0, len(order), train_batch_size):
                batch = dataset.batch(order[first : first + train_batch_size], pad_to)
                batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
                with torch.autocast(device.type, torch.bfloat16, enabled=use_half_precision):
                    logits = model(**model_inputs(batch)).logits
                loss = compute_loss(logits, batch["labels"])
                optimizer.zero_grad(set_to_none=True)
                (loss / len(batch["row"])).backward()
                if max_grad_norm > 0:
                    torch.nn.utils.clip_grad_norm_(trained, max_grad_norm)
                optimizer.step()
                falling.step()
                total += loss.detach()
                if on_batch:
                    on_batch(len(batch["row"]))
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


def choose_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main(argv=None) -> None:
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
    model = construct_bert(args.dataset_name, args.model_name_or_path, seed=args.seed).to(device)
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
            "model_name_or_path": args.model_name_or_path, "max_length": max_length, "seed": args.seed,
            "recipe": recipe, "num_labels": task.num_labels, "train_rows": train.fingerprint(),
            "epochs": epochs, "evaluation": results, **environment(device),
        }  # fmt: skip
        save_run(args.checkpoint_dir / args.dataset_name, model, tokenizer, record)
    print(f"saved {args.checkpoint_dir / args.dataset_name}")


if __name__ == "__main__":
    sys.exit(run_script(main))
