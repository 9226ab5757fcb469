"""Each argument of a command line has an effect, or is refused in one sentence that names it."""

import pytest

import analyze
import evaluate_lds
import run_counterfactual
from attribution.files import Refused

REFUSED = {
    analyze: {
        "self_influence": (
            "--report --self_influence",
            "--query_index 1 --self_influence",
            "--query_text a --self_influence",
            "--query_path q.csv --self_influence",
        ),
        "label_issues": (
            "--report --label_issues",
            "--query_index 1 --label_issues",
            "--query_text a --label_issues loss",
            "--label_issues --query_path q.csv",
            "--label_issues loss --factor_strategy kfac",
            "--label_issues replay --factor_strategy kfac",
            "--label_issues self_influence --factor_strategy replay",
            "--label_issues --overwrite",
            "--label_issues --self_influence",
        ),
        "words": ("--report --words", "--label_issues --words"),
        "top_k": ("--label_issues --format csv --top_k 3",),
        "query_group": (
            "--query_group wrong --query_index 1",
            "--query_text a --query_group all",
            "--report --query_group all",
            "--query_group all --overwrite",
            "--query_group all --self_influence",
        ),
        "particular": (
            "--particular",
            "--query_text a --particular",
            "--query_path q.csv --particular",
            "--self_influence --particular",
            "--report --particular",
            "--report --query_index 1 --particular",
            "--query_index 1 --particular --factor_strategy replay",
        ),
        "raw": (
            "--report --raw",
            "--query_index 1 --raw --format json",
            "--query_text a --raw --format csv",
            "--self_influence --raw",
        ),
        "format": ("--report --format json", "--format csv --report --query_index 1"),
        "query_label": ("--query_label 1", "--query_path q.csv --query_label 1"),
        "query_text": ("--query_text a --query_index 1", "--report --query_text a"),
        "query_path": ("--query_text a --query_path q.csv", "--query_path - --report page.html"),
        "overwrite": ("--query_index 1 --overwrite", "--overwrite --report"),
        "profile": ("--query_index 1 --profile", "--report --profile"),
        "forget_queries": (
            "--forget_queries --query_text a",
            "--forget_queries --query_path q.csv",
            "--forget_queries --query_index 1",
            "--forget_queries --query_label 1",
            "--forget_queries --query_group wrong",
            "--forget_queries --particular",
            "--forget_queries --raw",
            "--forget_queries --report",
            "--forget_queries --format json",
            "--forget_queries --top_k 3",
            "--forget_queries --self_influence",
            "--forget_queries --label_issues",
            "--forget_queries --factor_strategy kfac",
            "--forget_queries --max_queries 3",
        ),
    },
    evaluate_lds: {
        "plot_only": (
            "--plot_only --dry_run",
            "--plot_only --num_masks 4",
            "--plot_only --masks_path a.npy --margins_path b.npy",
            "--plot_only --max_queries 3",
            "--plot_only --no-freeze_embeddings",
            "--plot_only --results_dir r --checkpoint_dir c",
        ),
        "masks_path": tuple(
            f"--masks_path a.npy --margins_path b.npy {more}"
            for more in (
                "--num_masks 4",
                "--num_repeats 2",
                "--alpha 0.5",
                "--mask_seed 1",
                "--retrain_seed 200",
                "--jobs_per_device 1",
                "--retrain_queries 9",
                "--dry_run",
            )
        ),
        "margins_path": ("--masks_path a.npy", "--margins_path b.npy"),
    },
    run_counterfactual: {
        "plot_only": (
            "--plot_only --targets 1",
            "--plot_only --dry_run",
            "--plot_only --strategies ekfac",
            "--plot_only --learning_rate 1",
            "--plot_only --results_dir r --checkpoint_dir c",
        ),
        "targets": tuple(
            f"--targets 1 {more}"
            for more in (
                "--query_text a",
                "--num_targets 3",
                "--max_targets 3",
                "--no_carry_forward",
                "--num_base_seeds 2",
                "--base_seed 7",
                "--results_dir r",
                "--figure_path f.png",
                "--strategies ekfac identity",
            )
        ),
        "query_text": (
            "--query_text a --retrain_queries 9",
            "--query_text a --results_dir r",
            "--query_text a --num_base_seeds 1",
            "--query_text a --strategies ekfac identity",
            "--query_label 1",
        ),
        "random": (
            "--strategies ekfac --num_random_draws 2",
            "--strategies ekfac tfidf --random_seed 3",
        ),
    },
}
HONOURED = {
    analyze: (
        "--self_influence --top_k 3 --overwrite --profile",
        "--label_issues --format csv --num_members 2",
        "--label_issues replay --factor_strategy replay --top_k 3 --overwrite",
        "--label_issues self_influence --factor_strategy kfac --format json",
        "--query_index 1 2 --raw --format table --top_k 3",
        "--query_index 1 --particular --format csv",
        "--query_group wrong --particular --format json --top_k 3",
        "--query_group positive --raw",
        "--query_text a --raw",
        "--raw --top_k 2",
        "--query_text a --query_label 1 --format json --top_k 3 --profile",
        "--query_path - --format table --profile",
        "--report --query_index 1 --top_k 3",
        "--report page.html --factor_strategy kfac",
        "--forget_queries --checkpoint_dir c",
    ),
    evaluate_lds: (
        "--plot_only --results_dir r --figure_path f.png",
        "--plot_only --checkpoint_dir c",
        "--num_masks 4 --alpha 0.3 --learning_rate 1 --first_query 3",
        "--masks_path a.npy --margins_path b.npy --num_bootstrap 9 --results_dir r",
        "--dry_run --num_masks 4 --results_dir r --jobs_per_device 1 --num_bootstrap 9",
    ),
    run_counterfactual: (
        "--plot_only --direction harmful --results_dir r",
        "--plot_only --checkpoint_dir c --figure_path f.png",
        "--targets 1 --num_random_draws 3 --random_seed 2 --removals 3 --dry_run",
        "--targets 1 --retrain_seed 3",
        "--targets 1 --num_retrain_seeds 2",
        "--query_text a --query_label 1 --strategies kfac --num_retrain_seeds 6",
        "--strategies ekfac random --num_random_draws 3 --dry_run --results_dir r",
    ),
}


def parse(script, line: str):
    return script.parse_args(["--dataset_name", "demo", *line.split()])


@pytest.mark.parametrize(
    ("script", "flag", "line"),
    [
        (script, flag, line)
        for script, flags in REFUSED.items()
        for flag, lines in flags.items()
        for line in lines
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_an_argument_that_would_be_ignored_is_refused_by_its_name(script, flag, line):
    with pytest.raises(Refused, match=flag):
        parse(script, line)


@pytest.mark.parametrize(
    ("script", "line"),
    [(script, line) for script, lines in HONOURED.items() for line in lines],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_arguments_that_have_an_effect_together_are_taken(script, line):
    parse(script, line)
