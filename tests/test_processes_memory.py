"""Free memory is what the limits of containers and cluster jobs leave."""

import os

import psutil
import pytest

from attribution import processes


def group(folder, limit, used: int, inactive: int, version: int) -> None:
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        2: ("memory.max", "memory.current"),
    }[version]
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    (folder / "memory.stat").write_text(
        f"anon 5\n{'total_' * (version == 1)}inactive_file {inactive}\n"
    )


@pytest.mark.parametrize("version", [1, 2])
def test_the_tightest_limit_above_the_process_counts(tmp_path, monkeypatch, version):
    root = tmp_path / "memory" if version == 1 else tmp_path
    group(root / "job/step", "max" if version == 2 else 2**62, 700, 0, version)
    group(root / "job", 1000, 700, 150, version)
    own = tmp_path / "own"
    own.write_text("3:cpuset:/\n9:cpu,memory:/job/step\n" if version == 1 else "0::/job/step\n")
    found = processes.control_groups(tmp_path, own)
    assert found == [root / "job/step", root / "job", root]
    assert min(map(processes.left_in, found)) == 1000 - 700 + 150
    monkeypatch.setattr(processes, "control_groups", lambda: found)
    assert processes.free_host_memory() == 450


def test_without_limits_the_free_memory_of_the_machine_counts(tmp_path, monkeypatch):
    assert processes.control_groups(tmp_path, tmp_path / "missing") == []
    assert processes.left_in(tmp_path) == float("inf")
    monkeypatch.setattr(processes, "control_groups", list)
    assert (
        0 < processes.free_host_memory() <= psutil.virtual_memory().total
        and processes.num_cores() >= 1
    )


def test_cores_are_counted_where_there_is_no_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    assert processes.num_cores() == (os.cpu_count() or 1)
