"""What is stored is used, what is damaged is made again, what is something else's is refused, and
nothing is half.
"""

import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from running import (
    DEMO,
    QUICK,
    ROOT,
    SMALL,
    analyze_quickly,
    close,
    in_parts,
    influence_of,
    refusal,
    scores_of,
)

import analyze
import train
from attribution.engine.resume import Work
from attribution.files import Refused
from attribution.influence.analysis import Influence
from pipeline import get_glue_dataset


def test_a_second_run_computes_nothing_and_a_damaged_file_is_made_again(
    run_copy, capsys, monkeypatch
):
    analyze_quickly(run_copy)
    first = scores_of(run_copy)
    folder = run_copy / "demo/influence"
    factor = folder / "factors/ekfac/lambda_matrix.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr("attribution.engine.stock.fit_factors", None)
        patch.setattr("attribution.engine.stock.compute_scores", None)
        analyze_quickly(run_copy)
    factor.write_bytes(factor.read_bytes()[:-10])
    (folder / "scores/ekfac_damping0.0001/pairwise_scores.safetensors").write_bytes(b"short")
    analyze_quickly(run_copy)
    assert "factors are damaged" in capsys.readouterr().err
    assert torch.equal(scores_of(run_copy), first)


def test_an_interrupted_stock_run_goes_on_after_its_last_finished_part(run_copy, monkeypatch):
    """kronfluence's own path, in its partitions; ours goes on within a phase, see
    tests/engine/test_resume.py.
    """
    in_parts(monkeypatch, 3)
    arguments, name = ("--stock",), "ekfac_stock_damping0.0001"
    analyze_quickly(run_copy, *arguments)
    reference = scores_of(run_copy, name)
    shutil.rmtree(run_copy / "demo/influence")
    done, real = [], Work.run

    def counted(self, part, patterns, call):
        real(self, part, patterns, lambda: (done.append(part), call()))

    def die_after_five(self, part, patterns, call):
        if len(done) == 5:
            raise KeyboardInterrupt
        counted(self, part, patterns, call)

    with monkeypatch.context() as patch:
        patch.setattr(Work, "run", die_after_five)
        with pytest.raises(KeyboardInterrupt):
            analyze_quickly(run_copy, *arguments)
    first = list(done)
    # What was being written when the process died: a truncated file under the final name.
    unfinished = run_copy / "demo/influence/kronfluence/factors_ekfac_stock"
    (unfinished / "lambda_matrix_data_partition0_module_partition0.safetensors").write_bytes(
        b"half"
    )
    with monkeypatch.context() as patch:
        patch.setattr(Work, "run", counted)
        analyze_quickly(run_copy, *arguments)
    assert len(done) == len(set(done)) and first == done[:5]
    assert torch.equal(scores_of(run_copy, name), reference)


def test_a_killed_process_leaves_nothing_that_counts_and_the_rerun_is_right(run_copy):
    command = [sys.executable, "analyze.py", *QUICK, "--checkpoint_dir", str(run_copy)]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    record = run_copy / "demo/influence/kronfluence/factors_ekfac/finished.json"
    while process.poll() is None and not (record.exists() and "covariance" in record.read_text()):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run_copy / "demo/influence/scores").exists()
    analyze_quickly(run_copy)
    scores = scores_of(run_copy)
    shutil.rmtree(run_copy / "demo/influence")
    analyze_quickly(run_copy)
    assert torch.allclose(scores_of(run_copy), scores, rtol=1e-3, atol=1e-3 * scores.abs().max())


def test_factors_of_an_earlier_model_are_refused_and_named(run_copy):
    analyze_quickly(run_copy, "--fisher", "sampled")
    analyze_quickly(run_copy)
    first = scores_of(run_copy)
    train.main([*SMALL, "--checkpoint_dir", str(run_copy), "--seed", "1", "--overwrite"])
    with pytest.raises(Refused, match="with other weights; replace them"):
        analyze_quickly(run_copy)
    with pytest.raises(Refused, match="other weights"):
        analyze_quickly(run_copy, "--damping_factor", "0.1")  # other scores, the same factors
    analyze_quickly(run_copy, "--fisher", "sampled", "--overwrite")
    analyze_quickly(run_copy, "--overwrite")
    assert not close(scores_of(run_copy), first, 0.1)
    with pytest.raises(Refused, match="another seed"):
        analyze_quickly(run_copy, "--fisher", "sampled", "--seed", "5")


@pytest.mark.parametrize("strategy", ["ekfac", "replay"])
def test_after_another_training_a_question_names_the_command_that_lets_it_be_asked(
    run_copy, capsys, strategy
):
    where = [*DEMO, "--checkpoint_dir", str(run_copy), "--factor_strategy", strategy]
    question = [*where, "--query_text", "a film"]

    def asked() -> str:
        capsys.readouterr()
        analyze.main([*question, "--format", "json"])
        return capsys.readouterr().out

    analyze.main([*where, "--max_queries", "7"])
    before = asked()
    train.main([*SMALL, "--checkpoint_dir", str(run_copy), "--seed", "1", "--overwrite"])
    for stale in (question, [*where, "--query_index", "3"]):
        error = refusal(capsys, analyze.main, stale)
        assert "other weights" in error
    command = re.search("replace them with: python analyze.py (.*) or use", error)[1]
    assert "--max_queries 7" in command
    analyze.main(shlex.split(command))
    after = asked()
    assert after != before and asked() == after


def test_what_is_not_scored_is_scored_once_and_then_shown_without_computing(
    run_copy, capsys, monkeypatch
):
    analyze_quickly(run_copy, "--query_index", "3", "--top_k", "2")
    assert "computing on" in capsys.readouterr().out
    monkeypatch.setattr(Influence, "compute", None)
    analyze_quickly(run_copy, "--query_index", "3", "--top_k", "2")
    lines = capsys.readouterr().out.splitlines()
    scores, data = scores_of(run_copy)[3], get_glue_dataset("demo", "train")
    best = int(scores.argmax())
    place, shown = next(found for found in enumerate(lines) if f"row {best}  " in found[1])
    text = " ".join(" ".join(lines[place:]).split())
    assert data.text(best) in text and f"  {data.label_name(best)}  " in shown
    share = (scores[best] / scores.abs().sum()).item()
    assert f"{share:.1%}" in shown
    assert len([line for line in lines if re.search(r"%  \w+ +row +\d+  ", line)]) == 4
    with pytest.raises(Refused, match="--query_index must be from 0 to 8"):
        analyze_quickly(run_copy, "--query_index", "9")


def test_a_question_without_max_queries_is_about_the_rows_that_were_scored(run_copy, capsys):
    where = [
        "--dataset_name",
        "demo",
        "--checkpoint_dir",
        str(run_copy),
        "--factor_strategy",
        "identity",
    ]
    analyze.main([*where, "--max_queries", "7"])
    capsys.readouterr()
    analyze.main([*where, "--query_index", "6", "--top_k", "2"])
    assert "query 6" in capsys.readouterr().out
    assert "from 0 to 6" in refusal(capsys, analyze.main, [*where, "--query_index", "7"])
    again = refusal(capsys, analyze.main, where)
    assert "made with other query rows; replace them with: " in again


def test_a_full_disk_leaves_no_scores(run_copy, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("attribution.files.save_file", full)
    assert "disk is full" in refusal(
        capsys, analyze.main, [*QUICK, "--checkpoint_dir", str(run_copy)]
    )
    assert not list((run_copy / "demo/influence/scores").rglob("*scores*"))


def test_another_margin_makes_pairwise_scores_stale_and_self_influence_not(run_copy, monkeypatch):
    analyze_quickly(run_copy, "--self_influence")
    monkeypatch.setattr("attribution.influence.stored.MARGIN", "another function")
    with pytest.raises(Refused, match="pairwise scores .* with another margin; replace them with"):
        analyze_quickly(run_copy)
    scores = influence_of(run_copy).scores
    assert scores.load("self") is not None
    with pytest.raises(Refused, match="another margin"):
        scores.load("pairwise")
