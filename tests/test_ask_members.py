"""Members differ in seed, step or rows; their mean is stored as a score of its own, read by the
studies like others.
"""

import json
import shlex
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from running import LDS, close, outputs, tamper
from safetensors.torch import load_file

import analyze
import evaluate_lds
import run_counterfactual
import train
from attribution.cli import run_script
from attribution.evidence.ground_truth import draw_masks
from attribution.influence.stored import why_stale
from attribution.training.members import Members, draw_share, mean_of
from attribution.training.run import Run
from lab.wrong_labels import stored_self_influence

SMALL = ["--dataset_name", "demo", "--max_train_samples", "120", "--num_train_epochs", "2"]
QUICK = ["--dataset_name", "demo", "--max_queries", "12", "--factor_strategy", "identity"]
FEW = ["--num_masks", "3", "--num_repeats", "1", "--num_bootstrap", "9"]  # of evaluate_lds.py


@pytest.fixture(scope="module")
def scored(trained, tmp_path_factory):
    """A run of three members with stored scores; tests copy it (see `copied`)."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("members") / "checkpoints")
    before = (folder / "demo/run.json").read_bytes()
    train.main([*SMALL, "--checkpoint_dir", str(folder), "--num_members", "3"])
    assert (folder / "demo/run.json").read_bytes() == before  # the first was there and is kept
    analyze.main([*QUICK, "--checkpoint_dir", str(folder), "--num_members", "3"])
    return folder


def scores_of(folder, name: str, kind: str = "pairwise") -> torch.Tensor:
    return load_file(folder / f"influence/scores/{name}/{kind}_scores.safetensors")[
        "all_modules"
    ].clone()


def refused(capsys, main, *argv: str) -> str:
    capsys.readouterr()
    assert run_script(main, list(argv)) == 2
    return capsys.readouterr().err


def alike(each: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """The mean over members (K, Q, N) after each was divided by its mean self-influence, of own (K,
    N), times the mean of these.
    """
    divisors = own.double().mean(1)[:, None, None]
    return (each / divisors * divisors.mean()).mean(0).float()


def test_the_stored_mean_is_the_mean_over_members(copied):
    run = copied / "demo"
    folders = [run, run / "members/seed1", run / "members/seed2"]
    each = [scores_of(folder, "identity") for folder in folders]
    assert not torch.equal(each[0], each[1])
    own = torch.stack([scores_of(folder, "identity", "self") for folder in folders])
    assert torch.allclose(scores_of(run, "identity_members3"), alike(torch.stack(each), own))
    seeds = [json.loads((folder / "run.json").read_text())["seed"] for folder in folders]
    assert seeds == [0, 1, 2]


def test_each_member_counts_as_much_as_the_others_and_the_unit_stays():
    small = np.random.default_rng(0).standard_normal((3, 50)).astype(np.float32)
    found = mean_of([(small, 2.0), (100 * small[:, ::-1], 200.0)])
    assert np.allclose(found, 50.5 / 2 * (small + small[:, ::-1]), atol=1e-4)
    assert np.allclose(mean_of([(small, 7.0)]), small)
    assert not mean_of([(np.zeros((2, 3)), 0.0)] * 2).any()


def test_a_query_has_the_same_scores_whatever_else_is_asked(copied, tmp_path):
    """Alone or with others, as a validation row or as a custom query, in any window: self-influence
    too is stored once.
    """
    three = [*QUICK, "--checkpoint_dir", str(copied), "--num_members", "3"]
    run = copied / "demo"
    wanted = scores_of(run, "identity_members3")
    valid = Run.open(copied, "demo").rows(12)[1]
    names = valid.task.class_names
    for chosen in ([2], [5], [2, 5]):
        path = tmp_path / "questions.csv"
        lines = [f'"{valid.text(row)}",{names[int(valid.labels[row])]}\n' for row in chosen]
        path.write_text("sentence,label\n" + "".join(lines))
        analyze.main([*three, "--query_path", str(path)])
        (own,) = run.glob("influence/scores/identity_members3_queries-*")
        assert close(scores_of(run, own.name), wanted[chosen], 1e-5)
        shutil.rmtree(own)
    analyze.main([*three, "--first_query", "4", "--max_queries", "3"])
    assert close(scores_of(run, "identity_members3_from4"), wanted[4:7], 1e-5)
    analyze.main([*three, "--self_influence"])
    places = {path.parent.name for path in run.glob("influence/scores/*/self_scores.json")}
    assert places == {"identity", "identity_members3"}


def test_a_custom_query_is_forgotten_with_what_was_computed_beside_it(copied):
    """Self-influence, which the first question to members computes, stays and names no query."""
    shutil.rmtree(copied / "demo/influence")
    three = [*QUICK, "--checkpoint_dir", str(copied), "--num_members", "2"]
    analyze.main([*three, "--query_text", "A secret soup.", "--query_label", "positive"])
    analyze.main(["--dataset_name", "demo", "--checkpoint_dir", str(copied), "--forget_queries"])
    files = [path for path in (copied / "demo").rglob("*") if path.is_file()]
    assert any(path.name == "self_scores.json" for path in files)
    assert not any(b"secret" in path.read_bytes() for path in files)


def test_a_mean_that_was_taken_in_another_way_is_left_out_and_said(copied, tmp_path, capsys):
    path = copied / "demo/influence/scores/identity_members3/pairwise_scores.json"
    tamper(
        path,
        lambda made: (
            made | {"fingerprint": {k: v for k, v in made["fingerprint"].items() if k != "mean"}}
        ),
    )
    three = [*QUICK, "--checkpoint_dir", str(copied), "--num_members", "3"]
    assert "another mean" in refused(capsys, analyze.main, *three)
    result = LDS.run(copied, tmp_path, "--num_masks", "3", "--num_repeats", "1")
    assert "identity_members3" not in result["scores"] and "identity" in result["scores"]
    assert "--overwrite" in capsys.readouterr().err


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
    each = [
        scores_of(folder, "identity")[2]
        for folder in (run, run / "members/seed1", run / "members/seed2")
    ]
    for side in answer["sides"]:
        sign = 1 if side["direction"] == "helpful" else -1
        for row in side["rows"]:
            tops = [(sign * scores).topk(5).indices for scores in each]
            assert row["agreement"] == sum(row["row"] in top for top in tops)
    analyze.main([*asked, "--raw"])
    first = answer["sides"][0]["rows"][0]
    assert f"{first['agreement']} of 3 members" in capsys.readouterr().out


def test_own_queries_and_self_influence_have_members_too(copied):
    three = [*QUICK, "--checkpoint_dir", str(copied), "--num_members", "3"]
    analyze.main([*three, "--query_text", "A fine soup.", "--query_label", "positive"])
    (own,) = (copied / "demo/influence/scores").glob("identity_members3_queries-*")
    assert load_file(own / "pairwise_scores.safetensors")["all_modules"].shape == (1, 120)
    analyze.main([*three, "--self_influence"])
    path = copied / "demo/influence/scores/identity_members3/self_scores.json"
    run = Run.open(copied, "demo")
    assert "identity_members3" in stored_self_influence(run)
    for place in (own / "pairwise_scores.json", path):
        made = json.loads(place.read_text())["fingerprint"]
        rows = made.get("query rows")
        assert why_stale(place, run, rows) is None
        other = {part: value for part, value in made.items() if part != "mean"}
        tamper(place, lambda record, other=other: record | {"fingerprint": other})
        assert "another way" in why_stale(place, run, rows)
    assert "identity_members3" not in stored_self_influence(run)


def test_the_studies_read_members_and_name_or_refuse_their_seeds(copied, tmp_path, capsys):
    where = [
        "--dataset_name",
        "demo",
        "--checkpoint_dir",
        str(copied),
        "--max_queries",
        "12",
        "--jobs_per_device",
        "1",
    ]
    output = ["--results_dir", str(tmp_path), "--figure_path", str(tmp_path / "f.png")]
    subsets = ["--num_masks", "3", "--num_repeats", "1", "--num_bootstrap", "9"]
    evaluate_lds.main([*where, *output, *subsets, "--retrain_seed", "2"])
    result = json.loads((tmp_path / "lds_demo.json").read_text())
    assert "identity_members3" in result["scores"] and result["shared_seeds"] == [2]
    study = [
        "--strategies",
        "identity_members3",
        "--removals",
        "10",
        "--retrain_seed",
        "2",
        "--base_seed",
        "7",
    ]
    assert "seed 2" in refused(capsys, run_counterfactual.main, *where, *output, *study)


MIXED = ["--num_members", "2", "--member_steps", "3", "--member_share", "0.5"]


@pytest.fixture(scope="module")
def mixed(trained, tmp_path_factory):
    """A run with two trainings on halves of its rows, with three checkpoints each, all scored."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("mixed") / "checkpoints")
    train.main([*SMALL, "--checkpoint_dir", str(folder), *MIXED])
    analyze.main([*QUICK, "--checkpoint_dir", str(folder), *MIXED])
    return folder


def test_members_differ_in_seed_step_and_rows_and_the_mean_is_over_all_of_them(mixed):
    run = mixed / "demo"
    places = [
        run / f"members/share0.5_seed{seed}{step}"
        for seed in (0, 1)
        for step in ("/steps/1", "/steps/3", "")
    ]
    each = torch.stack([scores_of(place, "identity") for place in places])
    assert len({tuple(scores[0, :3].tolist()) for scores in each}) == 6
    stored = scores_of(run, "identity_members2_steps3_share0.5")
    own = torch.stack([scores_of(place, "identity", "self") for place in places])
    assert torch.allclose(stored, alike(each, own))
    records = [json.loads((place / "run.json").read_text()) for place in places]
    assert [one.get("step") for one in records] == [1, 3, None] * 2 and {
        one["steps"] for one in records
    } == {4}
    assert {one["share"] for one in records} == {0.5} and json.loads(
        (run / "run.json").read_text()
    )["steps"] == 8


def test_a_checkpoint_on_the_way_is_what_training_would_leave_there_and_its_end_is_the_run(
    copied, trained
):
    """Steps 4 and 8 of two epochs of 4 steps: the first epoch, and the run, bit for bit."""
    shutil.rmtree(copied / "demo/members")
    before = (copied / "demo/model.safetensors").read_bytes()
    train.main([*SMALL, "--checkpoint_dir", str(copied), "--member_steps", "2"])
    assert (copied / "demo/model.safetensors").read_bytes() == before
    once = ["--dataset_name", "demo", "--max_train_samples", "120", "--num_train_epochs", "1"]
    train.main([*once, "--checkpoint_dir", str(copied / "once")])
    kept = load_file(copied / "demo/steps/4/model.safetensors")
    for name, value in load_file(copied / "once/demo/model.safetensors").items():
        assert torch.equal(value, kept[name]), name


def test_steps_count_with_the_end_of_their_own_training_only(copied, tmp_path, capsys):
    """Checkpoints on the way of another seed are removed by a training, and refused if they come
    back; those of the same training stay.
    """
    where = ["--checkpoint_dir", str(copied)]
    steps = copied / "demo/steps"
    two = [*QUICK, *where, "--member_steps", "2"]
    train.main([*SMALL, *where, "--member_steps", "2"])
    analyze.main(two)
    train.main([*SMALL, *where])  # the same training again: nothing is trained
    assert capsys.readouterr().out.count("is there and is kept") == 1
    train.main([*SMALL, *where, "--member_steps", "4"])
    assert sorted(place.name for place in steps.iterdir()) == ["2", "4", "6"]
    analyze.main(two)
    before = shutil.copytree(steps, tmp_path / "steps")
    train.main([*SMALL, *where, "--seed", "1", "--overwrite"])
    assert not any(steps.iterdir())
    error = refused(capsys, analyze.main, *two)
    command = f"python train.py --dataset_name demo --checkpoint_dir {copied} --member_steps 2"
    assert "is missing" in error and command in error
    shutil.copytree(before, steps, dirs_exist_ok=True)
    assert "trained with seed 0, not 1" in refused(capsys, analyze.main, *two)
    train.main([*SMALL, *where, "--seed", "1", "--member_steps", "2"])
    assert [place.name for place in steps.iterdir()] == ["4"]
    tamper(steps / "4/run.json", lambda run: run | {"weights": "others"})
    assert "of another training" in refused(capsys, analyze.main, *two)


def test_a_member_of_another_seed_than_its_place_says_is_refused(copied, capsys):
    tamper(copied / "demo/members/seed2/run.json", lambda run: run | {"seed": 7})
    three = [*QUICK, "--checkpoint_dir", str(copied), "--num_members", "3"]
    assert "trained with seed 7, not 2" in refused(capsys, analyze.main, *three)


def test_more_checkpoints_than_a_training_has_steps_are_refused_before_it(copied, capsys):
    """Two epochs of 4 steps; of 2 steps on half of the rows."""
    where = ["--checkpoint_dir", str(copied)]
    before = (copied / "demo/run.json").stat().st_mtime_ns
    for share, most in (("1", 8), ("0.5", 4)):
        more = ["--member_steps", str(most + 1), "--member_share", share]
        assert f"than the {most} steps" in refused(capsys, train.main, *SMALL, *where, *more)
        assert Members(1, most, float(share)).kept_steps(most) == list(range(1, most))
    assert (copied / "demo/run.json").stat().st_mtime_ns == before
    error = refused(capsys, analyze.main, *QUICK, *where, "--member_steps", "9")
    assert "than the 8 steps" in error
    assert not (copied / "demo/members/share0.5_seed0").exists()


def test_single_members_stand_beside_their_mean(copied, tmp_path, capsys):
    output = outputs(tmp_path, tmp_path / "f.png")
    small = [*FEW, "--max_queries", "12"]
    evaluate_lds.main(["--dataset_name", "demo", "--checkpoint_dir", str(copied), *output, *small])
    found = json.loads((tmp_path / "lds_demo.json").read_text())["scores"]
    each = found["identity_members3"]["plain"]["single"]
    assert len(each) == 3 and each[0] == found["identity"]["plain"]["lds"]
    assert "Single members of identity_members3: " in capsys.readouterr().out


def test_what_is_there_is_kept_and_what_is_damaged_made_again(mixed, tmp_path, capsys):
    copied = shutil.copytree(mixed, tmp_path / "checkpoints")
    (copied / "demo/members/share0.5_seed1/steps/3/model.safetensors").write_bytes(b"cut")
    asked = [*QUICK, "--checkpoint_dir", str(copied), *MIXED, "--overwrite"]
    assert "--num_members 2 --member_steps 3 --member_share 0.5" in refused(
        capsys, analyze.main, *asked
    )
    train.main([*SMALL, "--checkpoint_dir", str(copied), *MIXED])
    assert capsys.readouterr().out.count("is there and is kept") == 2  # the run, and the other half
    analyze.main(asked)
    name = "identity_members2_steps3_share0.5"
    assert torch.equal(scores_of(copied / "demo", name), scores_of(mixed / "demo", name))


def test_shares_and_steps_that_cannot_be_are_refused(copied, capsys):
    asked = [*QUICK, "--checkpoint_dir", str(copied)]
    assert "share of the rows" in refused(capsys, analyze.main, *asked, "--member_share", "1.5")
    assert "above 0" in refused(
        capsys, train.main, *SMALL, "--checkpoint_dir", str(copied), "--member_share", "0"
    )
    assert "--member_steps 4" in refused(capsys, analyze.main, *asked, "--member_steps", "4")


def test_halves_differ_by_seed_and_are_no_mask_of_a_study():
    halves = [draw_share(100, 0.5, seed) for seed in range(5)]
    masks = {
        tuple(np.flatnonzero(mask)) for seed in range(5) for mask in draw_masks(100, 20, 0.5, seed)
    }
    assert (
        all(len(rows) == 50 for rows in halves)
        and len({tuple(rows) for rows in halves} | masks) == 105
    )
    assert draw_share(7, 1.0, 3).tolist() == list(range(7))


def test_queries_may_begin_at_another_validation_row(copied, tmp_path, capsys):
    """Scores of another window have a name of their own; the studies read those of the window that
    is asked about.
    """
    where = ["--dataset_name", "demo", "--checkpoint_dir", str(copied)]
    window = ["--first_query", "12", "--max_queries", "5"]
    analyze.main([*where, *window, "--factor_strategy", "identity"])
    whole = [*where, "--max_queries", "17", "--factor_strategy", "identity", "--overwrite"]
    analyze.main(whole)
    assert close(
        scores_of(copied / "demo", "identity_from12"),
        scores_of(copied / "demo", "identity")[12:],
        1e-6,
    )
    output = outputs(tmp_path, tmp_path / "f.png")
    small = [*FEW, "--retrain_queries", "20"]
    evaluate_lds.main([*where, *window, *output, *small])
    result = json.loads((tmp_path / "lds_demo.json").read_text())
    assert result["queries"] == 5 and "identity" in result["scores"]
    stored = next((copied / "demo/retraining").rglob("*.safetensors"))
    assert len(load_file(stored)["margins"]) == 20
    assert "not among the 100" in refused(capsys, analyze.main, *where, "--first_query", "100")
    assert "from 0 up" in refused(capsys, analyze.main, *where, "--first_query", "-1")


def test_members_of_another_recipe_or_none_are_refused(copied, capsys):
    three = [*QUICK, "--checkpoint_dir", str(copied), "--num_members", "3"]
    path = copied / "demo/members/seed2/run.json"
    tamper(path, lambda run: run | {"recipe": run["recipe"] | {"learning_rate": 1.0}})
    assert "another recipe" in refused(capsys, analyze.main, *three)
    path.unlink()
    assert "--num_members 3" in refused(capsys, analyze.main, *three)
    evaluate = [
        "--dataset_name",
        "demo",
        "--checkpoint_dir",
        str(copied),
        "--max_queries",
        "12",
        "--dry_run",
    ]
    assert run_script(evaluate_lds.main, evaluate) == 0


def test_the_run_alone_has_its_place_whether_or_not_its_seed_is_known(trained):
    for seed in (None, 3):
        run = replace(Run.open(trained, "demo"), seed=seed)
        assert Members().places(run) == [trained / "demo"]


@pytest.mark.parametrize("steps", ["1", "2"])
def test_the_command_below_a_training_scores_the_members_that_it_trained(run_copy, capsys, steps):
    members = ["--num_members", "2", "--member_steps", steps, "--member_share", "0.5"]
    train.main([*SMALL, "--checkpoint_dir", str(run_copy), *members])
    command = capsys.readouterr().out.partition("next: ")[2].strip()
    analyze.main([*shlex.split(command)[2:], "--max_queries", "3"])
    (path,) = (run_copy / "demo/influence/scores").glob("replay_members*/pairwise_scores.json")
    spec = json.loads(path.read_text())["spec"]
    assert (spec["num_members"], spec["member_steps"], spec["member_share"]) == (2, int(steps), 0.5)
