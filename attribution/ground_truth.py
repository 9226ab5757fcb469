"""Random subsets to retrain on, and ground truth of others: read safely, checked for shape.

Symbols: M masks, N training rows, Q queries, R repeats. Masks (M, N) uint8, 1 = kept; margins (M, R, Q) float32.
"""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import torch

from attribution.stats import MIN_MASKS
from attribution.store import Refused


def draw_masks(num_rows: int, num_masks: int, alpha: float, seed: int, labels: np.ndarray | None = None) -> np.ndarray:
    """Masks (M, N) that keep a share alpha of the rows, drawn without replacement; mask m depends on seed and m only.

    labels: keep the share of every class (rounded), so that no mask has another class balance.
    """
    groups = [np.arange(num_rows)] if labels is None else [np.flatnonzero(labels == label) for label in np.unique(labels)]
    masks = np.zeros((num_masks, num_rows), dtype=np.uint8)
    for m, mask in enumerate(masks):
        generator = np.random.default_rng([seed, m])
        for group in groups:
            mask[generator.permutation(group)[: round(alpha * len(group))]] = 1
    return masks


def load_array(path: Path, key: str) -> np.ndarray:
    """The array in a .npy file, under `key` (or alone) in a .npz, or as tensor or NumPy array in a .pt.

    Nothing in the file is executed. Raises Refused for anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise Refused(f"there is no file {path}")
    try:
        if path.suffix == ".pt":
            value = _load_pt(path)
        else:
            value = np.load(path, allow_pickle=False)
            if isinstance(value, np.lib.npyio.NpzFile):
                value = value[key if key in value.files or len(value.files) != 1 else value.files[0]]
    except (pickle.UnpicklingError, zipfile.BadZipFile, OSError, ValueError, KeyError, EOFError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Refused(f"{path} holds no array of numbers that can be loaded safely ({reason[:120]})") from error
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        raise Refused(f"{path} must hold one tensor or one NumPy array of numbers")
    return value


def _load_pt(path: Path):
    """A tensor or NumPy array pickled by NumPy 1 or 2; everything else is refused by torch."""
    reconstruct = np._core.multiarray._reconstruct
    allowed = [reconstruct, (reconstruct, "numpy.core.multiarray._reconstruct"), np.ndarray, np.dtype]
    allowed += {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    with torch.serialization.safe_globals(allowed):
        value = torch.load(path, map_location="cpu", weights_only=True)
    return value.numpy() if isinstance(value, torch.Tensor) else value


def check_masks(masks: np.ndarray, num_rows: int) -> np.ndarray:
    """Masks as uint8 (M, N). Raises Refused where they are not binary, not (M, N), too few or all rows' own."""
    if masks.ndim != 2 or masks.shape[1] != num_rows:
        raise Refused(f"masks must have shape (masks, {num_rows} training rows), not {masks.shape}")
    if len(masks) < MIN_MASKS:
        raise Refused(f"a correlation over masks needs at least {MIN_MASKS} of them, not {len(masks)}")
    if not np.isin(masks, (0, 1)).all():
        raise Refused("masks must be binary: 1 for a kept row, 0 for a removed one")
    if (masks == masks[0]).all():
        raise Refused("all masks are the same, so nothing can be learned from them")
    return masks.astype(np.uint8)


def check_margins(margins: np.ndarray, num_masks: int, num_queries: int) -> np.ndarray:
    """Margins as float32 (M, R, Q); (M, Q) counts as one repeat. Raises Refused for other shapes."""
    margins = margins[:, None] if margins.ndim == 2 else margins
    if margins.ndim != 3 or len(margins) != num_masks:
        raise Refused(f"margins must have shape ({num_masks} masks, repeats, queries), not {margins.shape}")
    if margins.shape[2] != num_queries:
        raise Refused(f"margins are of {margins.shape[2]} queries, the scores of {num_queries}; check --max_queries")
    return margins.astype(np.float32)
