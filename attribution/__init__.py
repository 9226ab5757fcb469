"""What stands behind the scripts, in wings; a file imports only from floors below its own, or from
its own wing.
"""

import sys

if sys.platform == "win32":
    print(
        "error: these scripts need Linux or another Unix (file locks); on Windows use WSL",
        file=sys.stderr,
    )
    raise SystemExit(2)
