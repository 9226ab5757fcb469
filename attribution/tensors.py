"""Tensors in files that are complete or absent, their fingerprints, and snapshots of long work."""

import hashlib
import secrets
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

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


def write_snapshot(path: Path, record: dict, content: dict) -> None:
    """Replaces the snapshot at `path` (a JSON, and a file of its content) by another one: a process
    that dies leaves the one or the other.

    content: tensors and numbers, in dictionaries and lists. Raises OSError if it cannot be written.
    """
    file = path.with_name(f"{path.stem}-{secrets.token_hex(4)}.pt")
    with complete(file) as temporary:
        try:
            with temporary.open("wb") as opened:  # torch's own file hides why it cannot be written
                torch.save(on_cpu(content), opened)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        digest = sha256_of(temporary)
    write_json(path, record | {"content": {file.name: digest}})
    for other in path.parent.glob(f"{path.stem}-*.pt"):
        if other != file:
            other.unlink(missing_ok=True)


def on_cpu(content):
    """The same dictionaries and lists, with their tensors on the CPU."""
    if isinstance(content, dict):
        return {key: on_cpu(value) for key, value in content.items()}
    if isinstance(content, list):
        return [on_cpu(value) for value in content]
    return content.cpu() if isinstance(content, torch.Tensor) else content


def read_snapshot(path: Path) -> tuple[dict, dict] | None:
    """(record, content) of the snapshot at `path`, on the CPU; None if it is missing or damaged
    (printed).
    """
    record = read_json(path)
    if record is None:
        return None
    files = record.pop("content", None)
    if not files or not intact(path.parent, files):
        print(f"{path} is damaged and does not count", file=sys.stderr)
        return None
    (name,) = files
    return record, torch.load(path.parent / name, map_location="cpu", weights_only=True)


def remove_snapshot(path: Path) -> None:
    """Removes the snapshot at `path`."""
    path.unlink(missing_ok=True)
    for file in path.parent.glob(f"{path.stem}-*.pt"):
        file.unlink(missing_ok=True)
