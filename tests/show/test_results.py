"""What a study leaves can be drawn again."""

import json
from pathlib import Path

import numpy as np
import pytest
from running import ROOT

from attribution.files import Refused, read_json
from attribution.show import plotting, results


def test_a_result_is_saved_with_its_surroundings_and_drawn_again_as_it_was(tmp_path, capsys):
    drawn = []
    stem = tmp_path / "results" / "lds_v1.2"  # the name of a data set may have dots
    figure = tmp_path / "figure.png"
    place = results.Place(stem, figure)
    result = {"scores": {"b": 1.0, "a": [None, 2.5]}}
    results.save(
        result,
        place,
        markdown="| a |",
        draw=lambda *given: drawn.append(given),
        arguments={"alpha": 0.5},
        device="cpu",
        arrays={"masks": np.eye(2)},
        fingerprints={"weights": "1f"},
    )
    assert np.array_equal(np.load(f"{stem}.npz")["masks"], np.eye(2))
    results.redraw(place, lambda *given: drawn.append(given))
    assert drawn == [(result, figure)] * 2 and read_json(place.file(".json")) == result
    assert place.file(".md").read_text() == "| a |\n"
    around = json.loads(place.file(".run.json").read_text())
    assert around["arguments"] == {"alpha": "0.5"} and around["fingerprints"] == {"weights": "1f"}
    assert {"versions", "commit", "device", "processor", "command"} <= set(around)
    assert str(stem) in capsys.readouterr().out


def test_without_a_result_there_is_nothing_to_draw(tmp_path):
    with pytest.raises(Refused, match="lds_demo.json; run without --plot_only"):
        results.redraw(results.Place(tmp_path / "lds_demo", tmp_path / "f.png"), pytest.fail)


@pytest.mark.parametrize(
    ("name", "draw"),
    [("lds_sst2", plotting.draw_lds), ("counterfactual_sst2", plotting.draw_counterfactual)],
)
def test_a_committed_result_can_be_drawn(name, draw, tmp_path):
    results.redraw(results.Place(ROOT / "results" / name, tmp_path / "figure.png"), draw)
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_study_is_below_its_run_or_named_by_its_data_set_in_another_folder():
    run = Path("checkpoints/demo")
    place = results.place_of("lds", run)
    assert place == results.Place(run / "studies/lds", run / "studies/lds.png")
    place = results.place_of("counterfactual", run, Path("results"), None, "_harmful")
    stem = Path("results/counterfactual_demo_harmful")
    assert place == results.Place(stem, stem.with_name(f"{stem.name}.png"))
    drawn = results.place_of("lds", run, None, Path("a.png"))
    assert drawn == results.Place(run / "studies/lds", Path("a.png"))
