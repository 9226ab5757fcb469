"""A result is traced back to its command and commit, and the committed results to a clean one."""

import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from running import ROOT

from attribution import provenance
from attribution.files import read_json


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A small clone in place of the project."""
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setattr(provenance, "git_commit", provenance.git_commit.__wrapped__)
    for name in ("results/lds.json", "README.md", "lab/README.md", "code.py", "requirements.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


@pytest.mark.parametrize("changed", ["code.py", "requirements.txt", "new.py"])
def test_the_commit_says_where_code_differs_from_it(repository, changed):
    (repository / changed).write_text("2")
    assert provenance.git_commit().endswith("+")


def test_what_is_made_from_results_changes_no_result(repository):
    clean = provenance.git_commit()
    for name in ("results/lds.json", "results/new.json", "README.md", "lab/README.md", "notes.txt"):
        (repository / name).write_text("2")
    assert provenance.git_commit() == clean and len(clean) == 40


def test_outside_git_there_is_no_commit(repository):
    shutil.rmtree(repository / ".git")
    assert provenance.git_commit() is None


def test_a_command_starts_at_the_projects_folder_and_can_be_given_again(repository, monkeypatch):
    main = SimpleNamespace(__spec__=None)
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", [str(repository / "tests/some.py"), "--cases", "a b"])
    assert provenance.command() == "python tests/some.py --cases 'a b'"
    main.__spec__ = SimpleNamespace(name="lab.speed")
    assert provenance.command() == "python -m lab.speed --cases 'a b'"
    main.__spec__ = None
    monkeypatch.setattr(sys, "argv", ["/elsewhere/tool.py"])
    assert provenance.command() == "python tool.py"


def test_the_origin_names_processor_versions_and_fingerprints():
    found = provenance.origin("cpu", {"weights": "1f"})
    assert found["fingerprints"] == {"weights": "1f"} and found["versions"]["torch"].startswith(
        "2."
    )
    assert (
        found["processor"].endswith(")")
        and len(found["processor"]) > 5
        and "threads" in found["device"]
    )


def test_a_process_keeps_the_commit_that_it_began_with(repository, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(provenance, "ROOT", repository)
    provenance.git_commit.cache_clear()
    first = provenance.git_commit()
    (repository / "code.py").write_text("2")
    assert provenance.git_commit() == first and not first.endswith("+")
    provenance.git_commit.cache_clear()


OLDER = {"scale": ("command",)}  # lacks this
RESULTS = sorted(
    path.relative_to(ROOT / "results").with_suffix("").as_posix()
    for path in (ROOT / "results").rglob("*.json")
    if not path.name.endswith(".run.json")
)


@pytest.mark.parametrize("name", [name for name in RESULTS if name != "published"])
def test_every_result_of_the_project_says_its_command_its_versions_and_a_clean_commit(name):
    path = ROOT / "results" / f"{name}.run.json"
    record = read_json(path if path.exists() else ROOT / "results" / f"{name}.json") or {}
    said = {
        "commit": len(record["commit"]) == 40,
        "command": "command" in record,
        "versions": "versions" in record,
    }
    assert tuple(part for part, there in said.items() if not there) == OLDER.get(name, ())
