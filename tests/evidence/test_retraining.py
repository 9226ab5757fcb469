"""A job is done once, whatever is killed, damaged or started twice, always with the same bits."""

import multiprocessing
import os
import random
import signal
import threading
import time

import numpy as np
import psutil
import pytest
import torch
import transformers
from tqdm import tqdm

from attribution.evidence.retraining import announce, behaviour, run_jobs
from attribution.evidence.store import Job, Result, Store
from attribution.training.fit import fit, predict
from attribution.training.run import Run
from pipeline import compute_margin, construct_bert

FORK = multiprocessing.get_context("fork")  # children of a test start at once
JOBS = [Job.of(np.arange(i, i + 5), seed) for i in range(6) for seed in range(4)]


QUERIES = np.arange(3 * 16, dtype=np.uint8).reshape(3, 16)  # digests of three query rows


class Fake:
    """Results that are a function of rows and seed; every call is written down in a file."""

    def __init__(self, log, seconds: float = 0.0, digests=QUERIES) -> None:
        self.log, self.seconds, self.digests = log, seconds, digests

    def __call__(self, rows, seed):
        time.sleep(self.seconds)
        with open(self.log, "a") as file:
            file.write(f"{rows[0]} {seed}\n")
        margins = [
            np.random.default_rng([seed, *rows, *digest]).standard_normal()
            for digest in self.digests
        ]
        margins = np.array(margins, np.float32)
        return Result(self.digests, margins, margins > 0.5, margins * 2)


def open_store(folder, recipe: str = "a", digests=QUERIES) -> Store:
    return Store(folder, {"recipe": recipe}, digests)


def same(one, other) -> bool:
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)


def run_fake(folder, log, seconds: float) -> None:
    tqdm.set_lock(
        threading.RLock()
    )  # the default is shared with forked children, and a killed one would keep it
    run_jobs(open_store(folder), JOBS, Fake(log, seconds))


def calls(log) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def test_a_rerun_computes_nothing_and_repeated_jobs_are_one(tmp_path):
    log = tmp_path / "log"
    first = run_jobs(open_store(tmp_path), JOBS + JOBS[:3], Fake(log))
    assert len(calls(log)) == len(JOBS)
    for values in vars(first).values():
        assert values.shape == (len(JOBS) + 3, 3) and np.array_equal(values[:3], values[-3:])
    assert same(run_jobs(open_store(tmp_path), JOBS + JOBS[:3], Fake(log)), first)
    assert len(calls(log)) == len(JOBS)


def test_a_changed_recipe_never_meets_old_results(tmp_path):
    log = tmp_path / "log"
    run_jobs(open_store(tmp_path), JOBS[:2], Fake(log))
    run_jobs(open_store(tmp_path, "b"), JOBS[:2], Fake(log))
    assert len(calls(log)) == 4


@pytest.mark.parametrize("damage", ["cut", "flipped", "swapped", "empty"])
def test_a_damaged_file_is_noticed_said_and_redone(tmp_path, capsys, damage):
    log, store = tmp_path / "log", open_store(tmp_path)
    expected = run_jobs(store, JOBS, Fake(log))
    path, content = store.path(JOBS[3]), store.path(JOBS[3]).read_bytes()
    other = store.path(JOBS[4]).read_bytes()
    flipped = content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]
    path.write_bytes(
        {"cut": content[:-4], "flipped": flipped, "swapped": other, "empty": b""}[damage]
    )
    assert same(run_jobs(store, JOBS, Fake(log)), expected)
    assert (
        "is damaged and is done again" in capsys.readouterr().err
        and len(calls(log)) == len(JOBS) + 1
    )
    assert path.read_bytes() == content


def test_processes_at_once_never_do_the_same_job(tmp_path):
    log = tmp_path / "log"
    processes = [
        FORK.Process(target=run_fake, args=(tmp_path / "store", log, 0.01)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(calls(log)) == sorted(f"{job.rows[0]} {job.seed}" for job in JOBS)


def test_killed_at_ten_random_moments_the_results_are_those_of_an_undisturbed_run(tmp_path):
    generator, log = random.Random(0), tmp_path / "log"
    for _ in range(10):
        process = FORK.Process(target=run_fake, args=(tmp_path / "store", log, 0.005))
        process.start()
        time.sleep(generator.uniform(0.0, 0.03))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    disturbed, calm = open_store(tmp_path / "store"), open_store(tmp_path / "calm")
    assert same(
        run_jobs(disturbed, JOBS, Fake(log)), run_jobs(calm, JOBS, Fake(tmp_path / "other"))
    )
    assert all(disturbed.path(job).read_bytes() == calm.path(job).read_bytes() for job in JOBS)


def test_a_claim_of_a_killed_process_is_free_again(tmp_path):
    store, (reader, writer) = open_store(tmp_path), os.pipe()

    def hold() -> None:
        with open_store(tmp_path).claim(JOBS[0]) as mine:
            os.write(writer, b"y" if mine else b"n")
            time.sleep(60)

    process = FORK.Process(target=hold)
    process.start()
    assert os.read(reader, 1) == b"y"
    with store.claim(JOBS[0]) as mine:
        assert not mine
    with store.claim(JOBS[1]) as mine:
        assert mine
    process.kill()
    process.join()
    with store.claim(JOBS[0]) as mine:
        assert mine


def test_announce_counts_what_is_stored_and_stops_at_a_dry_run(tmp_path, capsys):
    log, store = tmp_path / "log", open_store(tmp_path)
    run_jobs(store, JOBS[:4], Fake(log))
    assert not announce(store, JOBS, dry_run=True, seconds=61.4, workers=2)
    out = capsys.readouterr().out
    assert "24 retrains, 4 of them stored" in out and "training took 61 s" in out
    assert "about 10 minutes with 2 processes" in out  # 20 x 61.4 s by 2
    assert announce(store, JOBS, dry_run=False, seconds=61.4, seconds_a_row=1e-9)
    assert "under two minutes, as fast as retrains were before" in capsys.readouterr().out
    rows = sum(len(job.rows) for job in JOBS[4:])
    assert announce(store, JOBS, dry_run=False, seconds_a_row=300 / rows)
    assert "about 5 minutes, as" in capsys.readouterr().out
    assert announce(store, JOBS[:4], dry_run=False, seconds=61.4)
    assert "took" not in capsys.readouterr().out and len(calls(log)) == 4


def test_several_processes_give_the_bits_of_one(retrain, tmp_path):
    jobs = [Job.of(np.arange(i, 60), 0) for i in range(3)]
    one = run_jobs(Store(tmp_path / "one", retrain.fingerprint(), retrain.digests), jobs, retrain)
    two = run_jobs(
        Store(tmp_path / "two", retrain.fingerprint(), retrain.digests), jobs, retrain, workers=2
    )
    assert same(one, two)


def run_in_the_background(store: Store, jobs: list[Job], retrain) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell starts what ends in &
    tqdm.set_lock(threading.RLock())
    run_jobs(store, jobs, retrain, workers=2)


def test_workers_end_with_the_process_that_started_them_even_if_it_is_killed(retrain, tmp_path):
    store = Store(tmp_path, retrain.fingerprint(), retrain.digests)
    jobs = [Job.of(np.arange(i, 120), seed) for i in range(60) for seed in range(20)]
    parent = FORK.Process(target=run_in_the_background, args=(store, jobs, retrain))
    parent.start()
    while not any(store.path(job).exists() for job in jobs):
        assert parent.is_alive()
        time.sleep(0.05)
    workers = psutil.Process(parent.pid).children()
    assert len(workers) >= 2
    parent.kill()
    parent.join()
    _, alive = psutil.wait_procs(workers, timeout=60)  # one may still be importing libraries
    assert not alive and store.missing(jobs)


# --- queries that come later ---


def test_more_queries_later_do_again_what_does_not_know_them_and_join_it(tmp_path, capsys):
    log, more = tmp_path / "log", np.arange(5 * 16, dtype=np.uint8).reshape(5, 16)
    first = run_jobs(open_store(tmp_path), JOBS[:4], Fake(log))
    fewer = run_jobs(open_store(tmp_path, digests=QUERIES[[2, 0]]), JOBS[:4], Fake(log))
    assert len(calls(log)) == 4 and np.array_equal(fewer.margins, first.margins[:, [2, 0]])
    later = open_store(tmp_path, digests=more)
    assert announce(later, JOBS[:4], dry_run=False)
    assert "4 more are stored, but without some of these queries" in capsys.readouterr().out
    joined = run_jobs(later, JOBS[:4], Fake(log, digests=more[2:]))  # it knows the last three only
    assert len(calls(log)) == 8 and np.array_equal(joined.margins[:, :3], first.margins)
    assert same(run_jobs(open_store(tmp_path), JOBS[:4], Fake(log)), first) and len(calls(log)) == 8


def test_each_file_records_the_rows_that_were_kept(tmp_path):
    from safetensors.numpy import load_file

    store = open_store(tmp_path)
    run_jobs(store, JOBS[5:6], Fake(tmp_path / "log"))
    tensors = load_file(store.path(JOBS[5]))
    assert np.flatnonzero(np.unpackbits(tensors["kept"])).tolist() == JOBS[5].rows.tolist()
    assert tensors["seed"].tolist() == [JOBS[5].seed]


def test_an_error_of_the_file_system_is_raised_and_deletes_nothing(tmp_path, monkeypatch):
    store = open_store(tmp_path)
    run_jobs(store, JOBS[:1], Fake(tmp_path / "log"))

    def stale(self):
        raise OSError(116, "Stale file handle")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Stale"):
        patch.setattr("pathlib.Path.read_bytes", stale)
        store.load(JOBS[0])
    assert store.load(JOBS[0]) is not None


# --- one retrain ---


def test_removing_nothing_is_plain_training_bit_for_bit_and_the_store_changes_nothing(
    retrain, trained, tmp_path
):
    rows = np.arange(len(retrain.train))
    retrain(rows[5:], 1)  # what a process did before leaves no trace
    model = fit(construct_bert("demo", seed=3), retrain.train, rows, seed=3, **retrain.recipe)
    plain = compute_margin(
        predict(model, retrain.queries), torch.from_numpy(retrain.queries.labels)
    ).numpy()
    assert np.array_equal(retrain(rows, 3).margins, plain)
    assert not np.array_equal(retrain(rows, 4).margins, plain)
    assert not np.array_equal(retrain(rows[1:], 3).margins, plain)
    run = Run.open(trained, "demo")
    model = type(model).from_pretrained(run.folder)  # of seed 0
    of_run = compute_margin(
        predict(model, retrain.queries), torch.from_numpy(retrain.queries.labels)
    ).numpy()
    assert np.array_equal(retrain(rows, 0).margins, of_run)
    store = Store(tmp_path, retrain.fingerprint(), retrain.digests)
    results = run_jobs(store, [Job.of(rows, 3)], retrain)
    assert np.array_equal(results.margins[0], plain) and np.array_equal(
        results.correct[0], plain > 0
    )


def test_another_dropout_or_epsilon_is_another_recipe_and_the_class_defaults_have_no_name():
    usual = transformers.BertConfig(num_hidden_layers=2, hidden_size=32)
    assert behaviour(usual) == {}
    changed = transformers.BertConfig(
        hidden_dropout_prob=0.5, layer_norm_eps=1e-2, hidden_act="relu"
    )
    assert behaviour(changed) == {
        "hidden_dropout_prob": 0.5,
        "layer_norm_eps": 1e-2,
        "hidden_act": "relu",
    }
