"""One query's row of stored scores, read without the others: against a checksum of its own."""

import hashlib
from pathlib import Path

import safetensors
import torch

KEY = "all_modules"


def row_checksums(scores: torch.Tensor) -> list[str]:
    """SHA-256 of every row of scores (Q, N), float32."""
    return [hashlib.sha256(row.contiguous().numpy().data).hexdigest() for row in scores]


def read_row(path: Path, checksums: list[str], query: int) -> torch.Tensor | None:
    """Row `query` (N,) of the scores in the file; None where it is not what its checksum says."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            row = file.get_slice(KEY)[query : query + 1][0]
    except (OSError, safetensors.SafetensorError):
        return None
    return row if row_checksums(row[None]) == [checksums[query]] else None
