"""Who finds wrong labels: self-influence, or simply the loss? A run whose wrong labels are
recorded, ranked many ways.

    python train.py --dataset_name cola --checkpoint_dir checkpoints/wrong --corrupt_labels 0.1 --num_members 5 ...
    python analyze.py --dataset_name cola --checkpoint_dir checkpoints/wrong --self_influence --num_members 5
    python lab/wrong_labels.py --dataset_name cola --checkpoint_dir checkpoints/wrong --num_members 5

Ranks the training rows by every self-influence that analyze.py stored, by the loss of the row under
the run and as a mean over members, by its loss under models that did not see it (five folds,
retrained and kept like every retrain), by the disagreement of its nearest rows ([CLS] cosine), and
by how rare its label is, which sees no text. Writes RESULTS_DIR/wrong_labels_DATASET_NAME.json and
.md.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from attribution.cli import (
    Parser,  # noqa: E402
    run_script,  # noqa: E402
)
from attribution.evidence import wrong_labels  # noqa: E402
from attribution.evidence.baselines import represent  # noqa: E402
from attribution.evidence.retraining import RETRAIN_SEED, run_jobs  # noqa: E402
from attribution.evidence.store import Job  # noqa: E402
from attribution.evidence.study import add_start_argument, open_study  # noqa: E402
from attribution.files import Refused  # noqa: E402
from attribution.influence.stored import stored_self_influence  # noqa: E402
from attribution.processes import choose_device  # noqa: E402
from attribution.show import results  # noqa: E402
from attribution.show.tables import wrong_labels_markdown, wrong_labels_text  # noqa: E402
from attribution.training.members import Members, open_members  # noqa: E402
from attribution.training.queries import open_trained  # noqa: E402
from attribution.training.recipe import add_data_arguments  # noqa: E402
from attribution.training.run import fingerprints_of, open_data, open_run  # noqa: E402
from pipeline import quiet_libraries  # noqa: E402

FOLDS, FOLD_SEED = 5, 0


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
    add("--results_dir", type=Path, default=Path("results"), help="where the table goes (results)")
    return parser.parse_args(argv)


def unseen_losses(args, folder: Path, run: dict, train) -> np.ndarray:
    """(N,): the loss of each row under a model that was trained without its fold."""
    where = {"model_name_or_path": args.model_name_or_path, "jobs_per_device": args.jobs_per_device}
    study = open_study(folder, run, (train, train), run["recipe"], max_queries=len(train), **where)
    folds = np.random.default_rng(FOLD_SEED).permutation(len(train)) % FOLDS
    jobs = [Job.of(np.flatnonzero(folds != fold), RETRAIN_SEED + fold) for fold in range(FOLDS)]
    results = run_jobs(study.store, jobs, study.retrain, study.workers, "folds")
    return wrong_labels.loss_of_margin(results.margins[folds, np.arange(len(train))])


def rankings(args, folder: Path, run: dict, train) -> dict[str, np.ndarray]:
    """Name -> ranking (N,), suspicious rows high."""
    members = open_members(folder, run, Members(args.num_members)).checkpoints
    losses = [wrong_labels.row_losses(open_trained(place), train) for place, _ in members]
    stored = stored_self_influence(folder, run)
    found = {f"self-influence, {name}": values for name, values in stored.items()} | {
        "loss, one model": losses[0]
    }
    if len(losses) > 1:
        found[f"loss, mean of {len(losses)} models"] = np.mean(losses, axis=0)
    found[f"loss, models that did not see the row ({FOLDS} folds)"] = unseen_losses(
        args, folder, run, train
    )
    (features,) = represent(open_trained(folder), train)
    found["disagreement of the nearest rows"] = wrong_labels.neighbour_disagreement(
        features, train.labels
    )
    found["rare label"] = wrong_labels.rarity(train.labels)
    return found


def main(argv=None) -> None:
    """Ranks, stores and prints. Raises Refused where no truth is recorded."""
    quiet_libraries()
    args = parse_args(argv)
    stem = args.results_dir / f"wrong_labels_{args.dataset_name}"
    results.check_places(stem)
    folder, run = open_run(args.checkpoint_dir, args.dataset_name)
    train, _ = open_data(folder, run, args.dataset_path, 1)
    if (wrong := wrong_labels.truth_of(train)) is None:
        raise Refused(
            f"nobody knows which labels of {folder} are wrong; train it with --corrupt_labels"
        )
    found = {
        name: wrong_labels.found(values, wrong)
        for name, values in rankings(args, folder, run, train).items()
    }
    result = {
        "dataset": args.dataset_name,
        "rows": len(train),
        "wrong": int(wrong.sum()),
        "rankings": found,
        "metrics": next(iter(run["evaluation"].values())),
    }
    print(wrong_labels_text(found))
    origin = {
        "arguments": vars(args),
        "device": choose_device(),
        "fingerprints": fingerprints_of(run, train),
    }
    results.save(result, stem, markdown=wrong_labels_markdown(result), **origin)


if __name__ == "__main__":
    sys.exit(run_script(main))
