"""Outline of train.py: fine-tunes and evaluates a model, or adopts one, and saves the run."""

import argparse
import functools
from pathlib import Path

from attribution.cli import flags_of, options_of
from attribution.files import Refused, exclusive
from attribution.influence.stored import why_stale
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
from attribution.tensors import fingerprint_of_tensors
from attribution.training.adopt import FLAG as ADOPT
from attribution.training.adopt import (
    judge,
    names_of_outputs,
    open_adopted,
    open_config,
    parts_lost,
)
from attribution.training.arguments import command_of
from attribution.training.checkpoints import Trainer, evaluate_splits, save_run, show_metrics
from attribution.training.data import Tables, open_tables, read_rows
from attribution.training.fit import evaluate_model
from attribution.training.members import Members
from attribution.training.metrics import doubts
from attribution.training.recipe import RECIPE, recipe_of
from attribution.training.run import Run, absolute, check_place, held
from attribution.training.support import check_attribution
from pipeline import construct_bert, get_tokenizer, quiet_libraries


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
        raise held(folder, parts)
    results = evaluate_splits(model, rows, args.eval_batch_size)
    seen = evaluate_model(model, rows.train, args.eval_batch_size)
    record |= {
        "evaluation": results,
        "doubts": doubts(results, rows.validation),
        "adopted": {
            "from": absolute(args.adopt) or args.adopt,
            "outputs": order,
            "label_order": args.label_order,
            "training": seen,
        },
    }
    with exclusive(folder):
        save_run(folder, model, tokenizer, record)
    show_metrics(results, rows.validation)
    first = next(iter(rows.validation))
    for line in judge(seen, results[first], rows.train, rows.validation[first]):
        print(line)
    if not known:
        print(
            "how it was trained is not known, so nothing can be retrained to check its answers; "
            "--model_name_or_path START and the recipe, as --learning_rate, say it"
        )
    print(f"saved {folder}")


def check_beside_adopted(run: Run, members: Members) -> None:
    """Raises Refused for a training that would replace an adopted model, and for members of one
    that has none.
    """
    if members.single or (members.member_share == 1 and members.member_steps > 1):
        raise Refused(
            f"{run.folder} holds an adopted model; pass --overwrite to replace it, or name another "
            "folder"
        )
    if run.seed is None or run.recipe is None:
        raise Refused(
            "members are trained as the model was, and of the adopted one seed or recipe are not "
            f"known; adopt it again with them: {run.command} --overwrite --seed 0 "
            "--model_name_or_path START --learning_rate ..."
        )


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
        check_beside_adopted(run, options_of(Members, args))
    tokenizer = open_tokenizer(args)
    seed = args.seed or 0
    model = open_start(args, tables, seed)
    states = {"weights drawn at random": model.drawn, "stored, but not used": model.unused}
    for state, names in states.items():
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
        args.overwrite,
        functools.partial(open_start, args, tables),
    )
    trainer.train_all(folder, seed, processes)


def train(args: argparse.Namespace) -> None:
    """Fine-tunes and evaluates a model, or adopts one, and saves the run."""
    quiet_libraries()
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
        if processes.main:
            print(f"next: {next_command(args)}")


def next_command(args: argparse.Namespace) -> str:
    """Command that scores what was trained: halves of the rows by a replay."""
    command = command_of("analyze.py", args.dataset_name, args.checkpoint_dir)
    if args.member_share < 1:
        command += " --factor_strategy replay"
    # A replay finds members by the steps that they kept.
    found = args.member_share < 1 and args.member_steps > 1
    if not found and (flags := flags_of(options_of(Members, args))):
        command += f" {flags}"
    run = Run.read(args.checkpoint_dir / args.dataset_name)
    stored = run.folder.glob("influence/scores/*/pairwise_scores.json") if run else []
    if run and any(why_stale(path, run) for path in stored):
        command += " --overwrite"
    return command
