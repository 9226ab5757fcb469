"""Files that are complete or absent, their fingerprints, and refusals.

Everything that a script leaves behind goes through here: a file is written to a temporary name in
the same folder, flushed to the disk, then renamed, so that a process that dies leaves either the
old file or the new one. Beside each result stands a JSON with its fingerprint.
"""

import contextlib
import difflib
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import secrets
import socket
import sys
import time
from pathlib import Path

import numpy as np
import safetensors
import torch
from safetensors.torch import save_file

CHECKSUM = "checksum"  # key of a JSON file: that of its other content
NO_LOCKS = (
    errno.ENOLCK,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EINVAL,
)  # a file system without locks


class Refused(Exception):
    """Input that a script will not work with; the message is one sentence that says what to do."""


def check_numbers(values: dict, *positive: str) -> None:
    """Raises Refused for an argument (name -> value or None) that is not finite, or not above zero
    where it must be.

    Seeds are numbers from 0 up, of at most 62 bits: NumPy and torch take no others, and a few are
    counted up from them.
    """
    for name, value in values.items():
        if name.endswith("seed") and value is not None and not 0 <= value < 2**62:
            raise Refused(f"--{name} must be from 0 up and below 2**62, not {value}")
        if isinstance(value, float) and not math.isfinite(value):
            raise Refused(f"--{name} must be a finite number, not {value}")
        if name in positive and value is not None and value <= 0:
            raise Refused(f"--{name} must be above 0, not {value}")


def run_script(main, argv: list[str] | None = None) -> int:
    """Runs main(argv); returns the exit status: 0 done, 2 refused, 130 interrupted. Others raise
    (status 1).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may know ASCII only
    try:
        main(argv)
    except Refused as refusal:
        print(
            f"error: {printable(str(refusal))}", file=sys.stderr
        )  # it may quote names and texts of the data
        return 2
    except KeyboardInterrupt:
        print(
            "interrupted; what was finished is kept, and the same command goes on from there",
            file=sys.stderr,
        )
        return 130
    except (OSError, safetensors.SafetensorError) as error:
        if (what := explained(error)) is None:
            raise
        print(f"error: {printable(what)}", file=sys.stderr)
        return 2
    return 0


def explained(error: Exception) -> str | None:
    """What failed with a file, and what to do about it; None where only a traceback can tell."""
    if is_disk_full(error):
        return "the disk is full; free some space and run the same command again"
    if isinstance(error, FileNotFoundError):
        return (
            f"a file is gone that was there ({error.filename or error}); run the same command again"
        )
    if (
        isinstance(error, OSError)
        and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        and error.filename
    ):
        return f"{error.filename} may not be read or written ({error.strerror})"
    return None


def is_disk_full(error: BaseException) -> bool:
    """Whether the error, or what caused it, says that no space (or no quota) is left."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return getattr(error, "errno", None) in full or any(
        os.strerror(number) in str(error) for number in full
    )


def temporary_name(path: Path) -> Path:
    """A hidden name beside the file that no other process on any host takes."""
    host = socket.gethostname().split(".")[0]
    return path.with_name(f".{path.name[:150]}.{host}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def check_writable(*folders: Path) -> None:
    """Makes the folders and tries to write in each. Raises Refused where that fails: better now
    than after the work.
    """
    for folder in folders:
        probe = temporary_name(folder / "probe")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            if is_disk_full(error):
                raise
            raise Refused(
                f"nothing can be written to {folder} ({error.strerror or error})"
            ) from error


@contextlib.contextmanager
def complete(path: Path):
    """A temporary name to write to; what is there afterwards is flushed and renamed to `path`:
    complete or absent.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        temporary.touch()
        mode = (
            temporary.stat().st_mode
        )  # libraries may have another idea of it than the process's umask
        yield temporary
        temporary.chmod(mode)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes the file, complete or absent."""
    with complete(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: dict, compact: bool = False) -> None:
    """Writes a dictionary as JSON, indented or (long lists) compact, complete or absent, with a
    checksum of its own.
    """
    layout = {"separators": (",", ":")} if compact else {"indent": 2}
    value = {name: part for name, part in value.items() if name != CHECKSUM}
    text = json.dumps(value | {CHECKSUM: checksum_of(value)}, sort_keys=True, **layout)
    write_bytes(path, f"{text}\n".encode())


def read_json(path: Path) -> dict | None:
    """The dictionary in the file; None where there is none, and where it is damaged, which is said.

    Damaged is what is no JSON object, or has another checksum than it had; files of before had
    none.
    """
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        value = None
    if not isinstance(value, dict) or not unchanged(value):
        print(f"{path} is damaged and does not count", file=sys.stderr)
        return None
    return {name: part for name, part in value.items() if name != CHECKSUM}


def unchanged(value: dict) -> bool:
    """Whether a JSON's content has its checksum. Files of before had none; a key that is one letter
    off is damaged.
    """
    if CHECKSUM not in value:
        return all(
            len(name) != len(CHECKSUM) or sum(map(str.__ne__, name, CHECKSUM)) > 1 for name in value
        )
    return value[CHECKSUM] == checksum_of(
        {name: part for name, part in value.items() if name != CHECKSUM}
    )


def checksum_of(value: dict) -> str:
    """SHA-256 of a dictionary's content, however its JSON is laid out."""
    return hashlib.sha256(
        json.dumps(json.loads(json.dumps(value)), sort_keys=True).encode()
    ).hexdigest()


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Writes tensors as safetensors, complete or absent."""
    with complete(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Writes named arrays as .npz, complete or absent."""
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    write_bytes(path, content.getvalue())


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(paths) -> dict[str, str]:
    """File name -> SHA-256, for a record beside the files."""
    return {path.name: sha256_of(path) for path in sorted(paths)}


def intact(folder: Path, recorded: dict[str, str] | None) -> bool:
    """Whether every recorded file is there and holds what was recorded."""
    if recorded is None:
        return False
    return all(
        (folder / name).is_file() and sha256_of(folder / name) == digest
        for name, digest in recorded.items()
    )


def fingerprint_of_tensors(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over the names, types, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def differing_parts(stored: dict, wanted: dict) -> list[str]:
    """Names of the parts in which two fingerprints differ, in alphabetical order."""
    return [name for name in sorted({*stored, *wanted}) if stored.get(name) != wanted.get(name)]


def others(parts: list[str]) -> str:
    """`another seed and other weights`."""
    return " and ".join(f"{'other' if part.endswith('s') else 'another'} {part}" for part in parts)


def queries_of(record: dict, parts: list[str]) -> str:
    """` (of --max_queries 50)` where a record differs in nothing but its queries, and says how many
    were asked for.
    """
    asked = record.get("arguments", {}).get("max_queries")
    return f" (of --max_queries {asked})" if asked and parts == ["query rows"] else ""


def refuse_if_stale(path: Path, fingerprint: dict, what: str) -> dict | None:
    """The record at `path`, or None where there is none.

    Raises Refused where the record was made from something else than `fingerprint` (a dictionary
    of named parts) says.
    """
    record = read_json(path)
    if record is None:
        return None
    parts = differing_parts(record.get("fingerprint", {}), fingerprint)
    if parts:
        raise Refused(
            f"the {what} in {path.parent} were made with "
            f"{others(parts)}{queries_of(record, parts)}; pass --overwrite to replace them, or use "
            "another --checkpoint_dir"
        )
    return record


@contextlib.contextmanager
def exclusive(folder: Path, name: str = ".lock", shared: bool = False, wait_for: str | None = None):
    """Holds the folder, by its file `name`, for this process; raises Refused where another process
    holds it.

    shared: others that ask for it shared may hold it too. wait_for: what it is waited for, which is
    said once, instead of refusing; the wait ends with the other process at the latest. On a file
    system without locks nothing is held, and that is said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, "w") as file:
        kind, said = fcntl.LOCK_SH if shared else fcntl.LOCK_EX, False
        while True:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                if wait_for is None:
                    raise Refused(
                        f"another process is working in {folder}; wait for it to end"
                    ) from None
                if not said:
                    print(
                        f"waiting for {wait_for}, on which another process is working",
                        file=sys.stderr,
                    )
                said = True
                time.sleep(0.2)
                continue
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                print(
                    f"{folder} is on a file system without locks: start nothing else there "
                    "meanwhile",
                    file=sys.stderr,
                )
            break
        try:
            yield
        finally:  # a child process may have inherited the open file, and with it the lock
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)


def meant(name: str, known) -> str:
    """` (did you mean 'sst2'?)` where one of the known names is near; else nothing."""
    plain = name.casefold().replace("-", "").replace("_", "")
    near = difflib.get_close_matches(name, list(known), n=1) or difflib.get_close_matches(
        plain, list(known), n=1
    )
    return f" (did you mean {near[0]!r}?)" if near else ""


def printable(text: str) -> str:
    """The text on one line, without what would steer a terminal: control and format characters
    become escapes.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
