"""What a figure shows are the numbers of its result, each where its name stands."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from running import ROOT

from attribution.evidence.arguments import TURNED
from attribution.files import read_json
from attribution.show import plotting

STUDIES = sorted(
    path.stem
    for study in ("lds", "counterfactual")
    for path in (ROOT / "results").glob(f"{study}_*.json")
    if not path.stem.endswith(".run")
)


@pytest.fixture
def drawn(monkeypatch):
    """draw(name of a committed result) -> (the result, its figure)."""
    figures = []
    monkeypatch.setattr(plotting, "save", lambda figure, path: figures.append(figure))

    def draw(name: str):
        result = read_json(ROOT / "results" / f"{name}.json")
        study = name.split("_")[0]
        getattr(plotting, f"draw_{study}")(result, ROOT / "nowhere.png")
        return result, figures[-1]

    yield draw
    for figure in figures:
        plt.close(figure)


def ends(collection) -> np.ndarray:
    """(lines, 2 ends, x and y) of a collection of lines."""
    return np.array(list(collection.get_segments()))


@pytest.mark.parametrize("name", [name for name in STUDIES if name.startswith("lds")])
def test_bars_and_intervals_are_the_lds_of_their_names(drawn, name):
    result, figure = drawn(name)
    (bars,) = figure.axes
    names = [label.get_text() for label in bars.get_yticklabels()]
    assert sorted(names) == sorted(result["scores"])
    kinds = [kind for kind in ("plain", "balanced", "output") if kind in result["ceiling"]]
    assert len(kinds) == 3 - (name != "lds_stsb")
    for kind, found, intervals in zip(kinds, bars.containers, bars.collections, strict=True):
        entries = [result["scores"][one][kind] for one in names]
        assert [bar.get_width() for bar in found] == pytest.approx(
            [entry["lds"] for entry in entries]
        )
        assert ends(intervals)[:, :, 0] == pytest.approx(
            np.array([entry["interval"] for entry in entries])
        )
    ceilings = [
        line.get_xdata()[0]
        for line in bars.lines
        if line.get_linestyle() == "--" and len(line.get_xdata())
    ]
    known = [kind for kind in kinds if result.get("ceiling_known", {}).get(kind, True)]
    assert sorted(ceilings) == pytest.approx(sorted(result["ceiling"][kind] for kind in known))


@pytest.mark.parametrize("name", [name for name in STUDIES if name.startswith("counterfactual")])
def test_lines_and_intervals_are_the_shares_of_their_arms(drawn, name):
    result, figure = drawn(name)
    (axes,) = figure.axes
    assert {line.get_label() for line in axes.lines} == {*result["strategies"]}
    assert {text.get_text() for text in axes.texts} == {*result["strategies"]}
    for line, intervals in zip(axes.lines, axes.collections, strict=True):
        curve = result["curves"][line.get_label()]
        turned = TURNED[result.get("direction", "helpful")]
        assert line.get_ydata() == pytest.approx(curve[turned])
        assert ends(intervals)[:, :, 1] == pytest.approx(np.array(curve[f"{turned}_interval"]))
        assert np.round(line.get_xdata(), -1) == pytest.approx(np.round(result["removals"], -1))


def test_every_committed_figure_of_a_study_has_its_result(drawn):
    figures = {path.stem for path in (ROOT / "figure").glob("*_*.png")}
    predicted = {
        one for one in figures if one.startswith("predicted")
    }  # tests/lab/test_predicted.py
    assert figures - predicted == set(STUDIES)
    assert all(read_json(ROOT / "results" / f"{name}.run.json") for name in figures)
