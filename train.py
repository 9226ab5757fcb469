"""Fine-tunes BERT on a GLUE task, the demo or custom rows, and saves the run.

    python train.py --dataset_name demo
    python train.py --dataset_name sst2 --checkpoint_dir ./checkpoints \\
        --train_batch_size 32 --eval_batch_size 32 --learning_rate 3e-05 \\
        --weight_decay 0.01 --num_train_epochs 3 --seed 1004
    python train.py --dataset_name rte --dataset_path DIR \\
        --model_name_or_path DIR                          # without a hub
    python train.py --dataset_name reviews --dataset_path reviews.csv \\
        --text_columns text --label_column stars          # custom rows
    python train.py --dataset_name rte --adopt DIR        # a fine-tuned model
    python train.py --dataset_name demo --num_members 5   # five seeds
    python train.py --dataset_name demo --member_steps 4  # and three earlier steps

The run is the folder CHECKPOINT_DIR/DATASET_NAME: weights, configuration and
tokenizer as `save_pretrained` writes them, and run.json.
"""

import argparse
import functools
import sys
from pathlib import Path

from attribution.cli import Parser, add_options, check_numbers, options_of, run_script
from attribution.engine.modules import check_attribution
from attribution.files import Refused, describe_parts, exclusive, fingerprint_of_tensors
from attribution.models import fingerprint_of_start, name_classes, shortened
from attribution.processes import (
    TIMEOUT,
    TRAINING_TIMEOUT,
    Processes,
    check_launcher,
    choose_device,
    launched,
    name_of,
)
from attribution.provenance import environment
from attribution.training.adopt import FLAG as ADOPT
from attribution.training.adopt import (
    judge,
    names_of_outputs,
    open_adopted,
    open_config,
    parts_lost,
)
from attribution.training.checkpoints import Trainer, evaluate_splits, show_metrics
from attribution.training.data import Tables, add_custom_arguments, open_tables, read_rows
from attribution.training.fit import evaluate_model
from attribution.training.members import Members
from attribution.training.metrics import doubts
from attribution.training.recipe import RECIPE, add_recipe_arguments, check_recipe, recipe_of
from attribution.training.run import (
    Run,
    absolute,
    add_data_arguments,
    check_place,
    save_run,
)
from pipeline import MAX_LENGTH, construct_bert, get_tokenizer, quiet_libraries


def parse_args(argv=None) -> argparse.Namespace:
    """Parsed and checked command line. Raises Refused for values that no run could use."""
    parser = Parser(
        __doc__,
        rare=(
            "label_order",
            "tokenizer_name_or_path",
            "new_head",
            "num_hidden_layers",
            "split_seed",
            "task",
            "max_grad_norm",
            "lr_schedule",
            "eval_batch_size",
        ),
    )
    add = add_data_arguments(parser).add_argument
    add(
        "--max_train_samples",
        type=int,
        help="number of training rows, from the first on (all; rte 2432, as published)",
    )
    add("--max_length", type=int, help=f"tokens after which a row is cut ({MAX_LENGTH})")
    add = parser.group("model").add_argument
    add(
        "--model_name_or_path",
        help="folder or hub id of an encoder (bert-base-cased; demo: the small BERT in demo/)",
    )
    add(
        "--adopt",
        metavar="DIR",
        help="adopt the fine-tuned model in this folder; nothing is trained",
    )
    add(
        "--label_order",
        nargs="+",
        metavar="CLASS",
        help="the task's classes in the order of the adopted model's outputs",
    )
    add("--tokenizer_name_or_path", help="folder or hub id of the tokenizer (that of the model)")
    add(
        "--new_head",
        action="store_true",
        help="draw the classification head even if the model has one",
    )
    add("--num_hidden_layers", type=int, help="number of layers to keep, from the first on (all)")
    add_custom_arguments(parser)
    add_recipe_arguments(parser)
    add_options(parser, Members)
    add = parser.group("how it runs").add_argument
    add("--eval_batch_size", type=int, default=32, help="rows a batch in evaluation (32)")
    add(
        "--seed",
        type=int,
        help="seed of the head, the order of rows, and dropout (0; of an adopted model: unknown)",
    )
    add(
        "--overwrite",
        action="store_true",
        help="replace an adopted run, or with --adopt any run",
    )
    args = parser.parse_args(argv)
    check_numbers(
        vars(args), "eval_batch_size", "max_train_samples", "max_length", "num_hidden_layers"
    )
    check_recipe(vars(args))
    members = options_of(Members, args)
    members.check()
    if args.adopt and (not members.single or args.new_head or args.num_hidden_layers):
        raise Refused(
            "--adopt takes one model as it is: without members, --new_head and --num_hidden_layers"
        )
    if args.label_order and not args.adopt:
        raise Refused(
            "--label_order says how an adopted model orders its classes; it goes with --adopt"
        )
    return args


def open_tokenizer(args: argparse.Namespace):
    """Tokenizer of --tokenizer_name_or_path, else that of the model."""
    for name in ("tokenizer_name_or_path", "adopt"):
        if getattr(args, name):
            return get_tokenizer(getattr(args, name), args.dataset_name, f"--{name}")
    return get_tokenizer(args.model_name_or_path, args.dataset_name)


def open_start(args: argparse.Namespace, tables: Tables, seed: int):
    """Start model with the head of this seed."""
    layers = args.num_hidden_layers
    new_head = None if args.adopt else args.new_head
    return construct_bert(
        args.dataset_name, args.model_name_or_path, seed, layers, new_head, tables.task
    )


def describe_start(args: argparse.Namespace, start: str | None, record: dict) -> dict:
    """Parts of run.json about rows and start model. record: the parts about the rows."""
    names = ("model_name_or_path", "num_hidden_layers", "tokenizer_name_or_path", "new_head")
    folders = record["folders"] | {"model_name_or_path": absolute(args.model_name_or_path)}
    given = {name: getattr(args, name) for name in names}
    return record | given | {"folders": folders, "start": start}


def adopt(args: argparse.Namespace, folder: Path, tables: Tables, limit: int | None) -> None:
    """Evaluates and saves a model that was fine-tuned elsewhere; nothing is trained."""
    device = choose_device()
    tokenizer = open_tokenizer(args)
    model, order = open_adopted(args.adopt, tables.task, args.label_order)
    rows = read_rows(tables, model, tokenizer, args.max_length, limit)
    check_attribution(model, rows.train)
    stated = [args.model_name_or_path, *(getattr(args, name) for name in RECIPE)]
    known = any(value is not None for value in stated)
    start = fingerprint_of_start(open_start(args, tables, 0)) if known else None
    model = name_classes(model, tables.task).to(device)
    record = describe_start(args, start, rows.record) | environment(device)
    record |= {
        "seed": args.seed,
        "recipe": recipe_of(vars(args), args.dataset_name) if known else None,
        "weights": fingerprint_of_tensors(model.state_dict()),
    }
    run = Run.read(folder)
    if run and not args.overwrite and (parts := parts_lost(run, record)):
        raise Refused(
            f"{folder} holds a run with {describe_parts(parts)}; pass --overwrite to replace it, "
            "or use another --checkpoint_dir"
        )
    results = evaluate_splits(model, rows, args.eval_batch_size)
    seen = evaluate_model(model, rows.train, args.eval_batch_size)
    record |= {
        "evaluation": results,
        "doubts": doubts(results, rows.validation),
        "adopted": {
            "from": absolute(args.adopt) or args.adopt,
            "outputs": order,
            "training": seen,
        },
    }
    with exclusive(folder):
        save_run(folder, model, tokenizer, record)
    show_metrics(results)
    first = next(iter(rows.validation))
    for line in judge(seen, results[first], rows.train, rows.validation[first]):
        print(line)
    print(f"saved {folder}")


def fine_tune(
    args: argparse.Namespace,
    folder: Path,
    tables: Tables,
    limit: int | None,
    processes: Processes,
) -> None:
    """Trains the missing checkpoints of the command."""
    run = Run.read(folder)
    if run and run.adopted and not args.overwrite:
        raise Refused(
            f"{folder} holds an adopted model; pass --overwrite to replace it, or name another "
            "folder"
        )
    tokenizer = open_tokenizer(args)
    seed = args.seed or 0
    model = open_start(args, tables, seed)
    for state, names in (("drawn at random", model.drawn), ("stored, but not used", model.unused)):
        if names:
            print(f"{state}: {shortened(sorted(names), 6)}")
    rows = read_rows(tables, model, tokenizer, args.max_length, limit)
    check_attribution(model, rows.train)
    device = choose_device()
    size = f"{len(rows.train):,} training rows, {model.num_parameters():,} parameters"
    print(f"{args.dataset_name}: {size}, on {name_of(device)}")
    recipe = recipe_of(vars(args), args.dataset_name)
    record = describe_start(args, fingerprint_of_start(model), rows.record)
    record |= {"recipe": recipe, "processes": processes.count, **environment(device)}
    trainer = Trainer(
        rows,
        recipe,
        record,
        options_of(Members, args),
        args.eval_batch_size,
        functools.partial(open_start, args, tables),
    )
    trainer.train_all(folder, seed, processes)


def main(argv=None) -> None:
    """Fine-tunes and evaluates a model, or adopts one, and saves the run."""
    quiet_libraries()
    args = parse_args(argv)
    # With several trainings, each process works on checkpoints alone.
    several = args.num_members > 1 or args.member_share < 1
    with launched(TRAINING_TIMEOUT if several else TIMEOUT) as processes:
        check_launcher(choose_device(), processes)
        folder = args.checkpoint_dir / args.dataset_name
        classes = (
            names_of_outputs(open_config(args.adopt), args.label_order) if args.adopt else None
        )
        tables = open_tables(args.dataset_name, args.dataset_path, vars(args), classes)
        limit = args.max_train_samples or tables.task.max_train_samples
        if args.adopt:
            check_place(folder, args.adopt, ADOPT)
            if processes.main:
                adopt(args, folder, tables, limit)
        else:
            check_place(folder, args.model_name_or_path)
            fine_tune(args, folder, tables, limit, processes)


if __name__ == "__main__":
    sys.exit(run_script(main))
