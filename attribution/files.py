"""Files that are complete or absent, their fingerprints, and refusals.

Everything that a script leaves behind goes through here: a file is written to a temporary name in
the same folder, flushed to the disk, then renamed, so that a process that dies leaves either the
old file or the new one. Each result has a JSON with its fingerprint in the same folder.
"""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import secrets
import socket
import stat
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

CHECKSUM = "checksum"  # key of a JSON file: that of its other content
# Errors of a file system without locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class Refused(Exception):
    """Input that a script will not work with; the message is one sentence with a remedy."""


class Stale(Refused):
    """Stored results that were made from something else than is asked for now.

    reason: which, and what differs.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"{reason}; replace them with analyze.py --overwrite, or use another --checkpoint_dir"
        )

    def __reduce__(self) -> tuple:
        """How another process of a launch makes it: of the reason, not of the whole message."""
        return Stale, (self.reason,)


def is_disk_full(error: BaseException) -> bool:
    """Whether the error, or what caused it, says that no space (or no quota) is left."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    named = any(os.strerror(code) in str(error) for code in full)
    return named or getattr(error, "errno", None) in full


def temporary_name(path: Path) -> Path:
    """A hidden name beside the file that no other process on any host takes."""
    host = socket.gethostname().split(".")[0]
    return path.with_name(f".{path.name[:150]}.{host}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def check_writable(*folders: Path) -> None:
    """Makes the folders and tries to write in each, before long work. Raises Refused on failure."""
    for folder in folders:
        _try_writing(folder / "probe")


def check_file(path: Path, flag: str) -> None:
    """Makes the folder of a file and tries to write there, before long work. Raises Refused on
    failure, and where there is a folder in the file's place.

    flag: the argument that named the place.
    """
    try:
        is_folder = stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise Refused(f"{flag}: {path} cannot be a file ({error.strerror})") from error
        is_folder = False
    if is_folder:
        raise Refused(f"{flag}: {path} is a folder, and a file would be written there; name a file")
    _try_writing(path)


def _try_writing(path: Path) -> None:
    """Makes the folder of the file, and a temporary file there, which goes again."""
    probe = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        if is_disk_full(error):
            raise
        raise Refused(
            f"nothing can be written to {path.parent} ({error.strerror or error})"
        ) from error


@contextlib.contextmanager
def complete(path: Path):
    """Context with a temporary name to write to; at its end the file is flushed and renamed to
    `path`, so that `path` is complete or absent.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        temporary.touch()
        # Libraries may create files with other permissions than the process's umask.
        mode = temporary.stat().st_mode
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
    """Writes a dictionary as JSON with a checksum, indented or compact, complete or absent."""
    layout = {"separators": (",", ":")} if compact else {"indent": 2}
    text = json.dumps(value | {CHECKSUM: checksum_of(value)}, sort_keys=True, **layout)
    write_bytes(path, f"{text}\n".encode())


def read_json(path: Path) -> dict | None:
    """Dictionary in the file; None if the file is missing or damaged (which is printed).

    Damaged means that it is no JSON object, or that its checksum is missing or does not fit.
    """
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        value = None
    if isinstance(value, dict) and value.pop(CHECKSUM, None) == checksum_of(value):
        return value
    print(f"{path} is damaged and does not count", file=sys.stderr)
    return None


def checksum_of(value: dict) -> str:
    """SHA-256 of a dictionary without a checksum; the layout of its JSON does not count."""
    plain = json.loads(json.dumps(value))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> str:
    """Writes named arrays as safetensors, complete or absent; returns their SHA-256, which is not
    that of the file at `path` once another process has replaced it.
    """
    with complete(path) as temporary:
        save_file({name: np.ascontiguousarray(one) for name, one in arrays.items()}, temporary)
        return sha256_of(temporary)


def write_npz(path: Path, **arrays: np.ndarray) -> str:
    """Writes named arrays as .npz, complete or absent; returns their SHA-256."""
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)
    write_bytes(path, content.getvalue())
    return hashlib.sha256(content.getvalue()).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(paths) -> dict[str, str]:
    """Mapping of file name to SHA-256, for the JSON beside the files."""
    return {path.name: sha256_of(path) for path in sorted(paths)}


def intact(folder: Path, recorded: dict[str, str] | None) -> bool:
    """Whether every recorded file (name -> SHA-256) is in the folder, unchanged."""
    return recorded is not None and all(
        (folder / name).is_file() and sha256_of(folder / name) == digest
        for name, digest in recorded.items()
    )


def differing_parts(stored: dict, wanted: dict) -> list[str]:
    """Names of the parts in which two fingerprints differ, in alphabetical order."""
    return [name for name in sorted({*stored, *wanted}) if stored.get(name) != wanted.get(name)]


def describe_parts(parts: list[str]) -> str:
    """Names of parts as a phrase: `another seed and other weights`."""
    return " and ".join(f"{'other' if part.endswith('s') else 'another'} {part}" for part in parts)


def refuse_if_stale(
    path: Path, fingerprint: dict, what: str, replaceable: bool = False
) -> dict | None:
    """Record in the JSON at `path`; None if there is none.

    fingerprint: named parts of everything that the result depends on. replaceable: whether a record
    made from something else counts as none, as of a custom query, which is cheap to ask again; else
    that raises Stale.
    """
    record = read_json(path)
    if record is None:
        return None
    parts = differing_parts(record.get("fingerprint", {}), fingerprint)
    if parts and replaceable:
        return None
    if parts:
        raise Stale(f"the {what} in {path.parent} were made with {describe_parts(parts)}")
    return record


@contextlib.contextmanager
def exclusive(folder: Path, name: str = ".lock", wait_for: str | None = None):
    """Context in which this process holds the lock file `name` of the folder.

    wait_for: name of the thing to wait for if another process holds the lock; without it that
    raises Refused. A file system without locks gives a warning and no protection.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if wait_for is None:
                raise Refused(
                    f"another process is working in {folder}; wait for it to end"
                ) from None
            print(f"waiting for {wait_for}, on which another process is working", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            print(
                f"{folder} is on a file system without locks: start nothing else there meanwhile",
                file=sys.stderr,
            )
        try:
            yield
        finally:  # a child process may have inherited the open file, and with it the lock
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)


def printable(text: str) -> str:
    """Text on one line with escapes for control and format characters, which change a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
