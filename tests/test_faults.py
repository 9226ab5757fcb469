"""Nothing is lost whatever happens: one fault of each kind; `make faults` has hundreds."""

import json
import subprocess
import sys

from running import ROOT


def test_after_one_fault_of_each_kind_everything_is_as_without_it(tmp_path):
    """In a process of its own, which forks while it has one thread."""
    command = [
        sys.executable,
        "tests/faults/run.py",
        "--trials",
        "11",
        "--seed",
        "11",
        "--result",
        tmp_path / "f.json",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    trials = json.loads((tmp_path / "f.json").read_text())["trials"]
    assert (
        len({trial["trial"] for trial in trials}) == 11
        and sum(trial["passed"] is True for trial in trials) >= 9
    )
