"""Layers, cycles, docstrings, arguments and the names that documents quote are what the rules of
the source say (see house.py).
"""

import argparse
import importlib
import re
import warnings

import house
import pytest
from running import ROOT

import analyze
import evaluate_lds
import run_counterfactual
import train
from attribution.cli import run_script

FILES = house.python_files(ROOT)
PRODUCT = [name for name in FILES if not name.startswith(house.OUTSIDE)]
MODULES = {
    "train.py": train,
    "analyze.py": analyze,
    "evaluate_lds.py": evaluate_lds,
    "run_counterfactual.py": run_counterfactual,
}
UNDOCUMENTED: dict[str, str] = {}  # `file: name` -> why it needs no docstring
# Questions of a newcomer -> file and name that answer it; CONTRIBUTING.md lists them.
ANSWERS = {
    "the sign": ("attribution/engine/task.py", "InfluenceTask.compute_measurement"),
    "damping": ("attribution/engine/modules.py", "EigenLinear.prepare_storage"),
    "a mask": ("attribution/evidence/ground_truth.py", "draw_masks"),
    "keyed by": ("attribution/evidence/store.py", "Job.key"),
    "a task": ("attribution/data/tasks.py", "TASKS"),
    "the margin": ("pipeline.py", "compute_margin"),
}


# --- layers ---------------------------------------------------------------------------------------


def test_a_file_imports_only_from_layers_below_or_its_own_package_and_no_script_imports_another():
    assert set(house.SCRIPTS) == set(MODULES) <= set(PRODUCT) and len(PRODUCT) > 30
    assert house.layer_violations(ROOT, PRODUCT) == []


def test_no_import_leads_back_to_its_own_file():
    assert house.import_cycle(ROOT, PRODUCT) == []


def test_every_name_that_a_file_takes_from_another_exists_there_in_tests_and_lab_too():
    assert house.missing_names(ROOT, FILES) == []


SOUND = {  # a small project in order: file -> content
    "attribution/__init__.py": "",
    "attribution/data/demo.py": "",
    "attribution/files.py": "import os\n",
    "attribution/data/dataset.py": "from .. import files\n",
    "pipeline.py": "import attribution\nfrom attribution.files import x\n",
    "attribution/training/fit.py": "from pipeline import y\nfrom .run import z\n",
    "attribution/training/run.py": "z = 1\n",
    "attribution/influence/stored.py": "from attribution.training import fit\n",
    "attribution/evidence/lds.py": "import attribution.influence.stored as stored\n",
    "attribution/show/tables.py": "from attribution.evidence import lds\nfrom os import path\n",
    "train.py": "from attribution.show.tables import t\nimport evaluate\n",
    "analyze.py": "from attribution.data import demo\n",
    "lab/speed.py": "import train\n",
    "tests/test_train.py": "import train, lab.speed\n",
}
OUTSIDE = "no layer imports lab/, demo/, tests/"
SCRIPT = "no script imports another script"
VIOLATIONS = [  # file, content, imported file, rule
    ("attribution/files.py", "import pipeline", "pipeline.py", house.UPWARDS),
    (
        "attribution/data/dataset.py",
        "def f():\n    from ..training import fit",
        "attribution/training/fit.py",
        house.UPWARDS,
    ),
    (
        "pipeline.py",
        "if True:\n    import attribution.show",
        "attribution/show/",
        house.UPWARDS,
    ),
    ("attribution/training/fit.py", "class A:\n    import train as t", "train.py", house.UPWARDS),
    (
        "attribution/influence/stored.py",
        "import attribution.evidence.lds",
        "attribution/evidence/lds.py",
        house.UPWARDS,
    ),
    ("train.py", "def f():\n    from analyze import main", "analyze.py", SCRIPT),
    ("train.py", "import numpy, lab.speed", "lab/speed.py", OUTSIDE),
    ("pipeline.py", "from tests import test_train", "tests/test_train.py", OUTSIDE),
]


def build(folder, files: dict[str, str]) -> list[str]:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return house.python_files(folder)


def test_a_sound_project_has_no_violation_and_no_cycle(tmp_path):
    files = build(tmp_path, SOUND)
    assert sorted(SOUND) == files and house.layer_violations(tmp_path, files) == []
    assert house.import_cycle(tmp_path, files) == []


@pytest.mark.parametrize(("file", "content", "imported", "rule"), VIOLATIONS)
def test_a_violation_is_named_with_both_files_and_the_rule(tmp_path, file, content, imported, rule):
    files = build(tmp_path, SOUND | {file: content})
    (sentence,) = house.layer_violations(tmp_path, files)
    line = content.count("\n") + 1
    assert sentence == f"{file}, line {line}, imports {imported}: {rule}"


def test_a_file_without_a_layer_and_an_import_of_one_are_violations(tmp_path):
    extra = {"helpers.py": "", "attribution/new.py": "", "train.py": "import helpers"}
    files = build(tmp_path, SOUND | extra)
    assert house.layer_violations(tmp_path, files) == [
        "attribution/new.py is in no layer: give it a place in LAYERS",
        "helpers.py is in no layer: give it a place in LAYERS",
        "train.py, line 1, imports helpers.py: an imported file must be in a layer",
    ]


def test_a_cycle_is_named_file_by_file(tmp_path):
    run = "attribution/training/run.py"
    files = build(tmp_path, SOUND | {run: "from .fit import y"})
    fit = "attribution/training/fit.py"
    assert house.import_cycle(tmp_path, files) in ([fit, run, fit], [run, fit, run])


def test_a_name_that_is_missing_where_it_is_taken_from_is_found(tmp_path):
    files = build(
        tmp_path,
        {
            "attribution/__init__.py": "",
            "attribution/z.py": "def __getattr__(n):\n    if n == 'late': return 'never'\n",
            "four.py": "from attribution.z import late, never\n",
            "attribution/a.py": "import os\nb: int = 1\nif b:\n    c, d = 1, 2\ndef e(): f = 1\n",
            "one.py": "from attribution import a as x\nfrom attribution.a import b, c, d, e, os\n"
            "x.b, x.e, x.__file__\n",
            "two.py": "from attribution.a import f\nfrom attribution import none\nimport "
            "attribution\nattribution.a\n",
            "three.py": "import one\ndef g(one): one.gone\ndef h():\n    one = 1\n    one.gone\n"
            "def i(): return one.lost\n",
        },
    )
    assert house.missing_names(tmp_path, files) == [
        "four.py, line 1, takes never from attribution/z.py, which has no such name",
        "three.py, line 6, takes lost from one.py, which has no such name",
        "two.py, line 1, takes f from attribution/a.py, which has no such name",
        "two.py, line 2, takes none from attribution/__init__.py, which has no such name",
    ]


# --- deprecations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DeprecationWarning, PendingDeprecationWarning, FutureWarning])
def test_what_our_own_files_use_and_libraries_are_about_to_drop_is_an_error(kind):
    for module in ("attribution.files", "train", "lab.speed"):
        with pytest.raises(kind):
            warnings.warn_explicit("going", kind, "file.py", 1, module=module)
    with warnings.catch_warnings(record=True):
        warnings.warn_explicit("going", kind, "file.py", 1, module="transformers.models")


# --- docstrings -----------------------------------------------------------------------------------


def overrides(file: str, owner: str, method: str) -> bool:
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    return any(hasattr(base, method) for base in getattr(module, owner).__mro__[1:])


def test_every_public_name_has_a_docstring_unless_it_overrides_a_documented_one():
    found = house.undocumented(ROOT, PRODUCT, overrides)
    assert set(found) == set(UNDOCUMENTED), found


def test_what_has_no_docstring_is_found(tmp_path):
    methods = "    def b(self): pass\n    def __len__(self): pass\n    def c(self): 'C.'\n"
    build(tmp_path, {"a.py": f"def f(): pass\ndef _g(): pass\nclass A:\n    'A.'\n{methods}"})
    assert house.undocumented(tmp_path, ["a.py"]) == ["a.py", "a.py: f", "a.py: A.b"]


# --- arguments and documents ---------------------------------------------------------------------


@pytest.mark.parametrize("name", house.SCRIPTS)
def test_every_argument_has_a_help_text_and_stands_in_a_named_group(name, monkeypatch):
    built: list[argparse.ArgumentParser] = []

    def stop(parser, *_):
        built.append(parser)
        raise SystemExit

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    with pytest.raises(SystemExit):
        MODULES[name].parse_args([])
    (parser,) = built
    positional, options, *named = parser._action_groups
    unnamed = [*positional._group_actions, *options._group_actions]
    assert [action.dest for action in unnamed] == ["help", "help_all"]
    assert len(named) > 1 and len({group.title for group in named}) == len(named)
    parser.show_all = True
    page = parser.format_help()
    for group in named:
        assert group.title and f"\n{group.title}:\n" in page and group._group_actions
        for action in group._group_actions:
            assert action.help and action.help != argparse.SUPPRESS, action.dest
            assert action.option_strings[0] in page
    grouped = [action.dest for group in named for action in group._group_actions]
    assert sorted(grouped) == sorted(action.dest for action in parser._actions[2:])


@pytest.mark.parametrize("name", house.SCRIPTS)
def test_a_script_without_arguments_names_those_that_it_needs(name, capsys):
    assert run_script(MODULES[name].main, []) == 2
    assert "required: --dataset_name" in capsys.readouterr().err


def test_contributing_answers_the_questions_of_a_newcomer_with_names_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for question, (file, name) in ANSWERS.items():
        assert house.defines(ROOT, file, name), (file, name)
        line = next((line for line in text.splitlines() if question in line and name in line), None)
        assert line is not None and f"`{file}`" in line, question


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "lab/README.md"])
def test_files_and_names_that_a_page_quotes_exist(page):
    """`path.py` is a file of the repository, and `path.py`: `name` is defined in it; folders stand
    before the file.
    """
    text = (ROOT / page).read_text()
    assert [file for file in re.findall(r"`([\w/]+/\w+\.py)`", text) if file not in FILES] == []
    pairs = re.findall(r"`([\w/]+\.py)`:\s+`([\w.]+)`", text)
    assert [pair for pair in pairs if not house.defines(ROOT, *pair)] == [] and (
        pairs or page != "CONTRIBUTING.md"
    )


def test_a_definition_is_a_function_a_class_a_constant_or_a_method_and_no_import(tmp_path):
    build(tmp_path, {"a.py": "import b\nC = 1\nclass D:\n    def e(self): f = 1\n"})
    assert [
        name
        for name in ("b", "C", "D", "D.e", "e", "D.f", "D.C")
        if house.defines(tmp_path, "a.py", name)
    ] == [
        "C",
        "D",
        "D.e",
    ]
