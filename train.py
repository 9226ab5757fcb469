"""Fine-tunes BERT on a GLUE task, the embedded demo or rows of your own, and saves what analyze.py
reads.

    python train.py --dataset_name demo
    python train.py --dataset_name sst2 --checkpoint_dir ./checkpoints --train_batch_size 32 \\
        --eval_batch_size 32 --learning_rate 3e-05 --weight_decay 0.01 --num_train_epochs 3 --seed
        1004
    python train.py --dataset_name rte --dataset_path DIR --model_name_or_path DIR   # nothing from a hub
    python train.py --dataset_name reviews --dataset_path reviews.csv --text_columns text --label_column stars
    python train.py --dataset_name rte --adopt DIR        # no training: the fine-tuned model in DIR becomes the run
    python train.py --dataset_name demo --num_members 5   # checkpoints of five seeds
    python train.py --dataset_name demo --member_steps 4  # and of one training at a quarter, half, three quarters

The run is the folder CHECKPOINT_DIR/DATASET_NAME: weights, configuration and tokenizer as
`save_pretrained` writes them, and run.json.
"""

import argparse
import sys
from pathlib import Path

from attribution.files import Refused, check_numbers, exclusive, read_json, run_script
from attribution.influence.support import check_attribution
from attribution.models import fingerprint_of_start, name_classes
from attribution.processes import APART, Processes, check_launcher, launched
from attribution.provenance import environment
from attribution.training.adopt import FLAG as ADOPT
from attribution.training.adopt import judge, open_adopted
from attribution.training.checkpoints import Making, evaluate_all, show_metrics
from attribution.training.corruption import add_corruption_arguments, check_corruption
from attribution.training.data import (
    Tables,
    add_own_arguments,
    corrupted,
    open_tables_of_task,
    read_rows,
)
from attribution.training.fit import choose_device, evaluate_model, name_of
from attribution.training.metrics import doubts
from attribution.training.recipe import (
    RECIPE,
    Parser,
    add_data_arguments,
    add_member_arguments,
    add_recipe_arguments,
    check_recipe,
    members_of,
    recipe_of,
)
from attribution.training.run import absolute, check_place, refuse_replacing, save_run
from pipeline import MAX_LENGTH, construct_bert, get_tokenizer, quiet_libraries


def parse_args(argv=None) -> argparse.Namespace:
    """The command line, checked. Raises Refused for values that no run could use."""
    parser = Parser(__doc__)
    add = add_data_arguments(parser).add_argument
    add(
        "--max_train_samples",
        type=int,
        help="use the first so many training rows (all; rte 2432, as published)",
    )
    add("--max_length", type=int, help=f"tokens after which a row is cut ({MAX_LENGTH})")
    add_corruption_arguments(add)
    add = parser.add_argument_group("model").add_argument
    add(
        "--model_name_or_path",
        help="folder or hub id of an encoder (bert-base-cased; demo: the small BERT in demo/)",
    )
    add(
        "--adopt",
        metavar="DIR",
        help="take the fine-tuned model in this folder, head and tokenizer, as it is",
    )
    add(
        "--label_order",
        nargs="+",
        metavar="CLASS",
        help="the task's classes in the order of its outputs",
    )
    add("--tokenizer_name_or_path", help="folder or hub id of the tokenizer (that of the model)")
    add(
        "--new_head",
        action="store_true",
        help="draw the classification head even where the model has one",
    )
    add("--num_hidden_layers", type=int, help="keep the first so many layers of the model (all)")
    add_own_arguments(parser)
    add_recipe_arguments(parser)
    add = parser.add_argument_group("how it runs").add_argument
    add("--eval_batch_size", type=int, default=32, help="rows a batch in evaluation (32)")
    add(
        "--seed",
        type=int,
        help="start of the head, order of rows, dropout (0; of an adopted model: not known)",
    )
    add_member_arguments(
        add,
        "checkpoints of so many seeds, from --seed up; those that are there and fit are kept (1: "
        "train anew)",
    )
    add(
        "--overwrite",
        action="store_true",
        help="replace an adopted run, or with --adopt whatever run is there",
    )
    args = parser.parse_args(argv)
    check_numbers(
        vars(args), "eval_batch_size", "max_train_samples", "max_length", "num_hidden_layers"
    )
    check_recipe(vars(args))
    check_corruption(args, parser.get_default("checkpoint_dir"))
    if args.adopt and (
        not members_of(vars(args)).single or args.new_head or args.num_hidden_layers
    ):
        raise Refused(
            "--adopt takes one model as it is: without members, --new_head and --num_hidden_layers"
        )
    if args.label_order and not args.adopt:
        raise Refused(
            "--label_order says how an adopted model orders its classes; it goes with --adopt"
        )
    return args


def limit_of(args: argparse.Namespace, tables: Tables) -> int | None:
    """How many training rows are taken: as asked, else as the task has it; None for all."""
    return args.max_train_samples or tables.task.max_train_samples


def open_tokenizer(args: argparse.Namespace):
    """The tokenizer that was asked for, else that of the model."""
    if args.tokenizer_name_or_path:
        return get_tokenizer(
            args.tokenizer_name_or_path, args.dataset_name, "--tokenizer_name_or_path"
        )
    return get_tokenizer(
        args.adopt or args.model_name_or_path, args.dataset_name, *[ADOPT] * bool(args.adopt)
    )


def open_model(args: argparse.Namespace, tables: Tables, seed: int, quiet: bool = False):
    """The start model that was asked for; names the weights that are drawn, and those that are not
    used.
    """
    name, layers = args.model_name_or_path, args.num_hidden_layers
    model = construct_bert(args.dataset_name, name, seed, layers, args.new_head, task=tables.task)
    for what, keys in (
        ("drawn at random", sorted(model.drawn)),
        ("stored, but not used", model.unused),
    ):
        if keys and not quiet:
            more = f" and {len(keys) - 6} more" if len(keys) > 6 else ""
            print(f"{what}: {', '.join(keys[:6])}{more}")
    return model


def describe_start(args: argparse.Namespace, start: str | None, record: dict) -> dict:
    """What run.json says of the start, beside what it says of the rows."""
    names = ("model_name_or_path", "num_hidden_layers", "tokenizer_name_or_path", "new_head")
    folders = record["folders"] | {"model_name_or_path": absolute(args.model_name_or_path)}
    return {name: getattr(args, name) for name in names} | {"folders": folders, "start": start}


def adopt(args: argparse.Namespace, folder: Path, tables: Tables) -> None:
    """Evaluates and stores a model that was fine-tuned elsewhere; nothing is trained."""
    device, tokenizer = choose_device(), open_tokenizer(args)
    model, order = open_adopted(args.adopt, tables.task, args.label_order)
    material = read_rows(tables, model, tokenizer, args.max_length, limit_of(args, tables))
    check_attribution(model, material.train)
    known = args.model_name_or_path is not None or any(
        getattr(args, name) is not None for name in RECIPE
    )
    start = fingerprint_of_start(open_model(args, tables, 0)) if known else None
    recipe = recipe_of(vars(args), args.dataset_name) if known else None
    record = material.record | describe_start(args, start, material.record)
    record |= {"seed": args.seed, "recipe": recipe, "evaluation": {}, **environment(device)}
    model = name_classes(model, tables.task).to(device)
    refuse_replacing(folder, model, args.overwrite)
    results = evaluate_all(model, material, args.eval_batch_size)
    seen = evaluate_model(model, material.train, args.eval_batch_size)
    came = {"from": absolute(args.adopt) or args.adopt, "outputs": order, "training": seen}
    with exclusive(folder):
        found = {
            "evaluation": results,
            "doubts": doubts(results, material.validation),
            "adopted": came,
        }
        save_run(folder, model, tokenizer, record | found)
    show_metrics(results)
    first = next(iter(material.validation))
    lines = judge(
        {"training": seen, "validation": results[first]}, material.train, material.validation[first]
    )
    print("\n".join([*lines, f"saved {folder}"]))


def main(argv=None) -> None:
    """Fine-tunes and evaluates what is asked, or adopts it, and stores it. Raises Refused on bad
    input.
    """
    quiet_libraries()
    args = parse_args(argv)
    with launched(APART if members_of(vars(args)).apart else None) as processes:
        check_launcher(choose_device(), processes)
        folder = args.checkpoint_dir / args.dataset_name
        tables = open_tables_of_task(args.dataset_name, args.dataset_path, vars(args))
        if args.corrupt_labels:
            tables = corrupted(
                tables, args.corrupt_labels, args.corrupt_seed or 0, args.max_train_samples
            )
        check_place(folder, *((args.adopt, ADOPT) if args.adopt else (args.model_name_or_path,)))
        if not args.adopt:
            fine_tune(args, folder, tables, processes)
        elif processes.main:
            adopt(args, folder, tables)


def fine_tune(args: argparse.Namespace, folder: Path, tables: Tables, processes: Processes) -> None:
    """Trains what is missing: one checkpoint in all processes of the launch, or of several a share
    in each.
    """
    if "adopted" in (read_json(folder / "run.json") or {}) and not args.overwrite:
        raise Refused(
            f"{folder} holds an adopted model; pass --overwrite to replace it, or name another "
            "folder"
        )
    recipe, tokenizer = recipe_of(vars(args), args.dataset_name), open_tokenizer(args)
    first = args.seed or 0
    model = open_model(args, tables, first)
    material = read_rows(tables, model, tokenizer, args.max_length, limit_of(args, tables))
    check_attribution(model, material.train)
    size = f"{len(material.train):,} training rows, {model.num_parameters():,} parameters"
    print(f"{args.dataset_name}: {size}, on {name_of(choose_device())}")
    record = material.record | describe_start(args, fingerprint_of_start(model), material.record)
    record |= {"recipe": recipe, "processes": processes.count, **environment(choose_device())}
    start = lambda seed: open_model(args, tables, seed, quiet=True)  # noqa: E731
    making = Making(material, recipe, record, members_of(vars(args)), args.eval_batch_size, start)
    making.checkpoints(folder, first, processes)


if __name__ == "__main__":
    sys.exit(run_script(main))
