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
    python train.py --dataset_name reviews --seed 1 --overwrite  # as before, again
    python train.py --dataset_name demo --num_members 5   # five seeds
    python train.py --dataset_name demo --member_steps 4  # and three earlier steps

The run is the folder CHECKPOINT_DIR/DATASET_NAME: weights, configuration and
tokenizer as `save_pretrained` writes them, and run.json.
"""

import argparse

from attribution.cli import (
    Parser,
    add_options,
    check_numbers,
    end,
    options_of,
    run_script,
    tell_start,
)
from attribution.data.tasks import MAX_LENGTH, TASKS
from attribution.files import Refused, read_json
from attribution.training.arguments import (
    CUSTOM,
    add_custom_arguments,
    add_data_arguments,
    check_custom,
)
from attribution.training.members import Members
from attribution.training.recipe import add_recipe_arguments, check_recipe
from attribution.training.run import Run, absolute


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
        help="replace a run that is there (one that was trained in the same way is kept)",
    )
    args = parser.parse_args(argv)
    fill_from_run(args)
    check_numbers(
        vars(args), "eval_batch_size", "max_train_samples", "max_length", "num_hidden_layers"
    )
    check_custom(args.dataset_name, vars(args))
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


def fill_from_run(args: argparse.Namespace) -> None:
    """Gives arguments that were not given the values of the run that is there, and says so: of
    custom rows, if none of their arguments was given, of members, which are trained as the run, and
    of a damaged run, which is made again.

    An adopted model takes the rows only, unless a damaged one is adopted again. Raises Refused if
    rows or start model are gone.
    """
    folder = args.checkpoint_dir / args.dataset_name
    run = Run.read(folder)
    members = not options_of(Members, args).single
    named = any(getattr(args, name) is not None for name in ("dataset_path", *CUSTOM))
    if run is None and not named and args.dataset_name not in TASKS:
        if not (path := folder / "run.json").exists():
            return
        raise Refused(
            f"{path} is damaged and does not say which rows it was trained on; give them again: "
            "--dataset_path, --text_columns, --label_column"
        )
    if run is None or named and not members:
        return
    damaged = not run.intact()
    if not (members or run.data or damaged):
        return

    def place(name: str) -> str | None:
        given, found = getattr(run, name), run.find_again(name)
        return given if absolute(given) == found else found

    asked = (run.data or {}).get("asked", {})
    known = {name: asked.get(name) for name in CUSTOM} | {"task": asked.get("kind")}
    if run.validation_split is not None:
        known["validation_split"] = place("validation_split")
    known["dataset_path"] = place("dataset_path")
    known |= {"max_train_samples": run.max_train_samples, "max_length": run.max_length}
    if not args.adopt or damaged and run.adopted and run.recipe:
        record = read_json(folder / "run.json") or {}
        known |= {
            "model_name_or_path": place("model_name_or_path"),
            "tokenizer_name_or_path": record.get("tokenizer_name_or_path"),
            "num_hidden_layers": run.num_hidden_layers,
            "seed": run.seed,
        }
        known |= run.recipe or {}
        args.new_head = args.new_head or run.new_head
    for name, value in known.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    print(f"rows, model and recipe, where they are not given: as in {folder}")


def main(argv=None) -> None:
    """Fine-tunes and evaluates a model, or adopts one, and saves the run."""
    args = parse_args(argv)
    tell_start(args.dataset_name)
    from attribution.commands.train import train  # torch and transformers take seconds to import

    train(args)


if __name__ == "__main__":
    end(run_script(main))
