"""Snapshots are there as they were written, or not at all."""

import errno
import resource

import pytest
import torch

from attribution.files import is_disk_full
from attribution.tensors import read_snapshot, write_snapshot


@pytest.fixture
def at_most():
    """Function that limits the size of every file that is written from then on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limit", [100, 5_000, 40_000])
def test_a_snapshot_that_does_not_fit_the_disk_says_so_and_the_one_before_stays(
    tmp_path, at_most, limit
):
    path = tmp_path / "snapshot.json"
    content = {"step": 3, "weights": [torch.randn(10_000)]}
    write_snapshot(path, {"of": "before"}, content)
    at_most(limit)
    with pytest.raises(OSError) as error:
        write_snapshot(path, {"of": "after"}, content)
    assert error.value.errno == errno.EFBIG and is_disk_full(error.value)
    record, found = read_snapshot(path)
    assert record == {"of": "before"} and torch.equal(found["weights"][0], content["weights"][0])
    assert len(list(tmp_path.iterdir())) == 2
