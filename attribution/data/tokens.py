"""Tokens of a table's rows, made once: cached on the disk where the table is large, and read from
there as they lie.

Symbols: N rows.
"""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa

from attribution.files import exclusive, read_json, write_json
from attribution.machine import num_cores
from attribution.models import fingerprint_of_tokenizer

CACHED_ROWS = 10_000  # from so many rows on tokens are cached: of fewer they are made in a second
ROWS_A_PROCESS = 50_000  # at least, where several processes make them


def tokenize(
    table: datasets.Dataset,
    columns: tuple[str, ...],
    tokenizer,
    max_length: int,
    cache: bool = True,
) -> dict[str, tuple]:
    """What the tokenizer makes of the text columns, cut to max_length tokens: name -> (flat (T,),
    lengths (N,)).

    Cached below the datasets library's own cache, under a fingerprint of table, tokenizer and
    length. Of several processes one makes them while the others wait. cache: False for texts that
    shall leave nothing behind.
    """

    def encode(batch: dict) -> dict:
        texts = [list(batch[column]) for column in columns]
        return dict(
            tokenizer(*texts, truncation=True, max_length=max_length, return_attention_mask=False)
        )

    if len(table) < CACHED_ROWS or not cache:
        return {name: flatten(values) for name, values in encode(table).items()}
    encode(
        {column: [""] for column in columns}
    )  # a tokenizer keeps the length of its last call, which changes it
    parts = f"{table._fingerprint}|{fingerprint_of_tokenizer(tokenizer)}|{max_length}|{columns}"
    name = hashlib.sha256(parts.encode()).hexdigest()[:32]
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "attribution_tokens"

    def make() -> dict[str, tuple]:
        made = table.select_columns(list(columns)).map(
            encode,
            batched=True,
            remove_columns=list(columns),
            new_fingerprint=name,
            cache_file_name=str(folder / f"{name}.arrow"),
            desc="tokens",
            num_proc=min(num_cores(), len(table) // ROWS_A_PROCESS) or None,
        )
        return {column: flat_column(made, column) for column in made.column_names}

    with exclusive(folder, f".lock_{name}", wait_for="tokens"):
        return checked(folder, name, make)


def checked(folder: Path, name: str, make: Callable[[], dict[str, tuple]]) -> dict[str, tuple]:
    """What make() returns, which reads or writes <name>*.arrow in the folder; made again where that
    is damaged.
    """
    record = folder / f"{name}.json"
    known = read_json(record) or {}
    try:
        found = make()
        content = digest_of(found)
        if not known:
            write_json(record, {"content": content})
        if known.get("content", content) == content:
            return found
    except (OSError, ValueError, pa.ArrowException) as error:
        if (
            isinstance(error, OSError) and error.errno is not None
        ):  # of the disk, not of what stands in the file
            raise
    print(f"the tokens in {folder / name}.arrow are damaged and are made again", file=sys.stderr)
    for path in folder.glob(f"{name}*"):
        path.unlink()
    found = make()
    write_json(record, {"content": digest_of(found)})
    return found


def digest_of(tokens: dict[str, tuple]) -> str:
    """SHA-256 of all tokens and lengths."""
    digest = hashlib.sha256()
    for name in sorted(tokens):
        for array in tokens[name]:
            digest.update(f"|{name}|".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def flat_column(made: datasets.Dataset, column: str) -> tuple[np.ndarray, np.ndarray]:
    """(flat (T,), lengths (N,)) of a column of lists of numbers."""
    chunks = made.with_format("arrow")[:][column].chunks
    flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks]
    lengths = [
        pa.compute.list_value_length(chunk).to_numpy(zero_copy_only=False) for chunk in chunks
    ]
    return np.concatenate(flat), np.concatenate(lengths).astype(np.int64)


def flatten(values: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """(flat (T,), lengths (N,)) of lists of numbers."""
    lengths = np.array([len(value) for value in values], dtype=np.int64)
    return np.fromiter(
        (number for value in values for number in value), np.int32, int(lengths.sum())
    ), lengths
