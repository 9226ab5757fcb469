"""Members differ in the seed only; their mean is stored as a score of its own, and the studies read it as any other."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import analyze
import evaluate_lds
import run_counterfactual
import train
from attribution.files import run_script
from attribution.influence.names import flags_of, members_in
from attribution.training.members import share_of_process

SMALL = ["--dataset_name", "demo", "--max_train_samples", "120", "--num_train_epochs", "2"]
QUICK = ["--dataset_name", "demo", "--max_queries", "12", "--factor_strategy", "identity"]


@pytest.fixture(scope="module")
def scored(trained, tmp_path_factory):
    """A run of three members with stored scores; tests copy it (see `copied`)."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("members") / "checkpoints")
    before = (folder / "demo/run.json").read_bytes()
    train.main([*SMALL, "--checkpoint_dir", str(folder), "--num_members", "3"])
    assert (folder / "demo/run.json").read_bytes() == before  # the first was there and is kept
    analyze.main([*QUICK, "--checkpoint_dir", str(folder), "--num_members", "3"])
    return folder


def scores_of(folder, name: str) -> torch.Tensor:
    return load_file(folder / f"influence/scores/{name}/pairwise_scores.safetensors")["all_modules"].clone()


def refused(capsys, main, *argv: str) -> str:
    capsys.readouterr()
    assert run_script(main, list(argv)) == 2
    return capsys.readouterr().err


def test_the_stored_mean_is_the_mean_over_members(copied):
    run = copied / "demo"
    folders = [run, run / "members/seed1", run / "members/seed2"]
    each = [scores_of(folder, "identity") for folder in folders]
    assert not torch.equal(each[0], each[1])
    assert torch.allclose(scores_of(run, "identity_members3"), torch.stack(each).double().mean(0).float())
    seeds = [json.loads((folder / "run.json").read_text())["seed"] for folder in folders]
    assert seeds == [0, 1, 2]


def test_members_that_are_there_are_kept_and_missing_ones_trained(copied, capsys):
    shutil.rmtree(copied / "demo/members/seed2")
    first = (copied / "demo/members/seed1/run.json").stat().st_mtime_ns
    train.main([*SMALL, "--checkpoint_dir", str(copied), "--num_members", "3"])
    assert (copied / "demo/members/seed1/run.json").stat().st_mtime_ns == first
    assert (copied / "demo/members/seed2/run.json").exists()


def test_a_row_says_in_how_many_members_it_is_among_the_top(copied, capsys):
    asked = [*QUICK, "--checkpoint_dir", str(copied), "--num_members", "3", "--query_index", "2"]
    analyze.main([*asked, "--format", "json"])
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    run = copied / "demo"
    each = [scores_of(folder, "identity")[2] for folder in (run, run / "members/seed1", run / "members/seed2")]
    for row in answer["helpful"]:
        assert row["agreement"] == sum(row["row"] in scores.topk(5).indices for scores in each)
    analyze.main(asked)
    assert f"{answer['helpful'][0]['agreement']}/3 row" in capsys.readouterr().out


def test_own_queries_and_self_influence_have_members_too(copied):
    three = [*QUICK, "--checkpoint_dir", str(copied), "--num_members", "3"]
    analyze.main([*three, "--query_text", "A fine soup.", "--query_label", "positive"])
    (own,) = (copied / "demo/influence/scores").glob("identity_members3_queries-*")
    assert load_file(own / "pairwise_scores.safetensors")["all_modules"].shape == (1, 120)
    analyze.main([*three, "--self_influence"])
    assert (copied / "demo/influence/scores/identity_members3/self_scores.safetensors").exists()


def test_the_studies_read_members_and_name_or_refuse_their_seeds(copied, tmp_path, capsys):
    where = ["--dataset_name", "demo", "--checkpoint_dir", str(copied), "--max_queries", "12", "--jobs_per_device", "1"]
    output = ["--results_dir", str(tmp_path), "--figure_path", str(tmp_path / "f.png")]
    subsets = ["--num_masks", "3", "--num_repeats", "1", "--num_bootstrap", "9"]
    evaluate_lds.main([*where, *output, *subsets, "--retrain_seed", "2"])
    result = json.loads((tmp_path / "lds_demo.json").read_text())
    assert "identity_members3" in result["scores"] and result["shared_seeds"] == [2]
    study = ["--strategies", "identity_members3", "--removals", "10", "--retrain_seed", "2", "--base_seed", "7"]
    assert "seed 2" in refused(capsys, run_counterfactual.main, *where, *output, *study)


def test_members_of_another_recipe_or_none_are_refused(copied, capsys):
    three = [*QUICK, "--checkpoint_dir", str(copied), "--num_members", "3"]
    path = copied / "demo/members/seed2/run.json"
    run = json.loads(path.read_text())
    path.write_text(json.dumps(run | {"recipe": run["recipe"] | {"learning_rate": 1.0}}))
    assert "another recipe" in refused(capsys, analyze.main, *three)
    path.unlink()
    assert "--num_members 3" in refused(capsys, analyze.main, *three)
    evaluate = ["--dataset_name", "demo", "--checkpoint_dir", str(copied), "--max_queries", "12", "--dry_run"]
    assert run_script(evaluate_lds.main, evaluate) == 0


def test_names_say_how_many_members_and_a_launcher_shares_them_out(monkeypatch):
    assert flags_of("ekfac_members5_damping0.1") == "--factor_strategy ekfac --num_members 5 --damping_factor 0.1"
    assert members_in("ekfac_damping0.1_members5") == 5 and members_in("ekfac") == 1
    shares = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank)), monkeypatch.setenv("WORLD_SIZE", "2")
        shares.append(share_of_process(range(5)))
    assert np.array_equal(sorted(sum(shares, [])), range(5)) and shares[0] == [0, 2, 4]
