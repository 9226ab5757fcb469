"""The scale benchmark fits exponents over what takes long, and its rows are the same each time."""

from lab import scale
from lab.timings import STEPS, scale_table
from pipeline import load_tables


def test_rows_are_drawn_the_same_each_time_and_open_as_mnli(tmp_path):
    tables = []
    for name in ("a", "b"):
        scale.generate(tmp_path / name, 50)
        tables.append(load_tables("mnli", str(tmp_path / name)))
    assert tables[0]["train"].to_dict() == tables[1]["train"].to_dict()
    assert {split: len(table) for split, table in tables[0].items()} == {
        "train": 50,
        "validation_matched": 32,
        "validation_mismatched": 32,
    }


def test_exponents_are_fitted_over_sizes_that_take_long():
    measured = {
        str(n): {step: {"seconds": n / 1000, "peak": 2.0**30} for step in STEPS}
        for n in (5_000, 20_000, 40_000)
    }
    line = next(
        line
        for line in scale_table({"sizes": measured}).splitlines()
        if line.startswith("| lambda")
    )
    assert line.split("|")[-3:-1] == [" 1.00 ", " 0.00 "] and "5.0 s, 1.00 GiB" in line
