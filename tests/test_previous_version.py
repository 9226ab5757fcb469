"""What the previous version stored is found and counts: names, keys and fingerprints are literals
that it wrote.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import analyze
from attribution.draws import uniform_hash
from attribution.evidence.ground_truth import Subsets, draw_masks
from attribution.evidence.retrainer import Retrainer
from attribution.evidence.store import Job
from attribution.files import checksums, fingerprint_of_tensors
from attribution.influence.analysis import Influence
from attribution.influence.settings import Settings
from attribution.training.fit import epoch_order
from attribution.training.recipe import recipe_of
from pipeline import get_glue_dataset

RUN = {"weights": "W", "train_rows": "T"}
FACTORS = {
    "weights": "W",
    "training rows": "T",
    "strategy": "ekfac",
    "precision": "float32",
    "covariance type": "float64",
    "path": "eigenbasis",
    "seed": 0,
}
SCORES = FACTORS | {"damping": "1e-08", "query rows": "Q", "rank": None, "rank seed": None}
# of the demo's first 120 rows
TRAIN = "f4166aaa07bdeca0e8e9be0facda7167b032e1f1c85181023062728d6deb61a2"
# of its first 9 validation rows
QUERY = "1f8ce8a15f48069317799b59305a34c4a7249e242a26f86fb6b1fe6c8129da8e"
RETRAINS = {
    "start": "ce6449712b924e754e28066a7549fc41a5ba85384466190e44e528428559e8d6",
    "shape": {"layers": 2, "labels": 2},
    "recipe": {
        "learning_rate": 0.0003,
        "weight_decay": 0.01,
        "num_train_epochs": 8,
        "train_batch_size": 32,
        "lr_schedule": "constant",
        "max_grad_norm": 0.0,
        "freeze_embeddings": True,
        "use_half_precision": False,
    },
    "training rows": TRAIN,
    "query rows": QUERY,
    "device": "cpu, one thread",
}


def influence_of(folder: Path, *flags: str) -> Influence:
    settings = analyze.settings_of(analyze.parse_args(["--dataset_name", "demo", *flags]))
    queries = SimpleNamespace(fingerprint=lambda: "Q")
    return Influence(folder, RUN, range(100), queries, settings)


@pytest.mark.parametrize(
    ("flags", "factors", "scores", "changed"),
    [
        ([], "ekfac", "ekfac", {}),
        (
            [
                "--use_half_precision",
                "--query_gradient_rank",
                "8",
                "--damping_factor",
                "heuristic",
                "--seed",
                "3",
            ],
            "ekfac_half",
            "ekfac_half_rank8_dampingheuristic",
            {
                "precision": "bfloat16 gradients",
                "seed": 3,
                "damping": "None",
                "rank": 8,
                "rank seed": 3,
            },
        ),
        (
            [
                "--stock",
                "--tf32",
                "--use_half_precision",
                "--factor_strategy",
                "kfac",
                "--damping_factor",
                "0.01",
            ],
            "kfac_half_stock",
            "kfac_half_stock_damping0.01",
            {
                "strategy": "kfac",
                "precision": "bfloat16 and tf32",
                "covariance type": None,
                "path": "stock",
                "damping": "0.01",
            },
        ),
        (
            ["--factor_strategy", "identity"],
            "identity",
            "identity",
            {"strategy": "identity", "covariance type": None, "seed": None, "damping": None},
        ),
        (
            ["--factor_strategy", "diagonal"],
            "diagonal",
            "diagonal",
            {"strategy": "diagonal", "covariance type": None},
        ),
    ],
)
def test_factors_and_scores_have_the_names_and_fingerprints_that_they_had(
    flags, factors, scores, changed
):
    influence = influence_of(Path("F"), *flags)
    assert (influence.settings.factors, influence.settings.scores) == (factors, scores)
    assert influence.result == Path("F/influence/scores") / scores
    expected = SCORES | changed
    if expected["rank"] is not None and not influence.settings.stock:
        drawn = "by seed and module, outside of the eigenbasis"
        assert (
            influence.score_parts.pop("rank draws") == drawn
        )  # new: low-rank scores are made again
    assert influence.score_parts == expected
    assert influence.self_parts == {name: expected[name] for name in [*FACTORS, "damping"]}
    assert influence.factor_parts == {name: expected[name] for name in FACTORS}


def test_the_settings_of_a_bare_command_are_the_defaults_of_settings():
    assert analyze.settings_of(analyze.parse_args(["--dataset_name", "demo"])) == Settings()


@pytest.mark.parametrize("kind", ["pairwise", "self"])
def test_stored_scores_are_read(tmp_path, kind):
    scores, folder = torch.arange(6.0).view(2, 3), tmp_path / "influence/scores/ekfac"
    folder.mkdir(parents=True)
    save_file({"all_modules": scores}, folder / f"{kind}_scores.safetensors")
    parts = SCORES if kind == "pairwise" else FACTORS | {"damping": "1e-08"}
    record = {
        "fingerprint": parts,
        "files": checksums(folder.iterdir()),
        "shape": [2, 3],
        "seconds": {},
    }
    (folder / f"{kind}_scores.json").write_text(json.dumps(record))
    assert torch.equal(influence_of(tmp_path).stored(kind), scores)


def test_tokens_and_weights_have_the_fingerprints_that_they_had():
    assert get_glue_dataset("demo", "train", max_samples=120).fingerprint() == TRAIN
    assert get_glue_dataset("demo", "valid", max_samples=9).fingerprint() == QUERY
    tensors = {"a": torch.arange(3.0)}
    assert (
        fingerprint_of_tensors(tensors)
        == "f5bb130e254bba1f2086de3ab4dbc2f5b4379356dc39a0dc13fc92adbc36efbf"
    )


def test_retrains_have_the_parts_that_they_had_but_for_queries_and_what_is_stored():
    """Files of before hold margins only: they are counted, kept and not read (see
    `store.earlier_retrains`).
    """
    sets = (
        get_glue_dataset("demo", "train", max_samples=120),
        get_glue_dataset("demo", "valid", max_samples=9),
    )
    run = {"dataset_name": "demo", "model_name_or_path": None, "num_hidden_layers": None}
    recipe = recipe_of(dict.fromkeys(RETRAINS["recipe"]), "demo")
    fingerprint = Retrainer(run, None, *sets, recipe, torch.device("cpu")).fingerprint()
    assert fingerprint.pop("results") == "margins and correctness"
    assert fingerprint | {"query rows": QUERY} == RETRAINS
    assert Job.of(np.arange(3), 7).key == "18f10e495ee675210ef739e63b64f8c8"
    assert Job.of(np.array([0, 2, 5]), 100).key == "7565f4ad80b07affe945e799895b7122"


def test_a_run_without_layers_in_its_record_is_the_whole_model():
    sets = [get_glue_dataset("demo", "valid", max_samples=2)] * 2
    run = {"dataset_name": "demo", "model_name_or_path": None}
    retrain = Retrainer(run, None, *sets, RETRAINS["recipe"], torch.device("cpu"))
    assert retrain.fingerprint()["shape"] == RETRAINS["shape"]


def test_the_record_of_a_run_has_what_it_had(trained):
    assert set(json.loads((trained / "demo/run.json").read_text())) >= {
        "commit",
        "dataset_name",
        "dataset_path",
        "device",
        "epochs",
        "evaluation",
        "files",
        "max_length",
        "max_train_samples",
        "model_name_or_path",
        "num_hidden_layers",
        "num_labels",
        "recipe",
        "seed",
        "train_rows",
        "versions",
        "weights",
    }


def test_orders_and_masks_are_the_functions_of_seeds_that_they_were():
    assert uniform_hash(0, "lambda", np.arange(3)).tolist() == [
        0.29886502341595095,
        0.19434770670347673,
        0.19265201087872125,
    ]
    assert epoch_order(np.arange(10), 5, 1).tolist() == [7, 1, 9, 4, 8, 0, 5, 6, 3, 2]
    kept = [np.flatnonzero(mask).tolist() for mask in draw_masks(10, 3, 0.5, 0)]
    assert kept == [[2, 3, 4, 6, 7], [1, 3, 7, 8, 9], [0, 1, 2, 5, 8]]
    kept = [np.flatnonzero(mask).tolist() for mask in draw_masks(10, 2, 0.5, 0, np.arange(10) % 2)]
    assert kept == [[3, 4, 8, 9], [2, 3, 7, 8]]
    assert Subsets(100, 5, 0.5, 0, False, 100).name == "lds_100x5_alpha0.5_seed0_retrain100"
    assert Subsets(20, 2, 0.25, 3, True, 7).name == "lds_20x2_alpha0.25_stratified_seed3_retrain7"
