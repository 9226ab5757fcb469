"""Where a result comes from: its command, the commit, versions, processor, and the fingerprints of
model and data.
"""

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
    """What git says in this directory. Raises OSError or CalledProcessError where it cannot."""
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


@functools.cache
def git_commit() -> str | None:
    """The commit of this directory, with '+' where Python files or requirements differ from it;
    None outside git.

    As it was when this process first asked, which studies do before their long work: they run what
    they have loaded. Other files do not count, so one study may follow another without a commit.
    """
    try:
        code = ("*.py", "requirements.txt")
        changed = git("status", "--porcelain", "--untracked-files=all", "--", *code)
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def processor() -> str:
    """The processor and the instructions that torch uses of it: others may round otherwise."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
            name,
        )
    except OSError:
        pass
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def environment(device: torch.device | str = "cpu") -> dict:
    """Versions, commit, processor, device and threads, for the JSON beside a result."""
    device = torch.device(device)
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads"
    )
    versions = {library: importlib.metadata.version(library) for library in LIBRARIES}
    return {"versions": versions, "commit": git_commit(), "device": name, "processor": processor()}


def command() -> str:
    """The command line of this process, from the project's folder on."""
    if module := getattr(sys.modules["__main__"], "__spec__", None):  # python -m
        return shlex.join(["python", "-m", module.name, *sys.argv[1:]])
    script = Path(sys.argv[0]).resolve()
    name = script.relative_to(ROOT) if script.is_relative_to(ROOT) else Path(script.name)
    return shlex.join(["python", str(name), *sys.argv[1:]])


def origin(device: torch.device | str = "cpu", fingerprints: dict[str, str] | None = None) -> dict:
    """What a table or figure is traced back by: environment, command, and the fingerprints of model
    and data.

    fingerprints: what -> SHA-256; none for a result that neither model nor data went into.
    """
    return {**environment(device), "command": command(), "fingerprints": fingerprints or {}}
