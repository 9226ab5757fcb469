"""Who finds wrong labels: self-influence, or simply the loss? Wrong labels, and rankings of rows.

    python -m lab.wrong_labels --write wrong --dataset_name cola --max_train_samples 2000
    python train.py --dataset_name cola --dataset_path wrong --checkpoint_dir checkpoints/wrong
    python analyze.py --dataset_name cola --checkpoint_dir checkpoints/wrong --self_influence
    python -m lab.wrong_labels --dataset_name cola --checkpoint_dir checkpoints/wrong

`--write` makes a share of the training labels wrong and writes a data folder in the layout of
nyu-mll/glue. Which rows, and what their labels become, is a function of seed and row. The column
`flipped` of the training table records which labels are wrong.

Without it, the training rows of a run are ranked by every stored self-influence (of a replay: the
margin of the row where it was left out), by the loss of the row under the run and as a mean over
members, by its loss under models that did not see it (five folds, retrained and stored like every
retrain), by the disagreement of its nearest rows ([CLS] cosine), and by how rare its label is,
which sees no text. Writes
RESULTS_DIR/wrong_labels_DATASET_NAME.json and .md.
"""

import argparse
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet
from sklearn.metrics.pairwise import cosine_similarity

from attribution.cli import Parser, run_script
from attribution.data.dataset import GlueDataset
from attribution.data.tables import find_splits, labels_of
from attribution.data.tasks import TASKS, GlueTask
from attribution.draws import uniform_hash
from attribution.evidence.arguments import RETRAIN_SEED, add_start_argument
from attribution.evidence.baselines import represent
from attribution.evidence.store import Job
from attribution.evidence.study import check_recipe_known, open_study
from attribution.files import Refused, check_writable
from attribution.influence.stored import read_scores, why_stale
from attribution.processes import choose_device
from attribution.show import results
from attribution.show.tables import aligned, markdown, with_interval
from attribution.training.arguments import add_data_arguments
from attribution.training.members import Members, open_members
from attribution.training.run import Run
from lab import findings
from lab.common import add_results_argument, write_tables
from pipeline import load_tables, quiet_libraries

FOLDS = 5
NEIGHBOURS = 10
FOLD_SEED = 0
TRUTH = "flipped"  # the column that says which labels are wrong


def parse_args(argv=None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(__doc__)
    add_start_argument(add_data_arguments(parser))
    add = parser.add_argument_group("rankings").add_argument
    add("--num_members", type=int, default=1, help="members behind the mean loss (1)")
    add(
        "--jobs_per_device",
        type=int,
        help="retrains of the folds at the same time (as evaluate_lds.py)",
    )
    add_results_argument(add, "wrong_labels_DATASET_NAME.json and .md")
    add = parser.add_argument_group("writing").add_argument
    add("--write", type=Path, metavar="OUT", help="write data with wrong labels here, then stop")
    add("--share", type=float, default=0.1, help="share of the training labels made wrong (0.1)")
    add("--seed", type=int, default=0, help="of the rows and their wrong labels (0)")
    add(
        "--max_train_samples",
        type=int,
        help="training rows that are written, from the first on (all)",
    )
    args = parser.parse_args(argv)
    if not 0 < args.share < 1:
        raise Refused(f"--share is a share of the rows between 0 and 1, not {args.share:g}")
    return args


def draw(num_rows: int, share: float, seed: int) -> list[int]:
    """The rows whose labels become wrong, ascending: those of the smallest hash of seed and row."""
    order = np.argsort(uniform_hash(seed, "corrupted row", np.arange(num_rows)), kind="stable")
    return sorted(order[: round(share * num_rows)].tolist())


def corrupt(
    table: datasets.Dataset, task: GlueTask, rows: list[int], seed: int
) -> datasets.Dataset:
    """The training table with wrong labels in these rows, and the column `flipped`.

    Each wrong label is drawn from the other classes. Of two classes, a label that was wrong before
    becomes right. Raises Refused for a regression and for labels that no run could use.
    """
    if task.regression:
        raise Refused("wrong labels need classes; a regression's labels are not right or wrong")
    labels = labels_of(table, task, "the split 'train'").astype(np.int64)
    wrong = np.array(table[TRUTH]) if TRUTH in table.column_names else np.zeros(len(table), bool)
    hashes = uniform_hash(seed, "wrong label", np.asarray(rows, dtype=np.int64))
    steps = 1 + np.floor(hashes * (task.num_labels - 1)).astype(np.int64)
    labels[rows] = (labels[rows] + steps) % task.num_labels
    wrong[rows] = ~wrong[rows] if task.num_labels == 2 else True
    names = list(task.class_names) or [str(label) for label in range(task.num_labels)]
    table = table.remove_columns([name for name in ("label", TRUTH) if name in table.column_names])
    table = table.add_column("label", labels.tolist()).add_column(TRUTH, wrong.tolist())
    return table.cast_column("label", datasets.ClassLabel(names=names))


def write(args) -> None:
    """Writes the data folder of `--write`: training rows with wrong labels, other splits as they
    are.
    """
    check_writable(args.write)
    splits = load_tables(args.dataset_name, args.dataset_path)
    task = TASKS[args.dataset_name]
    count = min(len(splits["train"]), args.max_train_samples or len(splits["train"]))
    rows = draw(count, args.share, args.seed)
    train = corrupt(splits["train"].select(range(count)), task, rows, args.seed)
    others = {split: splits[split] for split in task.validation}
    write_tables(args.write, args.dataset_name, {"train": train, **others})
    print(f"wrote {args.write}: {len(rows):,} of {count:,} training labels are made wrong")


def recorded(run: Run, train: GlueDataset) -> np.ndarray:
    """(N,) bool: which labels are wrong, as the demo records it, or the column that `--write` adds.

    Raises Refused where it is missing, or no label is wrong, or all are.
    """
    wrong = train.truth
    path = run.find_again("dataset_path")
    if wrong is None and path is not None and Path(path).is_dir():
        files = find_splits(path, run.dataset_name)["train"].files
        tables = [pa.parquet.read_table(file) for file in files if file.suffix == ".parquet"]
        columns = [table[TRUTH].to_numpy() for table in tables if TRUTH in table.column_names]
        wrong = np.concatenate(columns)[: len(train)] if columns else None
    if wrong is not None and 0 < wrong.sum() < len(train) == len(wrong):
        return wrong
    raise Refused("nobody knows which labels of this run are wrong; train it on rows of --write")


def stored_self_influence(run: Run) -> dict[str, np.ndarray]:
    """Stored self-influence (N,) of this run's weights and rows, by name."""
    paths = sorted(run.folder.glob("influence/scores/*/self_scores.json"))
    return {path.parent.name: read_scores(path) for path in paths if not why_stale(path, run)}


def unseen_losses(args, run: Run, train) -> np.ndarray:
    """(N,): the loss of each row under a model that was trained without its fold."""
    where = {"model_name_or_path": args.model_name_or_path, "jobs_per_device": args.jobs_per_device}
    study = open_study(run, (train, train), run.recipe, max_queries=len(train), **where)
    folds = np.random.default_rng(FOLD_SEED).permutation(len(train)) % FOLDS
    jobs = [Job.of(np.flatnonzero(folds != fold), RETRAIN_SEED + fold) for fold in range(FOLDS)]
    results = study.run_jobs(jobs, "folds")
    return findings.loss_of_margin(results.margins[folds, np.arange(len(train))])


def rarity(labels: np.ndarray) -> np.ndarray:
    """(N,): the share of the rows that have another label. It sees no text: wrong labels are common
    in a rare class.
    """
    _, which, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return 1 - counts[which] / len(labels)


def neighbour_disagreement(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N,): the share of a row's NEIGHBOURS nearest rows, by cosine of features (N, D), that have
    another label.
    """
    similar = cosine_similarity(features, features)
    np.fill_diagonal(similar, -np.inf)
    count = min(NEIGHBOURS, len(labels) - 1)
    nearest = np.argpartition(-similar, count - 1, axis=1)[:, :count]
    return (labels[nearest] != labels[:, None]).mean(1)


def rankings(args, run: Run, train) -> dict[str, np.ndarray]:
    """Name -> ranking (N,), suspicious rows high."""
    members = open_members(run, Members(args.num_members))
    losses = [findings.row_losses(member.model(), train) for member in members]
    found = {}
    for name, values in stored_self_influence(run).items():
        kind = "replayed margin left out" if name.startswith("replay") else "self-influence"
        found[f"{kind}, {name}"] = values
    found["loss, one model"] = losses[0]
    if len(losses) > 1:
        found[f"loss, mean of {len(losses)} models"] = np.mean(losses, axis=0)
    found[f"loss, models that did not see the row ({FOLDS} folds)"] = unseen_losses(
        args, run, train
    )
    (features,) = represent(run.model(), train)
    found["disagreement of the nearest rows"] = neighbour_disagreement(features, train.labels)
    found["rare label"] = rarity(train.labels)
    return found


def wrong_label_rows(result: dict[str, dict]) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of rankings that look for wrong labels, the best first."""
    rows = [
        [
            name,
            *(
                with_interval(entry[measure]["value"], entry[measure]["interval"])
                for measure in findings.MEASURES
            ),
        ]
        for name, entry in sorted(result.items(), key=lambda item: -item[1]["auroc"]["value"])
    ]
    return [
        "ranking",
        *("AUROC" if measure == "auroc" else measure for measure in findings.MEASURES),
    ], rows


def wrong_labels_markdown(result: dict) -> str:
    """The rankings as a Markdown table, the best first, with a note on the run."""
    kept = {key: value for key, value in result["metrics"].items() if key not in ("loss", "margin")}
    metrics = ", ".join(f"{key.replace('_', ' ')} {value:.3f}" for key, value in kept.items())
    note = (
        f"{result['dataset']}: {result['wrong']} of {result['rows']:,} training labels are wrong. "
        f"Validation: {metrics}. Recall at 5% is the share of the wrong rows that are among the "
        "first 5% of all rows."
    )
    return markdown(*wrong_label_rows(result["rankings"])) + "\n\n" + note


def main(argv=None) -> None:
    """Ranks, stores and prints. Raises Refused where no truth is recorded."""
    quiet_libraries()
    args = parse_args(argv)
    if args.write:
        write(args)
        return
    place = results.Place(args.results_dir / f"wrong_labels_{args.dataset_name}")
    place.check()
    run = Run.open(args.checkpoint_dir, args.dataset_name, args.dataset_path)
    check_recipe_known(run)
    train, _ = run.rows(1)
    wrong = recorded(run, train)
    found = {
        name: findings.found(values, wrong) for name, values in rankings(args, run, train).items()
    }
    result = {
        "dataset": args.dataset_name,
        "rows": len(train),
        "wrong": int(wrong.sum()),
        "rankings": found,
        "metrics": next(iter(run.evaluation.values())),
    }
    print(aligned(*wrong_label_rows(found)))
    origin = {
        "arguments": vars(args),
        "device": choose_device(),
        "fingerprints": run.fingerprints(train),
    }
    results.save(result, place, markdown=wrong_labels_markdown(result), **origin)


if __name__ == "__main__":
    sys.exit(run_script(main))
