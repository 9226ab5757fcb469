"""Stored scores corrected by the retrains of an LDS study: judged, and kept.

Symbols: Q queries, N training rows.
"""

from pathlib import Path

import numpy as np
import torch

from attribution.evidence import correction, lds, stats
from attribution.files import sha256_of, write_json, write_tensors
from attribution.influence.gram import alike
from attribution.rows import GlueDataset
from attribution.training.members import Members


def correct_all(
    folder: Path, run: dict, rows: tuple[GlueDataset, GlueDataset], scores: dict[str, np.ndarray],
    evidence: lds.Evidence, num_bootstrap: int,
) -> dict[str, dict]:  # fmt: skip
    """Name -> what `correction.cross_validate` says of each of these scores (Q, N).

    rows: training rows and queries. The scores corrected by all masks are kept below the run's folder, in
    influence/corrected, with a JSON that says what they were made from. Raises Refused where masks are too few.
    """
    evidence = evidence.of(lds.usable_masks(evidence.margins))
    correction.check_masks(len(evidence.masks))
    masks, margins = evidence.masks.astype(np.float64), stats.mean_margins(evidence.margins)
    draws, known, found = stats.draw(len(masks), margins.shape[1], num_bootstrap), {}, {}
    for name, values in scores.items():
        places = Members.of(name).places(folder, run)
        for place in places:
            if place not in known:
                print(f"gradients of {len(rows[0]):,} rows: {place}", flush=True)
                known[place] = alike(place, rows[0], masks)
        together = np.mean([known[place] for place in places], axis=0)
        found[name] = correction.cross_validate(values, together, masks, margins, evidence.controls, draws)
        keep(folder / "influence" / "corrected" / f"{name}.safetensors", {
            "query rows": rows[1].fingerprint(), "training rows": run["train_rows"], "weights": run["weights"],
            "masks": len(masks), "repeats": evidence.margins.shape[1],
        }, correction.corrected(values, together, masks, margins))  # fmt: skip
    return found


def keep(path: Path, made: dict, values: np.ndarray) -> None:
    """Writes corrected scores (Q, N), float32, and beside them what they were made from."""
    write_tensors(path, {"all_modules": torch.from_numpy(values.astype(np.float32))})
    write_json(path.with_suffix(".json"), {"fingerprint": made, "files": {path.name: sha256_of(path)}})
    print(f"wrote {path}")
