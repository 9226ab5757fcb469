"""With one output a row passes through the model once, and every phase gets the numbers that a pass
of its own would give.
"""

import pytest
import small
import torch
from running import analyze_quickly, scores_of

import analyze
import train
from attribution.engine import analyzer, memory, modules
from attribution.engine.tape import Tape
from attribution.engine.task import InfluenceTask
from pipeline import DEMO_MODEL, construct_bert, get_glue_dataset


@pytest.fixture
def passed(monkeypatch) -> list[int]:
    """Rows that pass through the model, batch by batch, once models are opened from here on."""
    rows: list[int] = []
    real = torch.nn.Module.__call__

    def watched(self, *args, **kwargs):
        if "input_ids" in kwargs and hasattr(self, "classifier"):
            rows.append(len(kwargs["input_ids"]))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "__call__", watched)
    return rows


@pytest.mark.parametrize("fisher", ["sampled", "exact"])
@pytest.mark.parametrize("strategy", ["ekfac", "kfac", "diagonal", "identity"])
def test_a_row_passes_once_and_scores_are_those_of_a_pass_a_phase(
    run_copy, monkeypatch, passed, strategy, fisher
):
    flags = ["--factor_strategy", strategy, "--fisher", fisher, "--self_influence"]
    monkeypatch.setattr(memory, "cheapest_side", lambda *_: (1, True))
    found = []
    for room in (2**40, 2**23, 0):  # for all batches, some, none
        monkeypatch.setattr(analyzer, "tape_bytes", lambda *_, room=room: room)
        monkeypatch.setattr(memory, "CPU_TOKENS", 256)  # several batches
        passed.clear()
        analyze_quickly(run_copy, *flags, "--overwrite", "--format", "json")
        names = {path.name for path in (run_copy / "demo/influence/scores").iterdir()}
        found.append(({name: scores_of(run_copy, name) for name in names}, sum(passed)))
    (whole, once), (some, more), (none, most) = found
    phases = {"ekfac": 4, "kfac": 3, "diagonal": 3, "identity": 2}[strategy]
    # Rows that are tried before anything is computed, and rows whose labels are listed.
    others = 2 + 120
    once -= 9  # queries whose predictions are kept, the first time
    assert once == 120 + 9 + others < more < most == phases * 120 + 9 + others
    assert all(torch.equal(whole[name], some[name]) for name in whole)
    assert all(torch.equal(whole[name], none[name]) for name in whole)


def test_what_needs_tokens_as_they_passed_runs_the_model_again(run_copy, passed):
    """Low rank rotates the queries back; lambda left the rows' tokens in the eigenbasis."""
    analyze_quickly(run_copy, "--query_gradient_rank", "2", "--format", "json")
    assert sum(passed) == 2 * 120 + 9 + 2 + 9  # the last: predictions that are kept


@pytest.mark.parametrize("task", ["sst2", "stsb"])
@pytest.mark.parametrize("exact", [None, True])
@pytest.mark.parametrize("sample", [True, False])
def test_a_loss_has_the_gradient_of_the_output_times_its_slope(task, exact, sample):
    model = construct_bert(task, str(DEMO_MODEL)).double().eval()
    tables = small.tables(task)
    data = get_glue_dataset(
        task,
        "train",
        tables={n: small.datasets.Dataset.from_dict(t) for n, t in tables.items()},
        tokenizer=small.tf.AutoTokenizer.from_pretrained(DEMO_MODEL),
    )
    made = InfluenceTask(3, model.num_labels if exact else None)
    names, parameters = zip(*model.named_parameters(), strict=True)
    for row in range(4):
        batch = data.batch([row])
        logits = model(**{k: v for k, v in batch.items() if k not in ("labels", "row")}).logits
        output = (logits[:, -1] - logits[:, 0] if task == "sst2" else logits[:, 0]).sum()
        slope = made.slopes(logits, batch, sample)
        of_output = torch.autograd.grad(output, parameters, retain_graph=True, allow_unused=True)
        of_loss = torch.autograd.grad(
            made.loss(logits, batch, sample), parameters, allow_unused=True
        )
        for name, one, other in zip(names, of_output, of_loss, strict=True):
            if one is not None:
                assert torch.allclose(slope * one, other, rtol=1e-9, atol=1e-12), name


def test_three_classes_have_no_tape(tmp_path):
    rows = small.tables("mnli")
    path = small.write(tmp_path, "mnli", rows)
    place = ["--dataset_name", "mnli", "--checkpoint_dir", str(tmp_path / "runs")]
    start = ["--model_name_or_path", str(DEMO_MODEL), "--num_train_epochs", "1"]
    train.main([*place, "--dataset_path", path, *start])
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analyzer, "Tape", lambda *_: made.append(1))
        analyze.main([*place, "--max_queries", "3"])
    assert made == []


def test_a_pass_for_which_there_is_no_room_is_not_kept():
    tape = Tape(features=10, room=1000)
    tape.begin((0, 1), 20, 4)
    assert tape.recording is not None and tape.room == 200
    assert tape.find((0, 1)) is None  # not complete
    tape.begin((2,), 20, 4)
    assert tape.recording is None and tape.find((2,)) is None


def test_logits_of_rows_are_known_if_all_of_them_have_passed():
    tape = Tape(features=10, room=10**6)
    logits = torch.randn(5, 2)
    for rows in ((4, 1), (0, 3, 2)):
        assert tape.logits(5) is None
        tape.begin(rows, 20, 4)
        tape.recording.logits = logits[list(rows)]
    assert torch.equal(tape.logits(5), logits)
    assert tape.logits(4) is None and tape.logits(6) is None


def test_the_key_of_a_rotation_does_not_depend_on_threads():
    """A pass that one phase rotated must be found by a phase in another number of threads."""
    bases = torch.randn(20, 700, 700, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    keys = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            keys.append([modules.key_of(basis) for basis in bases])
    finally:
        torch.set_num_threads(before)
    assert keys[0] == keys[1] == keys[2]
    assert len(set(keys[0])) == len(bases)
