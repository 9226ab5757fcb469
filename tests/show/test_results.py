"""What a study leaves can be drawn again."""

import json

import numpy as np
import pytest
from running import ROOT

from attribution.files import Refused, read_json
from attribution.show import plotting, results


def test_a_result_is_saved_with_its_surroundings_and_drawn_again_as_it_was(tmp_path, capsys):
    drawn, stem, figure = [], tmp_path / "results" / "lds_demo", tmp_path / "figure.png"
    result = {"scores": {"b": 1.0, "a": [None, 2.5]}}
    results.save(
        result,
        stem,
        figure,
        markdown="| a |",
        draw=lambda *given: drawn.append(given),
        arguments={"alpha": 0.5},
        device="cpu",
        arrays={"masks": np.eye(2)},
        fingerprints={"weights": "1f"},
    )
    assert np.array_equal(np.load(stem.with_suffix(".npz"))["masks"], np.eye(2))
    results.redraw(stem, figure, lambda *given: drawn.append(given))
    assert drawn == [(result, figure)] * 2 and read_json(stem.with_suffix(".json")) == result
    assert stem.with_suffix(".md").read_text() == "| a |\n"
    around = json.loads(stem.with_suffix(".run.json").read_text())
    assert around["arguments"] == {"alpha": "0.5"} and around["fingerprints"] == {"weights": "1f"}
    assert {"versions", "commit", "device", "processor", "command"} <= set(around)
    assert str(stem) in capsys.readouterr().out


def test_without_a_result_there_is_nothing_to_draw(tmp_path):
    with pytest.raises(Refused, match="lds_demo.json; run without --plot_only"):
        results.redraw(tmp_path / "lds_demo", tmp_path / "figure.png", pytest.fail)


@pytest.mark.parametrize(
    ("name", "draw"),
    [("lds_sst2", plotting.draw_lds), ("counterfactual_sst2", plotting.draw_counterfactual)],
)
def test_a_committed_result_can_be_drawn(name, draw, tmp_path):
    results.redraw(ROOT / "results" / name, tmp_path / "figure.png", draw)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
