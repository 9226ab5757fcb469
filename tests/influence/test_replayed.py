"""Replayed scores of a run: stored, asked and averaged as other scores are, in log-odds."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from processes import together
from running import DEMO, SMALL, scores_of, tamper
from safetensors.torch import load_file
from scipy.stats import rankdata, spearmanr

import analyze
import train
from attribution.cli import run_script
from attribution.data.demo import read_rows
from attribution.files import read_json
from attribution.influence.stored import replayed_self_scores
from attribution.replay.features import Sketch
from attribution.training.run import Run
from pipeline import DEMO_MODEL

HALVES = ["--num_members", "2", "--member_steps", "2", "--member_share", "0.5"]
NAME = "replay_members2_steps2_share0.5"
REPLAY = [*DEMO, "--max_queries", "9", "--factor_strategy", "replay"]


@pytest.fixture(scope="module")
def scored(trained, tmp_path_factory):
    """A run with two halves of its rows, their middle checkpoints scored."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("replayed") / "checkpoints")
    train.main([*SMALL, "--checkpoint_dir", str(folder), *HALVES])
    analyze.main([*REPLAY, "--checkpoint_dir", str(folder), *HALVES])
    return folder


def again(folder, *extra: str) -> torch.Tensor:
    """The scores, computed again."""
    analyze.main([*REPLAY, "--checkpoint_dir", str(folder), *HALVES, *extra, "--overwrite"])
    return scores_of(folder, NAME)


def test_the_mean_is_over_the_checkpoints_on_the_way_which_no_flag_need_name(copied, capsys):
    each = []
    for seed in (0, 1):
        end = copied / f"demo/members/share0.5_seed{seed}"
        path = end / "steps/2/influence/scores/replay/pairwise_scores.safetensors"
        each.append(load_file(path)["all_modules"])
        assert 0 < read_json(path.with_suffix(".json"))["time"] <= 8
        assert not (end / "influence").exists()
    assert torch.allclose(scores_of(copied, NAME), torch.stack(each).mean(0))
    analyze.main([*REPLAY, "--checkpoint_dir", str(copied), "--query_index", "1"])
    out = capsys.readouterr().out
    assert "--num_members 2 --member_steps 2 --member_share 0.5" in out and "query 1" in out


def test_the_mean_of_what_is_said_without_the_rows_is_kept_beside_self_scores(copied):
    analyze.main([*REPLAY, "--checkpoint_dir", str(copied), *HALVES, "--self_influence"])
    place = f"influence/scores/{NAME}/self_scores.safetensors"
    mean = load_file(copied / "demo" / place)
    each = [
        load_file(
            copied / f"demo/members/share0.5_seed{seed}/steps/2" / place.replace(NAME, "replay")
        )
        for seed in (0, 1)
    ]
    assert torch.allclose(mean["outputs"], torch.stack([one["outputs"] for one in each]).mean(0))
    labels = torch.tensor(read_rows()["train"]["label"][:120])
    for one in (*each, mean):  # log-odds of the second class, and minus the margin of the label
        assert one["outputs"].shape == (120, 1)
        assert torch.allclose(
            one["all_modules"], (1 - 2 * labels) * one["outputs"][:, 0], atol=1e-6
        )
    run = Run.open(copied, "demo")
    assert replayed_self_scores(run)[0] == NAME
    tamper(
        copied / f"demo/influence/scores/{NAME}/self_scores.json",
        lambda record: record | {"fingerprint": record["fingerprint"] | {"replay": 4}},
    )
    assert replayed_self_scores(run) is None  # an earlier version kept no outputs


def test_the_page_reads_what_the_replay_says_without_a_row_and_computes_nothing(copied):
    """Where it is not stored, the labels to look at are those of the loss."""
    place = copied / f"demo/influence/scores/{NAME}"
    report = [*REPLAY, "--checkpoint_dir", str(copied), *HALVES, "--report"]
    assert (place / "self_scores.json").exists()  # since the validation rows were scored
    stored = [*copied.glob("demo/**/self_scores.json")]
    kernels = [*copied.glob("demo/**/kernel.safetensors")]
    analyze.main(report)
    without = re.compile("the model says (negative|positive) without it")
    assert without.search((place / "report.html").read_text())
    for path in [*stored, *kernels]:
        path.unlink()
    analyze.main(report)
    page = (place / "report.html").read_text()
    assert "the model says" in page and not without.search(page)
    assert not any(path.exists() for path in [*stored, *kernels])


def test_scores_depend_on_neither_batches_nor_processes(copied, monkeypatch):
    before = scores_of(copied, NAME)
    monkeypatch.setattr("attribution.replay.features.BUDGET", 100)
    found = [again(copied)]
    command = [*REPLAY, "--checkpoint_dir", str(copied), *HALVES, "--overwrite"]
    assert together(2, lambda: analyze.main(command)) == [0, 0]
    found.append(scores_of(copied, NAME))
    for one in found:
        assert (one - before).abs().max() < 1e-5 * before.abs().max()
        assert spearmanr(one.flatten(), before.flatten()).statistic > 0.999999


def test_processes_go_on_together_where_only_the_kernel_is_missing(copied):
    """Of a training on all rows, which needs features of validation rows for its time."""
    own = [*DEMO, "--max_queries", "9", "--factor_strategy", "replay", "--num_members", "1"]
    command = [*own, "--member_steps", "2", "--checkpoint_dir", str(copied)]
    train.main([*SMALL, "--checkpoint_dir", str(copied), "--member_steps", "2"])
    analyze.main(command)
    before = scores_of(copied, "replay_steps2")
    shutil.rmtree(copied / "demo/influence/scores")
    (folder,) = copied.glob("demo/steps/*/influence")
    shutil.rmtree(folder / "scores")
    (folder / "replay/rows/kernel.safetensors").unlink()
    assert together(2, lambda: analyze.main(command)) == [0, 0]
    assert torch.allclose(scores_of(copied, "replay_steps2"), before, atol=1e-5)


def test_three_members_tell_the_unit_of_their_mean(copied, capsys):
    three = ["--num_members", "3", "--member_steps", "2", "--member_share", "0.5"]
    train.main([*SMALL, "--checkpoint_dir", str(copied), *three])
    analyze.main([*REPLAY, "--checkpoint_dir", str(copied), *three])
    assert (
        "so that replays differ as much as the margins of the 3 trainings do"
        in capsys.readouterr().out
    )
    name = "replay_members3_steps2_share0.5"
    record = read_json(copied / f"demo/influence/scores/{name}/pairwise_scores.json")
    end = "steps/2/influence/scores/replay/pairwise_scores.safetensors"
    places = [copied / f"demo/members/share0.5_seed{seed}/{end}" for seed in range(3)]
    mean = torch.stack([load_file(path)["all_modules"] for path in places]).mean(0)
    assert record["unit"] != 1
    each = [read_json(path.with_suffix(".json"))["likeness"] for path in places]
    assert record["likeness"] == pytest.approx(sum(each) / 3)  # two of them were stored before
    assert torch.allclose(scores_of(copied, name), record["unit"] * mean, rtol=1e-5)
    capsys.readouterr()
    asked = [*REPLAY, "--checkpoint_dir", str(copied), *three, "--query_text", "A fine soup."]
    analyze.main([*asked, "--format", "table"])
    out = " ".join(capsys.readouterr().out.split())
    assert "Numbers are log-odds" in out
    assert "scores are multiplied" not in out  # the unit is kept


def test_a_killed_replay_goes_on_where_it_was(copied, monkeypatch):
    before = scores_of(copied, NAME)
    monkeypatch.setattr("attribution.influence.replayed.GROUP", 50)
    made = []
    features = Sketch.features

    def dies(self, data, *shown):
        made.append(len(data))
        if len(made) == 3:
            raise KeyboardInterrupt
        return features(self, data, *shown)

    monkeypatch.setattr(Sketch, "features", dies)
    for folder in copied.glob("demo/**/influence"):
        shutil.rmtree(folder)
    with pytest.raises(KeyboardInterrupt):
        analyze.main([*REPLAY, "--checkpoint_dir", str(copied), *HALVES])
    assert made == [50, 50, 20]
    analyze.main([*REPLAY, "--checkpoint_dir", str(copied), *HALVES])
    assert made[3:5] == [20, 9]  # the third group of rows, and the queries
    after = scores_of(copied, NAME)
    assert (after - before).abs().max() < 1e-5 * before.abs().max()


def test_features_that_are_damaged_are_made_again(copied, capsys):
    before = scores_of(copied, NAME)
    folder = copied / "demo/members/share0.5_seed0/steps/2/influence/replay/rows"
    for path in folder.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    shutil.rmtree(copied / "demo/members/share0.5_seed0/steps/2/influence/scores")
    shutil.rmtree(copied / "demo/influence")
    analyze.main([*REPLAY, "--checkpoint_dir", str(copied), *HALVES])
    assert "damaged and is done again" in capsys.readouterr().out
    assert torch.allclose(scores_of(copied, NAME), before, rtol=1e-4, atol=1e-6)


def test_a_custom_query_has_the_scores_of_the_same_validation_row(copied, capsys):
    rows = read_rows()["validation"]
    label = ("negative", "positive")[rows["label"][3]]
    asked = [*REPLAY, "--checkpoint_dir", str(copied), *HALVES, "--format", "json"]
    capsys.readouterr()
    analyze.main([*asked, "--query_index", "3"])
    stored = json.loads(capsys.readouterr().out)
    analyze.main([*asked, "--query_text", rows["sentence"][3], "--query_label", label])
    custom = json.loads(capsys.readouterr().out.splitlines()[-1])
    for mine, kept in zip(custom["sides"], stored["sides"], strict=True):
        assert mine["title"] == kept["title"] and len(mine["rows"]) == 5
        assert [row["row"] for row in mine["rows"]] == [row["row"] for row in kept["rows"]]
        for one, other in zip(mine["rows"], kept["rows"], strict=True):
            assert one["score"] == pytest.approx(other["score"], rel=1e-4)


def test_another_sketch_or_another_end_makes_scores_stale(copied, capsys):
    command = [*REPLAY, "--checkpoint_dir", str(copied), *HALVES]
    assert run_script(analyze.main, [*command, "--seed", "1"]) == 2
    assert "another seed" in capsys.readouterr().err
    path = copied / "demo/members/share0.5_seed0/steps/2/influence/scores/replay"
    assert "end of training" in read_json(path / "pairwise_scores.json")["fingerprint"]


def test_settings_of_a_curvature_are_refused(trained, capsys):
    for flag in (["--damping_factor", "1e-4"], ["--stock"], ["--fisher", "exact"]):
        command = [*REPLAY, "--checkpoint_dir", str(trained), *flag]
        assert run_script(analyze.main, command) == 2
        assert f"{flag[0]} has no effect on a replay" in capsys.readouterr().err


def test_more_rows_than_memory_are_refused_before_the_work(copied, capsys, monkeypatch):
    monkeypatch.setattr("attribution.influence.replayed.free_memory", lambda device: 2**20)
    command = [*REPLAY, "--checkpoint_dir", str(copied), *HALVES, "--overwrite"]
    assert run_script(analyze.main, command) == 2
    error = capsys.readouterr().err
    assert "a replay of 120 training rows takes about" in error and "--max_train_samples" in error


def test_a_low_margin_of_a_row_that_was_left_out_finds_wrong_labels(tmp_path, capsys):
    """On 400 rows of the demo, of which one in twenty is flipped on purpose."""
    where = [*DEMO, "--checkpoint_dir", str(tmp_path)]
    train.main([*where, "--max_train_samples", "400", "--num_train_epochs", "6"])
    analyze.main([*where, "--max_queries", "2", "--factor_strategy", "replay", "--self_influence"])
    path = tmp_path / "demo/influence/scores/replay/self_scores.safetensors"
    scores = load_file(path)["all_modules"].numpy()
    wrong = np.array(read_rows()["train"]["flipped"][:400])
    ranks = rankdata(scores)
    auroc = (ranks[wrong].mean() - (wrong.sum() + 1) / 2) / (~wrong).sum()
    assert auroc > 0.9


@pytest.mark.parametrize("kind", ["three classes", "regression"])
def test_three_classes_and_regressions_are_replayed(tmp_path, capsys, kind):
    texts = read_rows()["train"]["sentence"][:60]
    labels = [i % 3 if kind == "three classes" else i % 7 + 0.5 for i in range(60)]
    rows = "".join(f'"{text}",{label}\n' for text, label in zip(texts, labels, strict=True))
    (tmp_path / "rows.csv").write_text(f"text,label\n{rows}")
    own = ["--dataset_path", str(tmp_path / "rows.csv"), "--text_columns", "text"]
    where = ["--dataset_name", "own", "--checkpoint_dir", str(tmp_path)]
    model = ["--model_name_or_path", str(DEMO_MODEL), "--num_train_epochs", "1"]
    train.main([*where, *own, "--label_column", "label", *model])
    ask = [*where, "--factor_strategy", "replay", "--format", "json"]
    analyze.main([*ask, "--self_influence"])
    capsys.readouterr()
    analyze.main([*ask, "--query_text", "A fine soup."])
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["target"] == ("output" if kind == "regression" else "predicted")
    first, second = answer["sides"]
    assert first["rows"][0]["score"] > 0 > second["rows"][0]["score"]
    assert answer["unit"] == ("label" if kind == "regression" else "log-odds")
    assert Run.open(tmp_path, "own").num_labels == (1 if kind == "regression" else 3)
