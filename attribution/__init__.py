"""Implementation in layers: each package imports only from those below it (CONTRIBUTING.md)."""

import importlib
import sys

if sys.platform == "win32":
    print(
        "error: these scripts need Linux or another Unix (file locks); on Windows use WSL",
        file=sys.stderr,
    )
    raise SystemExit(2)


def __getattr__(name: str):
    """`Run`, which answers questions: imported when it is asked for, because it needs torch."""
    if name != "Run":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module("attribution.commands.python").Run
