"""Stored scores corrected by the retrains of an LDS study: judged, and kept.

Symbols: Q queries, N training rows.
"""

from pathlib import Path

import numpy as np
import torch

from attribution.data.dataset import GlueDataset
from attribution.evidence import correction, lds, stats
from attribution.files import check_writable, fingerprint_of_tensors, read_json
from attribution.influence.gram import alike
from attribution.influence.names import CORRECTED, window_name
from attribution.influence.stored import write_scores
from attribution.training.members import Members, open_members


def check_corrections(folder: Path, run: dict, names: list[str]) -> None:
    """Raises Refused where a checkpoint behind scores of these names is missing or damaged, or none
    can be stored.
    """
    for name in names:
        open_members(folder, run, Members.of(name))
    if names:
        check_writable(folder / "influence" / "scores")


def check_masks(evidence: lds.Evidence) -> None:
    """Raises Refused where masks with finite margins are too few to correct by."""
    correction.check_masks(
        len(np.unique(evidence.masks[lds.usable_masks(evidence.margins)], axis=0))
    )


def correct_all(
    folder: Path,
    run: dict,
    rows: tuple[GlueDataset, GlueDataset],
    scores: dict[str, np.ndarray],
    evidence: lds.Evidence,
    num_bootstrap: int,
    first_query: int,
) -> dict[str, dict]:
    """Name -> what `correction.cross_validate` says of each of these scores (Q, N).

    rows: training rows and queries. The scores corrected by all masks are stored beside the others,
    so that run_counterfactual.py knows them.
    """
    evidence = evidence.of(lds.usable_masks(evidence.margins))
    masks, margins = evidence.masks.astype(np.float64), stats.mean_margins(evidence.margins)
    draws, known, found = stats.draw(len(masks), margins.shape[1], num_bootstrap), {}, {}
    for name, values in scores.items():
        places = [place for place, _ in open_members(folder, run, Members.of(name)).checkpoints]
        for place in places:
            if place not in known:
                print(f"gradients of {len(rows[0]):,} rows: {place}", flush=True)
                known[place] = alike(place, rows[0], masks)
        together = np.mean([known[place] for place in places], axis=0)
        found[name] = correction.cross_validate(
            values, together, masks, margins, evidence.controls, draws
        )
        better = correction.Retrains.of(together, masks, margins).correct(values)
        keep(folder, name, window_name(first_query), better, evidence)
    return found


def keep(folder: Path, name: str, window: str, values: np.ndarray, evidence: lds.Evidence) -> None:
    """Stores corrected scores (Q, N) as analyze.py stores scores. name and window: of the scores as
    they were.
    """
    scores = folder / "influence" / "scores"
    made = (read_json(scores / (name + window) / "pairwise_scores.json") or {})["fingerprint"]
    made |= {
        "retrains": fingerprint_of_tensors(
            {
                "masks": torch.from_numpy(evidence.masks),
                "margins": torch.from_numpy(evidence.margins),
            }
        )
    }
    path = scores / (name + CORRECTED + window) / "pairwise_scores.json"
    write_scores(path, torch.from_numpy(values).float(), made, {})
    print(f"wrote {path.with_suffix('.safetensors')}")
