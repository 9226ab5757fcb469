"""Provenance of a result: its command, commit, versions, processor, and the fingerprints of model
and data.
"""

import contextlib
import functools
import importlib.metadata
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "transformers", "datasets", "kronfluence", "numpy")


def git(*arguments: str) -> str:
    """Output of git in this directory. Raises OSError or CalledProcessError if it fails."""
    return subprocess.check_output(
        ["git", *arguments], cwd=ROOT, stderr=subprocess.DEVNULL, text=True
    ).strip()


@functools.cache
def git_commit() -> str | None:
    """Commit of this directory, with '+' if Python files or requirements differ from it; None
    outside git.

    It is that of the process's first call, before long work: a process runs what it has loaded.
    Other files do not count, so one study may follow another without a commit.
    """
    try:
        code = ("*.py", "requirements.txt")
        changed = git("status", "--porcelain", "--untracked-files=all", "--", *code)
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def processor() -> str:
    """Processor and the instruction set that torch uses; another one may round differently."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def environment(device: torch.device | str = "cpu") -> dict:
    """Versions, commit, processor, device and threads, for the JSON beside a result."""
    device = torch.device(device)
    name = f"cpu, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    versions = {library: importlib.metadata.version(library) for library in LIBRARIES}
    return {"versions": versions, "commit": git_commit(), "device": name, "processor": processor()}


def command() -> str:
    """Command line of this process; the script's path begins at the project's folder."""
    if module := getattr(sys.modules["__main__"], "__spec__", None):  # python -m
        return shlex.join(["python", "-m", module.name, *sys.argv[1:]])
    script = Path(sys.argv[0]).resolve()
    name = script.relative_to(ROOT) if script.is_relative_to(ROOT) else Path(script.name)
    return shlex.join(["python", str(name), *sys.argv[1:]])


def origin(device: torch.device | str = "cpu", fingerprints: dict[str, str] | None = None) -> dict:
    """Provenance of a table or figure: environment, command, and fingerprints of model and data.

    fingerprints: name -> SHA-256; none for a result without model and data.
    """
    return {**environment(device), "command": command(), "fingerprints": fingerprints or {}}
