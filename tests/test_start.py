"""A script imports no more than its answer takes: nobody waits for torch to read a help text."""

import json
import subprocess
import sys

import pytest
from running import DEMO, QUICK, ROOT, analyze_quickly

SLOW = (
    "torch",
    "torchvision",
    "transformers",
    "datasets",
    "kronfluence",
    "evaluate",
    "scipy",
    "sklearn",
    "matplotlib",
)
# Script -> what it imports to answer by more than a refusal, before its first line of output.
NEEDED = {
    "train": {"torch", "transformers", "datasets"},
    "analyze": {"torch", "transformers", "datasets", "kronfluence"},
    "evaluate_lds": {
        "torch",
        "transformers",
        "datasets",
        "scipy",
        "sklearn",
        "kronfluence",
        "matplotlib",
    },
}
NEEDED["run_counterfactual"] = NEEDED["evaluate_lds"]


def started(script: str, *lines: list[str]) -> tuple[set[str], str]:
    """(slow libraries that a process has imported after these command lines, their output)."""
    code = (
        "import importlib, json, sys\n"
        "from attribution.cli import run_script\n"
        f"main = importlib.import_module({script!r}).main\n"
        f"for line in {[*lines]!r}:\n"
        "    try:\n"
        "        run_script(main, line)\n"
        "    except SystemExit:\n"
        "        pass\n"
        f"print(json.dumps([name for name in {SLOW!r} if name in sys.modules]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    output, _, found = done.stdout.rstrip().rpartition("\n")
    return set(json.loads(found)), output + done.stderr


@pytest.mark.parametrize("script", NEEDED)
def test_help_and_refusals_import_no_slow_library(script, tmp_path):
    nowhere = [*DEMO, "--checkpoint_dir", str(tmp_path)]
    lines = [["--help"], ["--help_all"], ["--dataset_nme", "x"], ["--dataset_name", "demo", "--x"]]
    refused = {
        "train": ["--dataset_name", "mine"],
        "analyze": nowhere,
        "evaluate_lds": nowhere,
        "run_counterfactual": nowhere,
    }
    found, output = started(script, *lines, refused[script])
    assert found == set() and output.count("error: ") == 3
    assert "did you mean '--dataset_name'" in output


@pytest.mark.parametrize("script", NEEDED)
def test_a_script_imports_only_the_libraries_of_its_list(script):
    code = (
        f"import sys, attribution.commands.{script}\n"
        f"print(*[name for name in {SLOW!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == NEEDED[script]


def test_stored_scores_are_shown_without_a_slow_library_data_set_or_model(run_copy):
    analyze_quickly(run_copy)
    line = [*QUICK, "--checkpoint_dir", str(run_copy), "--query_index", "3"]
    forms = [[*line, "--format", form] for form in ("table", "json", "csv")]
    group = [*line[:-2], "--query_group", "all"]
    found, output = started("analyze", *forms, [*line, "--raw"], group)
    assert found == set()
    assert (
        output.count("query 3: ") == 2
        and '"query": 3' in output
        and "query,query_text,towards," in output
    )
    assert "9 of 9 validation rows (all)" in output


def test_a_figure_is_drawn_again_with_matplotlib_alone(tmp_path):
    place = ["--results_dir", "results", "--figure_path", str(tmp_path / "again.png")]
    found, _ = started("evaluate_lds", [*DEMO, "--plot_only", *place])
    assert found == {"matplotlib"} and (tmp_path / "again.png").stat().st_size > 10_000
