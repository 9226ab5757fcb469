"""A what-if is the replay of exactly its change, and retraining checks just that."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from attribution.evidence.what_if import (
    Edit,
    predicted_changes,
    read_edit,
    replayed,
    smallest_set,
    weights_without,
    what_if,
)
from attribution.files import Refused
from attribution.replay.descent import Replay, Targets
from pipeline import get_glue_dataset

N, Q = 40, 6
UNIT = 1.5


@pytest.fixture(scope="module")
def train():
    return get_glue_dataset("demo", "train", max_samples=N)


def influence(train, members: int = 3):
    """Replays of random kernels in the place of members; queries have the labels 0 1 0 1 0 1."""
    labels = torch.from_numpy(train.labels)
    replays = []
    for seed in range(members):
        draw = torch.Generator().manual_seed(seed)
        x = torch.randn(N + Q, 12, generator=draw) / 3
        x[:N, 0] += labels - 0.5
        queries = torch.arange(Q) % 2
        x[N:, 0] += queries - 0.5
        targets = Targets(labels, 2), Targets(queries, 2)
        replays.append(Replay(x[:N] @ x[:N].T, x[N:] @ x[:N].T, *targets, 1.0))
    return SimpleNamespace(
        train=train, queries=range(Q), replays=lambda: iter(replays), unit=lambda: UNIT
    )


def test_rows_and_labels_are_those_of_the_arguments_or_of_a_file(train, tmp_path):
    other = 1 - int(train.labels[5])
    edit = read_edit(train, ["3", "17"], ["5", "8=positive"])
    assert edit == Edit([3, 17], {5: other, 8: 1})
    everything, without = weights_without(N, [edit.removed])
    assert everything.all() and np.flatnonzero(without == 0).tolist() == [3, 17]
    labels = edit.labels(train)
    assert labels[5] == other and labels[8] == 1
    assert np.array_equal(np.delete(labels, [5, 8]), np.delete(train.labels, [5, 8]))
    path = tmp_path / "rows.csv"
    path.write_text("row,label\n5\n\n8,positive\n")
    assert read_edit(train, None, [str(path)]) == Edit([], {5: other, 8: 1})
    path.write_text("3\n17\n")
    assert read_edit(train, [str(path)], None) == Edit([3, 17], {})


@pytest.mark.parametrize(
    ("removed", "flipped", "said"),
    [
        (["40"], None, "'40' is not the number of a training row, 0 to 39"),
        (["3", "3"], None, "row 3 is named twice"),
        (["nowhere.txt"], None, "nowhere.txt is no number and no file"),
        (["1", "x"], None, "'x' is not the number"),
        (["1.5", "2"], None, "'1.5' is not the number"),
        (["3"], ["3"], "row 3 cannot be removed and have another label"),
        (None, ["3=fine"], "does not know the label"),
        (None, ["7=positive"], "have these labels already"),
        ([str(row) for row in range(N)], None, "leaves no row"),
    ],
)
def test_what_names_no_row_is_refused(train, removed, flipped, said):
    with pytest.raises(Refused, match=said):
        read_edit(train, removed, flipped)


def test_a_file_without_rows_is_refused(train, tmp_path):
    path = tmp_path / "rows.txt"
    path.write_text("row\n")
    with pytest.raises(Refused, match="names no row"):
        read_edit(train, [str(path)], None)


def test_a_what_if_is_the_replay_of_the_rows_that_are_left(train):
    made = influence(train)
    edit = Edit([2, 9], {4: 1 - int(train.labels[4])})
    found = what_if(made, edit)
    assert found["margins"].shape == found["right"].shape == (3, 2, Q)
    kept = np.delete(np.arange(N), [2, 9])
    for replay, margins in zip(made.replays(), found["margins"], strict=True):
        targets = Targets(torch.from_numpy(edit.labels(train)[kept]), 2)
        kernel, others = replay.kernel[kept][:, kept], replay.others[:, kept]
        alone = Replay(kernel, others, targets, replay.queries, replay.time)
        outputs = alone.outputs(torch.ones(1, len(kept)))
        before = replay.outputs(torch.ones(1, N))
        expected = alone.queries.margins(before + UNIT * (outputs - before))[0]
        assert np.allclose(margins[1], expected, atol=1e-5)
        assert not np.allclose(margins[0], expected, atol=1e-3)


def test_a_verdicts_prediction_is_the_what_if_of_its_removal(train):
    made = influence(train)
    groups = {1: [np.array([2, 9]), np.array([4])], 3: [np.array([0])]}
    found = predicted_changes(made, groups)
    for place, removed in groups.items():
        for rows, changes in zip(removed, found[place], strict=True):
            margins = what_if(made, Edit(rows.tolist(), {}))["margins"][:, :, place]
            assert np.allclose(changes, margins[:, 1] - margins[:, 0], atol=1e-6)


@pytest.mark.parametrize("members", [2, 3])
def test_the_smallest_set_turns_the_prediction_and_no_smaller_one_of_its_order_does(train, members):
    """In more than half of the members: in one of two it stays."""
    made = influence(train, members)
    for place in range(Q):
        scores = np.mean([one.scores()[place].numpy() for one in made.replays()], 0)
        (said,) = replayed(made, [place], np.ones((1, N)))["right"][:, 0].T
        for right in (True, False):
            found = smallest_set(made, place, scores, right)
            assert (found.before, found.members) == (said.sum(), members)
            already = said.mean() <= 0.5 if right else said.mean() >= 0.5
            assert (found.rows == []) == already
            if not found.rows:
                continue
            weights = weights_without(N, [found.rows[:-1], found.rows])
            _, without_last, without = replayed(made, [place], weights)["right"].mean(0)[:, 0]
            assert without_last >= 0.5 > without if right else without_last <= 0.5 < without
            assert found.after == round(without * members)
