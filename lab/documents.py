"""Commands that the documents print, run in their order as a reader would.

    python -m lab.documents --plan          # lists them, with the reason for what is not run
    python -m lab.documents                 # some twenty minutes on two cores

Run it in a clean clone with the environment of `make demo`. Commands stand in fenced blocks, or in
backticks in a table. Each runs in bash in the project's root, its output in WORK_DIR.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from attribution.cli import run_script
from attribution.files import Refused
from lab.common import ROOT

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "lab/README.md")
PROGRAMS = ("python", "make", "accelerate", "lab/commands", "bash")
LIMIT = 600  # seconds of a command
# What a command has in it -> why it is not run. The first that fits counts.
NOT_RUN = {
    r"--adopt DIR|masks\.pt": "needs files of the reader",
    r"^accelerate|torchrun": "needs several devices",
    r"--dataset_name (sst2|rte)|commands/minilm": "needs GLUE, a hub, and hours on a CPU",
    r"lab\.documents": "this command",
    r"--query_index 79 --top_k": "about a study that is not run",
    r"^make ": "run for itself; see CONTRIBUTING.md",
    r"evaluate_lds.py --dataset_name demo$": "500 retrains",
    r"run_counterfactual.py --dataset_name demo$": "hundreds of retrains",
}


def commands_of(text: str) -> list[str]:
    """Commands of a page in Markdown, in their order: shell commands, and Python as `python -c`."""
    found: list[tuple[int, str]] = []
    for block in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        language, content = block.groups()
        if language == "python":
            found.append((block.start(), f"python - <<'END'\n{content}END"))
            continue
        for line in content.replace("\\\n", " ").splitlines():
            command = " ".join(re.sub(r"\s#.*", "", line).split())
            found.append((block.start(), command))
    for cell in re.finditer(r"^\|.*?`(python [^`]+)`", text, re.MULTILINE):
        found.append((cell.start(), cell[1]))
    ordered = sorted(found, key=lambda one: one[0])
    return [command for _, command in ordered if command.startswith(PROGRAMS)]


def reason_not_to_run(command: str) -> str | None:
    """Why the command is not run; None if it is."""
    return next((why for part, why in NOT_RUN.items() if re.search(part, command)), None)


def run(command: str, log: Path) -> tuple[str, float]:
    """(how the command ended, seconds), with its output in the log."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    start = time.perf_counter()
    with log.open("wb") as output:
        try:
            status = subprocess.run(
                ["bash", "-c", command],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=LIMIT,
            ).returncode
        except subprocess.TimeoutExpired:
            return f"stopped after {LIMIT} s", LIMIT
    return f"status {status}" if status else "ran", time.perf_counter() - start


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Arguments of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plan", action="store_true", help="list the commands; run nothing")
    parser.add_argument(
        "--work_dir",
        type=Path,
        default=Path("checkpoints/documents"),
        help="folder of the logs (checkpoints/documents)",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Runs what the documents print. Raises Refused if a command failed."""
    args = parse_args(argv)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    failed = 0
    for page in DOCUMENTS:
        print(f"{page}")
        for number, command in enumerate(commands_of((ROOT / page).read_text())):
            ended = reason_not_to_run(command)
            seconds = ""
            if ended is None and not args.plan:
                log = args.work_dir / f"{page.replace('/', '_')}_{number:02}.log"
                ended, took = run(command, log)
                seconds = f"{took:4.0f} s"
                failed += ended != "ran"
            shown = command.splitlines()[0]
            print(f"{number:4} {seconds:>6}  {shown}")
            print(f"{'':13}{ended or 'to be run'}", flush=True)
    if failed:
        raise Refused(f"{failed} commands failed; their output is in {args.work_dir}")


if __name__ == "__main__":
    sys.exit(run_script(main))
