"""What is stored is read no further than it is asked for; analyses at the same time share what both
need.
"""

import threading
import time

import numpy as np
import pytest
from processes import begin, statuses
from running import QUICK, analyze_quickly, influence_of, scores_of

import analyze
from attribution.engine import factors
from attribution.files import Refused, exclusive, read_json, write_arrays
from attribution.influence.settings import ScoreSpec
from attribution.influence.stored import KEY, ScoreFolder


def test_one_row_is_read_without_the_others_and_against_a_checksum_of_its_own(
    run_copy, monkeypatch, capsys
):
    analyze_quickly(run_copy)
    scores = scores_of(run_copy)
    path = run_copy / "demo/influence/scores/ekfac_damping0.0001/pairwise_scores.safetensors"
    content = bytearray(path.read_bytes())
    content[-4] ^= 1  # of the last query
    path.write_bytes(content)
    monkeypatch.setattr("attribution.influence.stored.load_file", None)
    stored = influence_of(run_copy).scores
    assert (stored.load_row(3) == scores[3]).all() and stored.load_row(8) is None
    analyze_quickly(run_copy, "--query_index", "3", "--raw")
    assert f"{scores[3].max():+.3e}" in capsys.readouterr().out
    with pytest.raises(Refused, match="ekfac_damping0.0001 is damaged; run first"):
        analyze_quickly(run_copy, "--query_index", "8")


def test_two_dampings_at_once_fit_their_factors_once_and_say_what_they_wait_for(
    run_copy, monkeypatch, tmp_path
):
    """Each is a process of its own, not of one launch."""
    fitted, real = tmp_path / "fitted", factors.fit_factors

    def counted(*args) -> None:
        with open(fitted, "a") as file:
            file.write("once ")
        real(*args)

    monkeypatch.setattr(factors, "fit_factors", counted)
    dampings, output = ["1e-4", "1e-2"], tmp_path / "output.txt"

    def start(damping: str) -> list:
        command = [*QUICK, "--checkpoint_dir", str(run_copy), "--damping_factor", damping]
        return begin(1, lambda: analyze.main(command), output)

    with exclusive(run_copy / "demo/influence/kronfluence", ".lock_factors_ekfac"):
        launches = [start(damping) for damping in dampings]
        for _ in range(300):
            if output.exists() and output.read_text().count("waiting for the ekfac factors") == 2:
                break
            time.sleep(0.1)
    assert [statuses(children) for children in launches] == [
        [0],
        [0],
    ] and fitted.read_text() == "once "
    names = {path.name for path in (run_copy / "demo/influence/scores").iterdir()}
    assert names == {"ekfac_damping0.0001", "ekfac_damping0.01"}


def test_the_same_scores_are_not_computed_twice_at_once(run_copy):
    place = run_copy / "demo/influence/kronfluence"
    with (
        exclusive(place, ".lock_scores_ekfac_damping0.0001_pairwise"),
        pytest.raises(Refused, match="another process"),
    ):
        analyze_quickly(run_copy)


def other_scores(folder, fingerprint: str) -> ScoreFolder:
    """Folder of scores made from something of this name."""
    return ScoreFolder(folder, ScoreSpec(), {"pairwise": {"made from": fingerprint}})


def test_scores_never_count_under_the_fingerprint_of_another_writer(tmp_path, monkeypatch, capsys):
    """Another process, on a file system without locks, replaces the file before the record."""
    own = other_scores(tmp_path, "own")
    real = write_arrays

    def replaced(path, tensors) -> str:
        digest = real(path, tensors)
        real(path, {KEY: np.zeros((2, 3), np.float32)})
        return digest

    monkeypatch.setattr("attribution.influence.stored.write_arrays", replaced)
    own.save("pairwise", {KEY: np.ones((2, 3), np.float32)}, {})
    assert own.load("pairwise") is None and "damaged" in capsys.readouterr().err


def test_of_two_writers_one_leaves_both_scores_and_record(tmp_path):
    """Each holds the lock from its scores to their record."""

    def write(number: int) -> None:
        for _ in range(20):
            scores = np.full((2, 3), number, np.float32)
            other_scores(tmp_path, str(number)).save("pairwise", {KEY: scores}, {})

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    record = read_json(tmp_path / "ekfac/pairwise_scores.json")
    assert record is not None
    made = record["fingerprint"]["made from"]
    found = other_scores(tmp_path, made).load("pairwise")
    assert found is not None and (found == float(made)).all()


def test_a_wait_ends_with_the_other_process(tmp_path):
    held, done = threading.Event(), []

    def hold() -> None:
        with exclusive(tmp_path):
            held.set()
            done.append("other")
            threading.Event().wait(0.5)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    with exclusive(tmp_path, wait_for="something"):
        done.append("own")
    thread.join()
    assert done == ["other", "own"]


def test_a_query_that_there_is_not_is_refused_before_anything_is_read(run_copy, monkeypatch):
    analyze_quickly(run_copy)
    monkeypatch.setattr(ScoreFolder, "load_row", None)
    for index in ("9", "-1"):
        with pytest.raises(Refused, match="--query_index must be from 0 to 8"):
            analyze_quickly(run_copy, "--query_index", index)
