"""Masks keep what they say; foreign files load safely or are refused in one sentence."""

import pickle
import zipfile

import numpy as np
import pytest
import torch

from attribution.evidence.ground_truth import (
    GroundTruth,
    check_margins,
    check_masks,
    draw_masks,
    load_array,
)
from attribution.files import Refused


def test_masks_keep_the_share_and_do_not_depend_on_how_many_there_are():
    masks = draw_masks(101, 7, 0.3, seed=5)
    assert (
        masks.shape == (7, 101)
        and (masks.sum(1) == 30).all()
        and len({mask.tobytes() for mask in masks}) == 7
    )
    assert np.array_equal(draw_masks(101, 3, 0.3, seed=5), masks[:3])
    assert not np.array_equal(draw_masks(101, 3, 0.3, seed=6), masks[:3])


def test_the_pearson_of_a_regressions_retrains_leaves_out_what_diverged_or_never_changed():
    generator = np.random.default_rng(0)
    outputs, labels = generator.normal(size=(3, 2, 9)), generator.normal(size=9)
    each = [np.corrcoef(one, labels)[0, 1] for one in outputs.reshape(-1, 9)]
    masks = draw_masks(20, 3, 0.5, 0)
    assert GroundTruth(masks, outputs, None, outputs).pearson(labels) == pytest.approx(
        np.mean(each)
    )
    outputs[0], outputs[1, 0] = np.nan, 1.0
    assert GroundTruth(masks, outputs, None, outputs).pearson(labels) == pytest.approx(
        np.mean(each[3:])
    )
    assert GroundTruth(masks, outputs, None).pearson(labels) is None


def test_every_format_gives_the_array_back(tmp_path):
    masks = draw_masks(20, 4, 0.5, 0).astype(np.int8)
    np.save(tmp_path / "a.npy", masks)
    np.savez(tmp_path / "b.npz", masks=masks, margins=masks * 2.0)
    torch.save(masks, tmp_path / "c.pt")
    torch.save(torch.from_numpy(masks), tmp_path / "d.pt")
    for name in ("a.npy", "b.npz", "c.pt", "d.pt"):
        loaded = load_array(tmp_path / name, "masks")
        assert np.array_equal(loaded, masks) and loaded.dtype == np.int8


def test_a_pickle_of_numpy_1_loads(tmp_path, monkeypatch):
    """NumPy 1 names its reconstruction numpy.core.multiarray; torch.save of that is what was
    published.
    """
    margins = np.arange(6, dtype=np.float32).reshape(2, 3)
    torch.save(margins, tmp_path / "new.pt")
    with (
        zipfile.ZipFile(tmp_path / "new.pt") as source,
        zipfile.ZipFile(tmp_path / "old.pt", "w") as target,
    ):
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in content
                content = content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
            target.writestr(name, content)
    assert np.array_equal(load_array(tmp_path / "old.pt", "margins"), margins)


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_anything_else_is_refused_and_not_executed(tmp_path, capsys):
    torch.save({"masks": torch.ones(2)}, tmp_path / "dict.pt")
    torch.save(Evil(), tmp_path / "evil.pt")
    (tmp_path / "evil2.pt").write_bytes(pickle.dumps(Evil()))
    np.save(tmp_path / "object.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "two.npz", a=np.ones(2), b=np.ones(2))
    np.save(tmp_path / "text.npy", np.array(["a"]))
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01")
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04")
    bad = (
        "dict.pt",
        "evil.pt",
        "evil2.pt",
        "object.npy",
        "two.npz",
        "text.npy",
        "cut.npy",
        "cut.pt",
        "none.npy",
    )
    for name in bad:
        with pytest.raises(Refused):
            load_array(tmp_path / name, "masks")
    assert "executed" not in capsys.readouterr().out


def test_masks_that_cannot_be_are_refused():
    good = draw_masks(10, 4, 0.5, 0)
    assert np.array_equal(check_masks(good.astype(np.float32), 10), good)
    for bad in (good[:, :9], good[:2], good * 2, good[:1].repeat(5, 0), good[0]):
        with pytest.raises(Refused):
            check_masks(bad, 10)


def test_margins_get_their_repeats_and_wrong_shapes_are_refused():
    assert check_margins(np.ones((4, 6)), 4, 6).shape == (4, 1, 6)
    assert check_margins(np.ones((4, 2, 6)), 4, 6).dtype == np.float32
    for bad in (np.ones((4, 5)), np.ones((3, 6)), np.ones(6), np.ones((4, 2, 6, 1))):
        with pytest.raises(Refused):
            check_margins(bad, 4, 6)


def test_retrains_that_diverged_are_no_wrong_predictions():
    margins = np.array([[[1.0, -1.0, np.nan]]], np.float32)
    masks = np.ones((1, 4), np.uint8)
    for correct in (None, np.array([[[True, False, False]]])):
        assert GroundTruth(masks, margins, correct).accuracy(2) == 0.5
    assert GroundTruth(masks, margins * np.nan, None).accuracy(2) is None
