"""Ground truth of the LDS: margins of models retrained on random subsets, retrained here or read
from external files.

Symbols: M masks, N training rows, Q queries, R repeats. Masks (M, N) uint8, 1 = kept; margins (M,
R, Q) float32.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from attribution.evidence.arguments import MIN_MASKS
from attribution.evidence.store import Job
from attribution.evidence.study import Study
from attribution.files import (
    Refused,
    describe_parts,
    differing_parts,
    read_json,
    write_json,
    write_npz,
)
from attribution.processes import rank_and_size


def draw_masks(num_rows: int, num_masks: int, alpha: float, seed: int) -> np.ndarray:
    """Masks (M, N) that keep a share alpha of the rows, drawn without replacement; mask m is the
    same whatever M.
    """
    masks = np.zeros((num_masks, num_rows), dtype=np.uint8)
    for m, mask in enumerate(masks):
        order = np.random.default_rng([seed, m]).permutation(num_rows)
        mask[order[: round(alpha * num_rows)]] = 1
    return masks


def load_array(path: Path, key: str) -> np.ndarray:
    """The array in a .npy file, under `key` (or alone) in a .npz, or as tensor or NumPy array in a
    .pt.

    Nothing in the file is executed. Raises Refused for anything else.
    """
    if not path.is_file():
        raise Refused(f"there is no file {path}")
    try:
        if path.suffix == ".pt":
            value = _load_pt(path)
        else:
            value = np.load(path, allow_pickle=False)
            if isinstance(value, np.lib.npyio.NpzFile):
                value = value[value.files[0] if len(value.files) == 1 else key]
    except Exception as error:  # NumPy, torch and zipfile have many for such files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Refused(
            f"{path} holds no array of numbers that can be loaded safely ({reason[:120]})"
        ) from error
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        raise Refused(f"{path} must hold one tensor or one NumPy array of numbers")
    return value


def _load_pt(path: Path):
    """A tensor or NumPy array pickled by NumPy 1 or 2; everything else is refused by torch."""
    reconstruct = np.ones(0).__reduce__()[0]  # NumPy 1 and 2 keep it in different modules
    allowed = [
        reconstruct,
        (reconstruct, "numpy.core.multiarray._reconstruct"),
        np.ndarray,
        np.dtype,
    ]
    allowed += {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    with torch.serialization.safe_globals(allowed):
        value = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(value, torch.Tensor):
        # NumPy knows no bfloat16.
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return value


def check_masks(masks: np.ndarray, num_rows: int) -> np.ndarray:
    """Masks as uint8 (M, N). Raises Refused where they are not binary, not (M, N), too few or all
    the same.
    """
    if masks.ndim != 2 or masks.shape[1] != num_rows:
        raise Refused(f"masks must have shape (masks, {num_rows} training rows), not {masks.shape}")
    if len(masks) < MIN_MASKS:
        raise Refused(
            f"a correlation over masks needs at least {MIN_MASKS} of them, not {len(masks)}"
        )
    if not np.isin(masks, (0, 1)).all():
        raise Refused("masks must be binary: 1 for a kept row, 0 for a removed one")
    if (masks == masks[0]).all():
        raise Refused("all masks are the same, so nothing can be learned from them")
    return masks.astype(np.uint8)


def check_margins(margins: np.ndarray, num_masks: int, num_queries: int) -> np.ndarray:
    """Margins as float32 (M, R, Q); (M, Q) is one repeat. Raises Refused for other shapes."""
    margins = margins[:, None] if margins.ndim == 2 else margins
    if margins.ndim != 3 or len(margins) != num_masks:
        raise Refused(
            f"margins must have shape ({num_masks} masks, repeats, queries), not {margins.shape}"
        )
    if margins.shape[2] != num_queries:
        raise Refused(
            f"margins are of {margins.shape[2]} queries, the scores of {num_queries}; check "
            "--max_queries"
        )
    return margins.astype(np.float32)


@dataclass(frozen=True)
class Subsets:
    """Random subsets that are retrained on, and the number of repeats."""

    num_masks: int
    num_repeats: int
    alpha: float  # share of the rows that a subset keeps
    seed: int
    retrain_seed: int

    @property
    def retrain_seeds(self) -> range:
        """The seeds of the repeats."""
        return range(self.retrain_seed, self.retrain_seed + self.num_repeats)

    @property
    def name(self) -> str:
        """The beginning of the name of their export."""
        drawn = f"alpha{self.alpha:g}_seed{self.seed}"
        return f"lds_{self.num_masks}x{self.num_repeats}_{drawn}_retrain{self.retrain_seed}"

    def masks(self, count: int) -> np.ndarray:
        """Masks (M, N) of these subsets for N = count rows. Raises Refused where there can be
        none.
        """
        masks = draw_masks(count, self.num_masks, self.alpha, self.seed)
        if not masks.any(1).all() or masks.all(1).any():
            raise Refused(f"--alpha {self.alpha} of {count} rows keeps none or all of them")
        return check_masks(masks, count)


@dataclass(frozen=True)
class GroundTruth:
    """Margins, correctness and outputs of Q queries after retraining on M subsets, R times."""

    masks: np.ndarray  # (M, N) uint8, 1 = kept
    margins: np.ndarray  # (M, R, Q) float32
    correct: np.ndarray | None  # (M, R, Q) bool; None where only margins are known
    outputs: np.ndarray | None = None  # (M, R, Q) of a regression

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays that are known, by name."""
        return {name: values for name, values in vars(self).items() if values is not None}

    def accuracy(self, num_labels: int) -> float | None:
        """Share of correct predictions, those of diverged retrains left out; None where margins of
        more than two classes do not tell, and for regression.
        """
        there = np.isfinite(self.margins)
        if num_labels == 1 or (self.correct is None and num_labels > 2) or not there.any():
            return None
        right = self.margins > 0 if self.correct is None else self.correct
        return float(right[there].mean())

    def pearson(self, labels: np.ndarray) -> float | None:
        """Pearson correlation of a regression's outputs with labels (Q,), mean over retrains; None
        where not known.
        """
        if self.outputs is None:
            return None
        outputs = self.outputs.reshape(-1, len(labels))
        # Those that neither diverged nor are constant.
        known = [one for one in outputs if np.ptp(one) * np.ptp(labels) > 0]
        return float(np.mean([np.corrcoef(one, labels)[0, 1] for one in known])) if known else None


def own_truth(study: Study, subsets: Subsets, *, dry_run: bool) -> GroundTruth | None:
    """The ground truth of the store; what is missing is retrained.

    None where nothing is to be evaluated here: after a dry run, and in all processes of a launcher
    but the first.
    """
    masks = subsets.masks(len(study.train))
    jobs = [Job.of(np.flatnonzero(mask), seed) for mask in masks for seed in subsets.retrain_seeds]
    shape = len(masks), subsets.num_repeats, len(study.queries)
    if not study.announce(jobs, dry_run):
        return None
    results = study.run_jobs(jobs)
    if rank_and_size()[0] > 0:
        return None
    outputs = results.predictions.reshape(shape) if study.train.task.regression else None
    truth = GroundTruth(
        masks, results.margins.reshape(shape), results.correct.reshape(shape), outputs
    )
    fingerprint = truth_fingerprint(study)
    path = study.store.folder / f"{subsets.name}_queries{fingerprint['query rows'][:8]}.npz"
    digest = write_npz(path, **truth.arrays())
    write_json(path.with_suffix(".json"), {"fingerprint": fingerprint, "arrays": digest})
    return truth


def truth_fingerprint(study: Study) -> dict:
    """Named parts of everything that changes exported ground truth: the recipe's, the run's start,
    the query rows.
    """
    parts = {"query rows": study.queries.fingerprint(), "run's start": study.retrain.start_parts}
    return study.retrain.fingerprint() | parts


def external_truth(masks_path: Path, margins_path: Path, study: Study) -> GroundTruth | None:
    """Ground truth in external files; None in all processes of a launcher but the first.

    Raises Refused where they cannot belong to this run.
    """
    if rank_and_size()[0] > 0:
        return None
    fingerprint = truth_fingerprint(study)
    for path in dict.fromkeys((masks_path, margins_path)):
        record = read_json(path.with_suffix(".json"))
        if record is None or "fingerprint" not in record:
            print(f"{path} carries no fingerprint: only its shape is checked")
        elif parts := differing_parts(record["fingerprint"], fingerprint):
            raise Refused(f"{path} was made with {describe_parts(parts)} than this run")
    masks = check_masks(load_array(masks_path, "masks"), len(study.train))
    shape = len(masks), len(study.queries)
    margins = check_margins(load_array(margins_path, "margins"), *shape)
    outputs = None
    if study.train.task.regression and margins_path.suffix == ".npz":
        with np.load(margins_path, allow_pickle=False) as arrays:
            there = "outputs" in arrays.files
        if there:
            outputs = check_margins(load_array(margins_path, "outputs"), *shape)
            if not np.array_equal(np.isfinite(outputs), np.isfinite(margins)):
                raise Refused(
                    f"{margins_path}: its outputs and its margins are not of the same retrains"
                )
    return GroundTruth(masks, margins, None, outputs)
