"""Floors, sizes, docstrings, arguments and the README's answers are what the rules of the house say
(see house.py).
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

FILES = house.python_files(ROOT)
INDOORS = [name for name in FILES if not name.startswith(house.YARD)]
MODULES = {"train.py": train, "analyze.py": analyze, "evaluate_lds.py": evaluate_lds}
MODULES["run_counterfactual.py"] = run_counterfactual

LONG: dict[str, str] = {}  # `file` or `file: function` -> why it may be longer than others
UNDOCUMENTED: dict[str, str] = {}  # `file: name` -> why it needs no docstring
ANSWERS = {  # what a reader asks first -> where the README sends them
    "sign": ("pipeline.py", "InfluenceTask.compute_measurement"),
    "damping": ("attribution/engine/modules.py", "EigenLinear.prepare_storage"),
    "mask": ("attribution/evidence/ground_truth.py", "draw_masks"),
    "keyed": ("attribution/evidence/store.py", "Job.key"),
    "add a task": ("pipeline.py", "TASKS"),
}


# --- floors ---------------------------------------------------------------------------------------


def test_a_file_imports_only_from_floors_below_or_its_own_wing_and_no_script_imports_another():
    assert set(house.SCRIPTS) == set(MODULES) <= set(INDOORS) and len(INDOORS) > 30
    assert house.floor_violations(ROOT, INDOORS) == []


def test_every_name_that_a_file_takes_from_another_exists_there_in_tests_and_benchmarks_too():
    assert house.missing_names(ROOT, FILES) == []


SOUND = {  # a small house in order: file -> content
    "attribution/__init__.py": "",
    "attribution/data/demo.py": "",
    "attribution/files.py": "import os\n",
    "attribution/data/dataset.py": "from . import files\n",
    "pipeline.py": "import attribution\nfrom attribution.files import x\n",
    "attribution/training/fit.py": "from pipeline import y\nfrom .run import z\n",
    "attribution/training/run.py": "z = 1\n",
    "attribution/influence/names.py": "from attribution.training import fit\n",
    "attribution/evidence/lds.py": "import attribution.training.run as run\n",
    "attribution/show/tables.py": "from attribution.evidence import lds\nimport numpy.tests\nfrom os import path\n",
    "train.py": "from attribution.show.tables import t\nimport evaluate\n",
    "analyze.py": "from attribution import demo\n",
    "lab/speed.py": "import train\n",
    "lab/pretrain_demo.py": "import analyze\n",
    "tests/test_train.py": "import train, lab.speed\n",
}
UP = "a file imports only from floors below its own, or from its own wing"
BESIDE = "wings side by side do not import each other"
SCRIPT = "no script imports another script"
YARD = "nothing imports benchmarks/, demo/, tests/"
VIOLATIONS = [  # file, content, imported file, rule
    ("attribution/files.py", "import pipeline", "pipeline.py", UP),
    (
        "attribution/data/dataset.py",
        "def f():\n    from .training import fit",
        "attribution/training/fit.py",
        UP,
    ),
    ("pipeline.py", "from attribution.training.fit import fit", "attribution/training/fit.py", UP),
    ("pipeline.py", "if True:\n    import attribution.show", "attribution/show/", UP),
    ("attribution/training/fit.py", "class A:\n    import train as t", "train.py", UP),
    ("attribution/evidence/lds.py", "from ..show import tables", "attribution/show/tables.py", UP),
    (
        "attribution/influence/names.py",
        "import attribution.evidence.lds",
        "attribution/evidence/lds.py",
        BESIDE,
    ),
    (
        "attribution/evidence/lds.py",
        "from ..influence.names import a",
        "attribution/influence/names.py",
        BESIDE,
    ),
    ("train.py", "def f():\n    from analyze import main", "analyze.py", SCRIPT),
    ("train.py", "import numpy, lab.speed", "lab/speed.py", YARD),
    ("attribution/data/demo.py", "from lab.pretrain_demo import x", "lab/pretrain_demo.py", YARD),
    ("pipeline.py", "from tests import test_train", "tests/test_train.py", YARD),
]


def build(folder, files: dict[str, str]) -> list[str]:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return house.python_files(folder)


def test_a_sound_house_has_no_violation(tmp_path):
    files = build(tmp_path, SOUND)
    assert sorted(SOUND) == files and house.floor_violations(tmp_path, files) == []


@pytest.mark.parametrize(("file", "content", "imported", "rule"), VIOLATIONS)
def test_a_violation_is_named_with_both_files_and_the_rule(tmp_path, file, content, imported, rule):
    files = build(tmp_path, SOUND | {file: content})
    (sentence,) = house.floor_violations(tmp_path, files)
    assert sentence == f"{file}, line {content.count(chr(10)) + 1}, imports {imported}: {rule}"


def test_a_file_without_a_place_and_an_import_of_one_are_violations(tmp_path):
    files = build(
        tmp_path, SOUND | {"helpers.py": "", "attribution/new.py": "", "train.py": "import helpers"}
    )
    assert house.floor_violations(tmp_path, files) == [
        "attribution/new.py stands on no floor: give it a place in FLOORS",
        "helpers.py stands on no floor: give it a place in FLOORS",
        "train.py, line 1, imports helpers.py: what is imported must stand on a floor",
    ]


def test_a_name_that_is_missing_where_it_is_taken_from_is_found(tmp_path):
    files = build(
        tmp_path,
        {
            "attribution/__init__.py": "",
            "attribution/a.py": "import os\nb: int = 1\nif b:\n    c, d = 1, 2\ndef e(): f = 1\n",
            "one.py": "from attribution import a as x\nfrom attribution.a import b, c, d, e, os\nx.b, "
            "x.e, x.__file__\n",
            "two.py": "from attribution.a import f\nfrom attribution import none\nimport "
            "attribution\nattribution.a\n",
            "three.py": "import one\ndef g(one): one.gone\ndef h():\n    one = 1\n    one.gone\ndef i(): "
            "return one.lost\n",
        },
    )
    assert house.missing_names(tmp_path, files) == [
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


# --- sizes and docstrings -------------------------------------------------------------------------


def test_no_file_is_longer_than_300_lines_and_no_function_longer_than_40():
    found = house.too_long(ROOT, FILES)
    assert {what.rsplit(" (", 1)[0] for what in found} == set(LONG), found


@pytest.mark.parametrize("name", house.SCRIPTS)
def test_a_script_is_shorter_than_200_lines(name):
    assert house.too_long(ROOT, [name], file_lines=199) == []


def test_lines_of_a_function_count_from_its_def_to_its_last_line(tmp_path):
    build(
        tmp_path,
        {
            "a.py": "class A:\n    @x\n    def f(self):\n        '''1\n        2'''\n\n        return "
            "1\n"
        },
    )
    assert house.too_long(tmp_path, ["a.py"], 6, 4) == ["a.py (7 lines)", "a.py: f (5 lines)"]
    assert house.too_long(tmp_path, ["a.py"], 7, 5) == []


def overrides(file: str, owner: str, method: str) -> bool:
    module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    return any(hasattr(base, method) for base in getattr(module, owner).__mro__[1:])


def test_every_public_function_class_and_method_has_a_docstring_unless_it_overrides_a_documented_one():
    found = house.undocumented(ROOT, INDOORS, overrides)
    assert set(found) == set(UNDOCUMENTED), found


def test_what_has_no_docstring_is_found(tmp_path):
    methods = "    def b(self): pass\n    def __len__(self): pass\n    def c(self): 'C.'\n"
    build(tmp_path, {"a.py": f"def f(): pass\ndef _g(): pass\nclass A:\n    'A.'\n{methods}"})
    assert house.undocumented(tmp_path, ["a.py"]) == ["a.py", "a.py: f", "a.py: A.b"]


# --- arguments and the README ---------------------------------------------------------------------


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
    assert [action.dest for action in (*positional._group_actions, *options._group_actions)] == [
        "help"
    ]
    assert len(named) > 1 and len({group.title for group in named}) == len(named)
    page = parser.format_help()
    for group in named:
        assert group.title and f"\n{group.title}:\n" in page and group._group_actions
        for action in group._group_actions:
            assert action.help and action.help != argparse.SUPPRESS, action.dest
            assert action.option_strings[0] in page
    assert [action.dest for group in named for action in group._group_actions] == [
        a.dest for a in parser._actions[1:]
    ]


def readme_tree() -> dict[str, str]:
    """File -> what the README's tree says of it. A line names one or two files, of the folder last
    named above it.
    """
    (tree,) = re.findall(r"```\n(pipeline\.py .*?)```", (ROOT / "README.md").read_text(), re.S)
    said, folder = {}, ""
    for line in tree.splitlines():
        folder = line if re.fullmatch(r"[\w/]+/", line) else folder
        for name, text in re.findall(r"(\w+\.py)  +(.+?)(?=  +\w+\.py  |$)", line):
            said[folder + name] = text.strip()
    return said


def test_the_readmes_tree_names_every_file_of_the_house_and_no_other():
    assert set(readme_tree()) == {name for name in INDOORS if not name.endswith("__init__.py")}


def test_the_names_in_the_readmes_tree_are_defined_in_their_files_and_answer_what_is_asked_first():
    said = {
        (file, name): text
        for file, line in readme_tree().items()
        for name, text in re.findall(r"(?:^|; )([A-Za-z_][\w.]*): ([^;]+)", line)
    }
    assert [pair for pair in said if not house.defines(ROOT, *pair)] == []
    for question, pair in ANSWERS.items():
        assert question in said[pair], (question, pair)


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "lab/README.md", "results/README.md"]
)
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
