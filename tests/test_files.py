"""A file is complete or absent, and a result of something else is refused."""

import errno
import pickle

import pytest
import torch

from attribution import files
from attribution.cli import check_numbers, run_script
from attribution.files import (
    Refused,
    Stale,
    exclusive,
    intact,
    refuse_if_stale,
    write_bytes,
    write_json,
)
from attribution.tensors import fingerprint_of_tensors


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError):
        write_json(path, {"x": 2})
    assert files.read_json(path) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_is_one_sentence_and_status_2(capsys):
    def main(argv):
        raise OSError(errno.ENOSPC, "No space left on device")

    assert run_script(main) == 2
    assert "disk is full" in capsys.readouterr().err


def test_exit_status_tells_refused_from_interrupted(capsys):
    def refused(argv):
        raise Refused("no")

    def interrupted(argv):
        raise KeyboardInterrupt

    assert run_script(lambda argv: None) == 0
    assert run_script(refused) == 2 and capsys.readouterr().err == "error: no\n"
    assert run_script(interrupted) == 130


def test_a_changed_byte_is_noticed(tmp_path):
    write_bytes(tmp_path / "a", b"12345")
    recorded = files.checksums([tmp_path / "a"])
    assert intact(tmp_path, recorded)
    (tmp_path / "a").write_bytes(b"12346")
    assert not intact(tmp_path, recorded)
    assert not intact(tmp_path, {"missing": "0"}) and not intact(tmp_path, None)


def test_a_result_of_something_else_is_refused_by_the_part_that_differs(tmp_path):
    path = tmp_path / "scores.json"
    assert refuse_if_stale(path, {"weights": "a"}, "scores") is None
    write_json(path, {"fingerprint": {"weights": "a", "seed": 1}})
    assert refuse_if_stale(path, {"weights": "a", "seed": 1}, "scores")
    with pytest.raises(Stale, match="other weights; replace them with") as refused:
        refuse_if_stale(path, {"weights": "b", "seed": 1}, "scores")
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)
    assert refuse_if_stale(path, {"weights": "b", "seed": 1}, "scores", replaceable=True) is None


def test_a_folder_is_held_by_one_at_a_time(tmp_path):
    with exclusive(tmp_path), pytest.raises(Refused, match="another process"), exclusive(tmp_path):
        pass
    with exclusive(tmp_path):
        pass


def test_numbers_that_were_given_must_be_above_0_and_the_refusal_names_the_argument():
    check_numbers({"rows": 3, "rate": 0.5, "limit": None}, "rows", "rate", "limit")
    with pytest.raises(Refused, match="--rows must be above 0, not 0"):
        check_numbers({"rows": 0, "rate": -1.0}, "rows", "rate")


def test_fingerprint_sees_names_types_shapes_and_values():
    x = torch.arange(4.0)
    prints = {
        fingerprint_of_tensors(tensors)
        for tensors in ({"a": x}, {"b": x}, {"a": x.double()}, {"a": x.view(2, 2)}, {"a": x + 1})
    }
    assert len(prints) == 5
    assert fingerprint_of_tensors({"a": x, "b": x}) == fingerprint_of_tensors({"b": x, "a": x})


def test_a_changed_byte_of_a_json_file_is_noticed_wherever_it_is(tmp_path, capsys):
    """Or it changes nothing, as between two values."""
    path, value = (
        tmp_path / "a.json",
        {"seed": 3, "recipe": {"rate": 1e-4, "names": ["a", "b"]}, "none": None},
    )
    files.write_json(path, value)
    whole = path.read_bytes()
    assert files.read_json(path) == value
    for place in range(len(whole)):
        for other in (whole[place] ^ 1, whole[place] ^ 16, 0x20, 0xFF):
            path.write_bytes(whole[:place] + bytes([other]) + whole[place + 1 :])
            assert files.read_json(path) in (None, value), path.read_bytes()
    for end in range(0, len(whole) - 2, 7):
        path.write_bytes(whole[:end])
        assert files.read_json(path) is None
    assert "a.json is damaged and does not count" in capsys.readouterr().err


def test_a_json_file_without_a_checksum_does_not_count(tmp_path):
    (tmp_path / "a.json").write_text('{"seed": 3}')
    assert files.read_json(tmp_path / "a.json") is None


def test_a_file_that_is_gone_is_one_sentence(capsys):
    """As where somebody removes the run's folder while a script works in it; kronfluence's own
    error has no name.
    """
    for error in (
        FileNotFoundError(errno.ENOENT, "No such file", "runs/x"),
        FileNotFoundError("Factors runs/x"),
    ):

        def fail(_, error=error):
            raise error

        assert run_script(fail) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and "runs/x" in said and "run the same command again" in said


@pytest.mark.parametrize("seed", [-1, 2**62])
def test_a_seed_that_no_generator_takes_is_refused(seed):
    for name in ("seed", "mask_seed", "retrain_seed", "random_seed"):
        with pytest.raises(Refused, match=f"--{name} must be from 0 up"):
            check_numbers({name: seed})
    check_numbers({"seed": None, "mask_seed": 0})
