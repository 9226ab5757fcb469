"""Every table of both pages is made from results/, and a page that cannot be filled is
refused.
"""

import json
import re
from pathlib import Path

import pytest

from lab import pages
from lab.pages import PAGES, ROOT, fill


@pytest.mark.parametrize("page", PAGES)
def test_every_table_equals_the_one_made_from_results(page):
    text = (ROOT / page).read_text()
    assert "<!-- table " in text
    assert fill(text, ROOT / "results") == text, "run: make tables"


@pytest.mark.parametrize("page", PAGES)
def test_no_table_of_numbers_is_typed_by_hand(page):
    outside = re.sub(r"<!-- table .*?<!-- end -->", "", (ROOT / page).read_text(), flags=re.DOTALL)
    typed = [line for line in outside.splitlines() if line.startswith("|")]
    words = [re.sub(r"`[^`]*`|\]\([^)]*\)", "", line) for line in typed]  # no commands, no links
    assert [line for line in words if re.search(r"\d", line)] == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<!-- table nonsense -->\n<!-- end -->", "no table 'nonsense'"),
        ("<!-- table recipes -->\n", "'recipes' has no <!-- end -->"),
        (
            "<!-- table recipes -->\n<!-- table gpu -->\n<!-- end -->",
            "'recipes' has no <!-- end -->",
        ),
    ],
)
def test_a_page_that_cannot_be_filled_is_refused(text, reason):
    with pytest.raises(ValueError, match=re.escape(reason)):
        fill(text, ROOT / "results")


def test_text_without_a_marker_is_left_alone():
    assert fill("| a | b |\n", Path("nowhere")) == "| a | b |\n"


def test_below_a_table_stands_what_it_was_made_from_and_at_which_commit(tmp_path, monkeypatch):
    made = {
        "one": {"commit": "a" * 40},
        "two": {},
        "two.run": {"commit": "b" * 40 + "+"},
        "three": {"x": 1},
    }
    for name, content in made.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    monkeypatch.setitem(
        pages.TABLES,
        "some",
        lambda read: str([read(name) for name in ("one", "two", "three", "one")]),
    )
    line = fill("<!-- table some -->\n<!-- end -->", tmp_path).splitlines()[-2]
    known = "`results/one.json` (commit aaaaaaa), `results/two.json` (commit bbbbbbb+)"
    assert line == f"From {known}, `results/three.json`."
