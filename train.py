"""Fine-tunes BERT on a GLUE task (or the embedded demo) and saves what analyze.py reads.

    python train.py --dataset_name demo
    python train.py --dataset_name sst2 --checkpoint_dir ./checkpoints --train_batch_size 32 \\
        --eval_batch_size 32 --learning_rate 3e-05 --weight_decay 0.01 --num_train_epochs 3 --seed 1004
    python train.py --dataset_name rte --dataset_path DIR --model_name_or_path DIR   # nothing from a hub

The run is the folder CHECKPOINT_DIR/DATASET_NAME: weights, configuration and tokenizer as
`save_pretrained` writes them, and run.json.
"""

import argparse
import sys

import numpy as np
from tqdm import tqdm

from attribution.files import Refused, check_numbers, environment, exclusive, run_script
from attribution.influence.support import check_attribution
from attribution.rows import GlueDataset
from attribution.start import check_tokens, fingerprint_of_start, fingerprint_of_tokenizer, inputs_of, usable_positions
from attribution.training.fit import Diverged, choose_device, evaluate_model, fit, name_of
from attribution.training.recipe import Parser, add_data_arguments, add_recipe_arguments, check_recipe, recipe_of
from attribution.training.run import absolute, add_to_run, check_place, save_run
from pipeline import (
    MAX_LENGTH,
    construct_bert,
    get_glue_dataset,
    get_task,
    get_tokenizer,
    load_tables,
    quiet_libraries,
)


def parse_args(argv=None) -> argparse.Namespace:
    """The command line, checked. Raises Refused for values that no run could use."""
    parser = Parser(__doc__)
    add = add_data_arguments(parser).add_argument
    add("--max_train_samples", type=int, help="use the first so many training rows (all; rte 2432, as published)")
    add("--max_length", type=int, help=f"tokens after which a row is cut ({MAX_LENGTH})")
    add = parser.add_argument_group("model").add_argument
    add("--model_name_or_path", help="folder or hub id of an encoder (bert-base-cased; demo: the small BERT in demo/)")
    add("--tokenizer_name_or_path", help="folder or hub id of the tokenizer (that of the model)")
    add("--new_head", action="store_true", help="draw the classification head even where the model has one")
    add("--num_hidden_layers", type=int, help="keep the first so many layers of the model (all)")
    add_recipe_arguments(parser)
    add = parser.add_argument_group("how it runs").add_argument
    add("--eval_batch_size", type=int, default=32, help="rows a batch in evaluation (32)")
    add("--seed", type=int, default=0, help="start of the head, order of rows, dropout (0)")
    args = parser.parse_args(argv)
    check_numbers(vars(args), "eval_batch_size", "max_train_samples", "max_length", "num_hidden_layers")
    check_recipe(vars(args))
    return args


def train(model, dataset: GlueDataset, recipe: dict, seed: int) -> list[dict]:
    """Trains the model in place on all rows with a progress bar; returns loss and seconds of every epoch."""
    epochs = []
    with tqdm(total=recipe["num_train_epochs"] * len(dataset), unit=" examples", leave=False) as bar:

        def report(epoch: int, loss: float, seconds: float) -> None:
            epochs.append({"loss": loss, "seconds": seconds})
            rate = len(dataset) / seconds
            bar.write(f"epoch {epoch + 1}: loss {loss:.4f} per example, {rate:,.0f} examples/s")

        try:
            fit(model, dataset, np.arange(len(dataset)), seed=seed, on_epoch=report, on_batch=bar.update, **recipe)
        except Diverged as error:
            raise Refused(f"training diverged: {error}; lower --learning_rate") from error
    return epochs


def open_tokenizer(args: argparse.Namespace):
    """The tokenizer that was asked for, else that of the model."""
    if args.tokenizer_name_or_path:
        return get_tokenizer(args.tokenizer_name_or_path, args.dataset_name, "--tokenizer_name_or_path")
    return get_tokenizer(args.model_name_or_path, args.dataset_name)


def open_model(args: argparse.Namespace):
    """The start model that was asked for; names the weights that are drawn, and those that are not used."""
    name, layers = args.model_name_or_path, args.num_hidden_layers
    model = construct_bert(args.dataset_name, name, args.seed, layers, args.new_head)
    for what, keys in (("drawn at random", sorted(model.drawn)), ("stored, but not used", model.unused)):
        if keys:
            more = f" and {len(keys) - 6} more" if len(keys) > 6 else ""
            print(f"{what}: {', '.join(keys[:6])}{more}")
    return model


def main(argv=None) -> None:
    """Fine-tunes and evaluates one model and stores it. Raises Refused on bad input."""
    quiet_libraries()
    args = parse_args(argv)
    task, recipe = get_task(args.dataset_name), recipe_of(vars(args), args.dataset_name)
    folder, device = args.checkpoint_dir / args.dataset_name, choose_device()
    check_place(folder, args.model_name_or_path)
    tables = load_tables(args.dataset_name, args.dataset_path)
    tokenizer = open_tokenizer(args)
    model = open_model(args)
    positions = usable_positions(model)
    max_length = args.max_length or min(MAX_LENGTH, tokenizer.model_max_length, positions)
    if max_length > positions:
        raise Refused(f"--max_length {max_length} is more than the {positions} positions of this model")
    inputs = inputs_of(model, tokenizer)
    shared = {"tokenizer": tokenizer, "max_length": max_length, "tables": tables, "inputs": inputs}
    max_samples = args.max_train_samples or task.max_train_samples
    rows = get_glue_dataset(args.dataset_name, "train", max_samples=max_samples, **shared)
    validation = {name: get_glue_dataset(args.dataset_name, name, **shared) for name in task.validation}
    check_tokens(model, rows, *validation.values())
    check_attribution(model, rows)
    size = f"{len(rows):,} training rows, {model.num_parameters():,} parameters"
    print(f"{args.dataset_name}: {size}, on {name_of(device)}")
    record = {
        "dataset_name": args.dataset_name, "dataset_path": args.dataset_path, "max_train_samples": max_samples,
        "model_name_or_path": args.model_name_or_path, "num_hidden_layers": args.num_hidden_layers,
        "tokenizer_name_or_path": args.tokenizer_name_or_path, "new_head": args.new_head, "inputs": inputs,
        "folders": {name: absolute(getattr(args, name)) for name in ("dataset_path", "model_name_or_path")},
        "start": fingerprint_of_start(model), "tokenizer": fingerprint_of_tokenizer(tokenizer),
        "max_length": max_length, "seed": args.seed, "recipe": recipe, "num_labels": task.num_labels,
        "train_rows": rows.fingerprint(), **environment(device),
    }  # fmt: skip
    with exclusive(folder):
        record["epochs"] = train(model.to(device), rows, recipe, args.seed)
        save_run(folder, model, tokenizer, record | {"evaluation": {}})  # first: an evaluation that fails loses nothing
        results = {name: evaluate_model(model, data, args.eval_batch_size) for name, data in validation.items()}
        add_to_run(folder, evaluation=results)
    for name, result in results.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.4f}" for key, value in result.items()))
    print(f"saved {folder}")


if __name__ == "__main__":
    sys.exit(run_script(main))
