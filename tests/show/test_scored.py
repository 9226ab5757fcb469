"""What is kept beside scores answers as the data set and the model would, or is made again."""

import json
import shlex
import shutil

import numpy as np
import pytest
from running import QUICK, analyze_quickly, refusal
from safetensors.numpy import load_file

import analyze
import run_counterfactual

QUERY = ["--query_index", "3", "5"]


@pytest.fixture(scope="module")
def scored(trained, tmp_path_factory):
    """A copy of the small run with scores."""
    folder = shutil.copytree(trained, tmp_path_factory.mktemp("scored") / "checkpoints")
    analyze_quickly(folder)
    return folder


def kept(checkpoints) -> list:
    """Files that the answers are read from."""
    scores = checkpoints / "demo/influence/scores/ekfac_damping0.0001"
    rows = sorted((checkpoints / "demo/influence/rows").iterdir())
    return [scores / "answers.json", scores / "answers.safetensors", *rows]


def answer(checkpoints, capsys, *more: str, query=QUERY, form: str = "json") -> str:
    """What the questions print."""
    capsys.readouterr()
    analyze_quickly(checkpoints, *query, "--format", form, *more)
    return capsys.readouterr().out


@pytest.mark.parametrize("form", ["table", "json", "csv"])
@pytest.mark.parametrize("query", [QUERY, ["--query_group", "all"]], ids=["rows", "group"])
def test_a_kept_answer_is_that_of_the_data_set_and_the_model(copied, capsys, query, form):
    first = answer(copied, capsys, query=query, form=form)
    for path in kept(copied):
        path.unlink()
    assert answer(copied, capsys, query=query, form=form) == first
    assert all(path.is_file() for path in kept(copied)) and len(kept(copied)) == 4


@pytest.mark.parametrize("place", range(4))
def test_a_damaged_file_is_noticed_and_made_again(copied, capsys, place):
    first = answer(copied, capsys)
    path = kept(copied)[place]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert answer(copied, capsys) == first
    assert kept(copied)[place].read_bytes() != bytes(content)


def test_other_queries_than_those_scored_are_not_answered_from_what_was_kept(copied, capsys):
    with pytest.raises(Exception, match="query rows"):
        answer(copied, capsys, "--max_queries", "7")


# --- groups, rankings, checks ---------------------------------------------------------------------


def asked(checkpoints, capsys, *query: str) -> list[dict]:
    """Answers in JSON."""
    lines = answer(checkpoints, capsys, "--top_k", "8", query=query).splitlines()
    return [json.loads(line) for line in lines]


def stored_scores(checkpoints, kind: str = "pairwise") -> np.ndarray:
    """Stored scores in float64, read by the library alone."""
    folder = checkpoints / "demo/influence/scores/ekfac_damping0.0001"
    return load_file(folder / f"{kind}_scores.safetensors")["all_modules"].astype(np.float64)


def check_sides(found: dict, scores: np.ndarray, ranking: np.ndarray) -> None:
    """Each side has the first rows of the ranking (N,) that have its sign, with their scores."""
    for side in found["sides"]:
        sign = 1 if side["direction"] == "helpful" else -1
        rows = [row["row"] for row in side["rows"]]
        assert rows == [row for row in np.argsort(-sign * ranking) if sign * scores[row] > 0][:8]
        assert [row["score"] for row in side["rows"]] == pytest.approx(scores[rows], rel=1e-5)


@pytest.mark.parametrize("group", ["all", "wrong", "right", "negative", "a file"])
def test_a_group_is_the_mean_of_its_queries(scored, capsys, tmp_path, group):
    singles = asked(scored, capsys, "--query_index", *map(str, range(9)))
    places = {
        "all": [*range(9)],
        "wrong": [one["query"] for one in singles if one["said"] != one["label"]],
        "right": [one["query"] for one in singles if one["said"] == one["label"]],
        "negative": [one["query"] for one in singles if one["label"] == "negative"],
        "a file": [7, 2],
    }[group]
    assert 0 < len(places) <= 9
    name = group
    if group == "a file":
        path = tmp_path / "numbers.txt"
        path.write_text("7\n2\n")
        name = str(path)
    (found,) = asked(scored, capsys, "--query_group", name)
    mean = stored_scores(scored)[places].mean(0)
    check_sides(found, mean, mean)
    assert found["target"] == "group" and found["query"] is found["cost"] is None
    text = answer(scored, capsys, query=["--query_group", name], form="table")
    assert f"  {found['check']}\n" in text and "To ask about single ones of these:" in text
    assert "shares of all absolute scores of the group" in " ".join(text.split())
    args = analyze.parse_args(shlex.split(found["check"])[2:])
    assert (args.checkpoint_dir, args.query_index) == (scored, places[:3])
    assert analyze.options_of(analyze.Settings, args).name == found["scores"]
    assert found["texts"] == [f"{len(places)} of 9 validation rows ({name})"]
    margins = [one["margin"] for one in singles if one["query"] in places]
    assert found["margin"] == pytest.approx(np.mean(margins), rel=1e-5)


def test_groups_that_cannot_be_are_refused(scored, capsys, tmp_path):
    words, far, none, odd = (tmp_path / name for name in ("words", "far", "none", "odd"))
    odd.write_bytes(b"\xff\xfe\x00")
    words.write_text("1\ntwo\n")
    far.write_text("1\n9\n")
    none.write_text("")
    for name, said in (
        ("wrnog", "is not one of negative, positive, all, wrong, right, a file"),
        (str(words), "must have the number of a query in each line"),
        (str(odd), "must have the number of a query in each line"),
        (str(tmp_path), "is not one of negative, positive, all"),
        ("x" * 5000, "is not one of negative, positive, all"),
        (str(far), "--query_group must be from 0 to 8, not 9"),
        (str(none), "there is no such query"),
    ):
        argv = [*QUICK, "--checkpoint_dir", str(scored), "--query_group", name]
        assert said in refusal(capsys, analyze.main, argv)


def test_particular_rows_are_ranked_by_score_over_the_root_of_stored_self_influence(copied, capsys):
    """Self-influence that is not stored is computed first."""
    for query in (["--query_index", "3"], ["--query_group", "all"]):
        (found,) = asked(copied, capsys, *query, "--particular")
        scores = stored_scores(copied)
        scores = scores[3] if "3" in query else scores.mean(0)
        check_sides(found, scores, scores / np.sqrt(stored_scores(copied, "self")))
    (plain,) = asked(copied, capsys, "--query_group", "all")
    check_sides(plain, scores, scores)
    assert plain["sides"] != found["sides"]


def test_an_answer_says_how_many_of_its_strongest_rows_other_scores_share(copied, capsys):
    (alone,) = asked(copied, capsys, "--query_index", "3")
    assert alone["also"] is None
    analyze_quickly(copied, "--factor_strategy", "identity")
    (found,) = asked(copied, capsys, "--query_index", "3")
    tops = []
    for name in ("ekfac_damping0.0001", "identity"):
        path = copied / f"demo/influence/scores/{name}/pairwise_scores.safetensors"
        sizes = np.abs(load_file(path)["all_modules"][3])
        tops.append({int(row) for row in np.argsort(sizes)[-10:]})
    shared = len(tops[0] & tops[1])
    assert found["also"] == {"scores": "identity", "shared": shared, "strongest": 10}
    text = " ".join(answer(copied, capsys, query=["--query_index", "3"], form="table").split())
    assert f"{shared} of its 10 strongest rows are among those of identity, too." in text
    pairwise = copied / "demo/influence/scores/identity/pairwise_scores.json"
    pairwise.write_text(pairwise.read_text().replace('"query rows": "', '"query rows": "0'))
    (found,) = asked(copied, capsys, "--query_index", "3")
    assert found["also"] is None  # of other queries


def test_the_check_of_an_answer_is_a_command_about_its_run_scores_and_query(copied, capsys):
    analyze_quickly(copied, "--query_text", "A fine soup.")
    (row,) = asked(copied, capsys, "--query_index", "5")
    (own,) = asked(copied, capsys, "--query_text", "A fine soup.")
    for found in (row, own):
        args = run_counterfactual.parse_args(shlex.split(found["check"])[2:])
        assert (args.dataset_name, args.checkpoint_dir) == ("demo", copied)
        assert args.strategies == ["ekfac_damping0.0001"] and args.max_queries == 9
        assert args.direction == found["sides"][0]["direction"]
        assert args.targets == ([5] if found is row else None)
        assert args.query_text == (None if found is row else ["A fine soup."])
        assert f" {3 * args.num_retrain_seeds} retrains" in found["cost"]
    capsys.readouterr()
    run_counterfactual.main([*shlex.split(row["check"])[2:], "--dry_run"])
    retrains = row["cost"].split(", ")[1]
    assert retrains in capsys.readouterr().out  # and it runs
