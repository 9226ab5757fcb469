"""Tables show what a result holds; committed tables are those of the committed results."""

import json

import pytest
from running import ROOT

from attribution.show import tables


def test_columns_are_as_wide_as_their_widest_cell():
    text = tables.aligned(["score", "LDS"], [["a", "0.5"], ["longer name", "-"]])
    assert text.splitlines() == ["score        LDS", "a            0.5", "longer name    -"]
    assert tables.markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_a_number_stands_with_its_interval_and_a_difference_with_its_sign():
    assert tables.with_interval(0.5, [0.25, 0.75]) == "0.500 [0.250, 0.750]"
    assert tables.with_interval(0.5, [-0.25, 0.75], "+.3f") == "+0.500 [-0.250, +0.750]"
    assert tables.with_interval(0.5) == "0.500" and tables.with_interval(None) == "-"


@pytest.mark.parametrize("dataset", ["demo", "sst2"])
@pytest.mark.parametrize(
    ("study", "draw"),
    [("lds", tables.lds_markdown), ("counterfactual", tables.counterfactual_markdown)],
)
def test_a_committed_result_gives_its_committed_table_though_json_sorts_its_keys(
    study, draw, dataset
):
    path = ROOT / "results" / f"{study}_{dataset}.json"
    assert draw(json.loads(path.read_text())) + "\n" == path.with_suffix(".md").read_text()
