"""Every script of lab/commands/ runs to its end, and every flag that it gives is known."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from running import ROOT

CLEAN = ROOT / "lab/commands/clean.sh"
COMMANDS = sorted(set(CLEAN.parent.glob("*.sh")) - {CLEAN})
RECORD = """#!/bin/bash
for word in "$@"; do printf '%s\\x1f' "$word" >> "$RECORD"; done
echo >> "$RECORD"
case "$*" in *--plan*) exec "$PYTHON" "$@" ;; esac
"""
NOTHING = "#!/bin/bash\nexit 0\n"
STANDINS = {"python": RECORD, "git": NOTHING, "chromium": NOTHING, "pip": NOTHING}
STANDINS |= {"unzip": NOTHING, "taskset": '#!/bin/bash\nshift 2\nexec "$@"\n'}


@pytest.fixture
def place(tmp_path):
    """A folder with lab/ in it, and programs in place of those that scripts start."""
    for name, text in STANDINS.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "lab").symlink_to(ROOT / "lab")
    (tmp_path / "checkpoints").mkdir()
    return tmp_path


def started(place: Path, script: Path) -> list[list[str]]:
    """The arguments of every python that the script starts."""
    record = place / "record"
    given = {"PATH": f"{place}:{os.environ['PATH']}", "PYTHON": sys.executable}
    given |= {"PYTHONPATH": str(ROOT), "RECORD": str(record)}
    given |= {"GLUE_DIR": "a folder", "MODEL_DIR": "another"}
    subprocess.run(["bash", script], cwd=place, env=os.environ | given, check=True)
    return [line.split("\x1f")[:-1] for line in record.read_text().splitlines()]


@pytest.mark.parametrize("script", COMMANDS, ids=lambda path: path.name)
def test_every_command_of_a_script_can_be_parsed(place, script):
    commands = started(place, script)
    assert commands
    for command in commands:
        name, arguments = command[0], command[1:]
        if name == "-m":
            name, arguments = arguments[0], arguments[1:]
        name = name.removesuffix(".py")
        if name in ("-", "pytest", "tests/faults/run"):
            continue
        importlib.import_module(name).parse_args(arguments)


def test_results_are_not_made_from_changed_files(tmp_path):
    for name in ("code.py", "README.md", "results/one.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    for name, status in (("README.md", 0), ("results/one.json", 0), ("code.py", 2)):
        (tmp_path / name).write_text("2")
        assert subprocess.run(["bash", CLEAN], cwd=tmp_path).returncode == status, name


@pytest.mark.parametrize("script", COMMANDS, ids=lambda path: path.name)
def test_a_script_that_writes_results_begins_with_a_check_of_the_files(script):
    text = script.read_text()
    writes = "results/" in text or "--results_dir results" in text
    assert not writes or "source lab/commands/clean.sh\n" in text
