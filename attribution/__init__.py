"""Implementation in layers: each package imports only from those below it (CONTRIBUTING.md)."""

import sys

if sys.platform == "win32":
    print(
        "error: these scripts need Linux or another Unix (file locks); on Windows use WSL",
        file=sys.stderr,
    )
    raise SystemExit(2)
