"""Tensors in files that are complete or absent, their fingerprints, and snapshots of long work."""

import hashlib
import secrets
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from attribution.files import complete, intact, read_json, sha256_of, write_json


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> str:
    """Writes tensors as safetensors, complete or absent; returns their SHA-256, which is not that
    of the file at `path` once another process has replaced it.
    """
    with complete(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        return sha256_of(temporary)


def fingerprint_of_tensors(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over the names, types, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_snapshot(path: Path, record: dict, tensors: dict[str, torch.Tensor]) -> None:
    """Replaces the snapshot at `path` (a JSON beside its tensors) by another one: a process that
    dies leaves the one or the other.
    """
    tensor_file = path.with_name(f"{path.stem}-{secrets.token_hex(4)}.safetensors")
    digest = write_tensors(tensor_file, tensors)
    write_json(path, record | {"files": {tensor_file.name: digest}})
    for other in path.parent.glob(f"{path.stem}-*.safetensors"):
        if other != tensor_file:
            other.unlink(missing_ok=True)


def read_snapshot(path: Path) -> tuple[dict, dict[str, torch.Tensor]] | None:
    """(record, tensors) of the snapshot at `path`; None if it is missing or damaged (printed)."""
    record = read_json(path)
    if record is None:
        return None
    files = record.pop("files", None)
    if not files or not intact(path.parent, files):
        print(f"{path} is damaged and does not count", file=sys.stderr)
        return None
    return record, load_file(path.parent / next(iter(files)))


def remove_snapshot(path: Path) -> None:
    """Removes the snapshot at `path`."""
    path.unlink(missing_ok=True)
    for tensor_file in path.parent.glob(f"{path.stem}-*.safetensors"):
        tensor_file.unlink(missing_ok=True)
