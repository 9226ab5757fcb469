"""What is kept beside scores answers as the data set and the model would, or is made again."""

import shutil

import pytest
from running import analyze_quickly

QUERY = ["--query_index", "3", "5", "--format", "json"]


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


def answer(checkpoints, capsys, *more: str) -> str:
    """What the questions print."""
    capsys.readouterr()
    analyze_quickly(checkpoints, *QUERY, *more)
    return capsys.readouterr().out


@pytest.mark.parametrize("target", ["label", "predicted"])
def test_a_kept_answer_is_that_of_the_data_set_and_the_model(copied, capsys, target):
    first = answer(copied, capsys, "--query_target", target)
    for path in kept(copied):
        path.unlink()
    assert answer(copied, capsys, "--query_target", target) == first
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
