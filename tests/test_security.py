"""What SECURITY.md says: no code from data, no path from a name, nothing outside the folders that
were named.
"""

import ast
import json
import shutil
from pathlib import Path

import house
import pytest
from datasets import Dataset
from running import ROOT, refusal

import analyze
import train
from pipeline import DEMO_MODEL

EXECUTES = {"eval", "exec", "compile", "__import__"}
UNPICKLES = {
    ("pickle", "load"),
    ("pickle", "Unpickler"),
    ("joblib", "load"),
    ("dill", "load"),
    ("yaml", "load"),
}
PRODUCT = [name for name in house.python_files(ROOT) if not name.startswith(house.OUTSIDE)]


def calls(tree: ast.Module) -> list[tuple[ast.Call, tuple[str, ...]]]:
    """Every call with the dotted name of what is called."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            found.append((node, tuple(ast.unparse(node.func).split("."))))
    return found


def dangers(name: str, tree: ast.Module) -> list[str]:
    """Calls that could run what stands in a file."""
    found = []
    for node, called in calls(tree):
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        unpickled = called[-2:] in UNPICKLES or (called == ("pickle", "loads") and name != WORKERS)
        unsafe = called[-2:] == ("torch", "load") and given.get("weights_only") != "True"
        unsafe |= called[-2:] == ("np", "load") and given.get("allow_pickle") != "False"
        if (len(called) == 1 and called[0] in EXECUTES) or unpickled or unsafe:
            found.append(f"{name}: {'.'.join(called)}")
        found += [f"{name}: {word}" for word in ("trust_remote_code", "shell") if word in given]
    return found


WORKERS = "attribution/evidence/retraining.py"  # workers get theirs from the parent process


def test_no_file_of_ours_runs_or_unpickles_what_stands_in_a_file():
    assert [danger for name in PRODUCT for danger in dangers(name, house.parse(ROOT, name))] == []


@pytest.mark.parametrize(
    "code",
    [
        "eval(x)",
        "pickle.load(f)",
        "pickle.loads(b)",
        "torch.load(p)",
        "np.load(p)",
        "torch.load(p, weights_only=False)",
        "AutoModel.from_pretrained(p, trust_remote_code=False)",
        "subprocess.run(c, shell=True)",
    ],
)
def test_what_could_is_found(code):
    assert len(dangers("a.py", ast.parse(code))) == 1


@pytest.fixture
def trap(tmp_path):
    """(Python code that leaves a file, that file)."""
    return f"open({str(tmp_path / 'ran')!r}, 'w')\n", tmp_path / "ran"


def test_code_beside_a_model_is_not_run(tmp_path, trap, capsys):
    code, ran = trap
    folder = shutil.copytree(DEMO_MODEL, tmp_path / "model")
    (folder / "modeling_evil.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    names = {
        "AutoConfig": "modeling_evil.Config",
        "AutoModelForSequenceClassification": "modeling_evil.Model",
    }
    (folder / "config.json").write_text(
        json.dumps(config | {"auto_map": names, "model_type": "evil"})
    )
    plan = [
        "--dataset_name",
        "demo",
        "--checkpoint_dir",
        str(tmp_path),
        "--max_train_samples",
        "20",
    ]
    assert "error: " in refusal(capsys, train.main, [*plan, "--model_name_or_path", str(folder)])
    assert not ran.exists()


def test_code_beside_data_is_not_run(tmp_path, trap, capsys):
    code, ran = trap
    (tmp_path / "glue").mkdir()
    (tmp_path / "glue/glue.py").write_text(code)
    plan = [
        "--dataset_name",
        "rte",
        "--checkpoint_dir",
        str(tmp_path),
        "--dataset_path",
        str(tmp_path / "glue"),
    ]
    assert "error: " in refusal(capsys, train.main, plan)
    assert not ran.exists()


def test_names_from_data_are_no_paths(tmp_path, capsys):
    """Column, class names and texts that would leave a folder; nothing appears outside those that
    were named.
    """
    inner = tmp_path / "a" / "b"
    (inner / "data").mkdir(parents=True)
    texts = [
        f"../../{word} is {kind}" for word in ("tea", "soup", "bread") for kind in ("good", "bad")
    ] * 6
    labels = ["../../up" if "good" in text else "/tmp/../evil\x1b[31m" for text in texts]
    Dataset.from_dict({"../../text": texts, "/label": labels}).to_parquet(
        inner / "data/rows.parquet"
    )
    where = ["--dataset_name", "own", "--checkpoint_dir", str(inner / "checkpoints")]
    own = ["--dataset_path", str(inner / "data/rows.parquet"), "--text_columns", "../../text"]
    start = ["--model_name_or_path", str(DEMO_MODEL), "--num_train_epochs", "1"]
    train.main([*where, *own, "--label_column", "/label", *start])
    plan = [*where, "--factor_strategy", "identity"]
    analyze.main(plan)
    analyze.main([*plan, "--report"])
    analyze.main([*plan, "--query_text", "../../soup\x1b[31m is good"])
    assert "\x1b" not in capsys.readouterr().out
    unknown = [*plan, "--query_text", "soup", "--query_label", "none"]
    assert "\x1b" not in (error := refusal(capsys, analyze.main, unknown)) and "evil" in error
    inside = {
        tmp_path: {"a"},
        inner.parent: {"b"},
        inner: {"data", "checkpoints"},
        inner / "checkpoints": {"own"},
    }
    assert {folder: {path.name for path in folder.iterdir()} for folder in inside} == inside


@pytest.mark.parametrize("name", ["../up", "/tmp/x", "a/b", ".hidden", "a\nb", ""])
def test_a_data_sets_name_that_is_no_folders_name_is_refused(name, tmp_path, capsys):
    table = Path(tmp_path / "rows.csv")
    table.write_text("text,label\nx,a\ny,b\n")
    own = ["--dataset_path", str(table), "--text_columns", "text", "--label_column", "label"]
    argv = ["--dataset_name", name, "--checkpoint_dir", str(tmp_path / "checkpoints"), *own]
    wanted = "must be letters" if name else "--dataset_name is empty"
    assert wanted in refusal(capsys, train.main, argv)
    assert {path.name for path in tmp_path.iterdir()} == {"rows.csv"}
