"""Tables of timings say what was measured, and a printed profile is read back."""

import pytest

from lab.timings import read_profile, speed_report


def test_the_report_shows_seconds_ratios_memory_and_agreement():
    seconds = {"stock": {"all": 30.0}, "ours": {"all": 4.0}}
    spearman = {"stock": {"ours": 0.999991, "stock again": 0.998}, "stock again": {"ours": 0.9999}}
    found = {
        "rows": 512,
        "queries": 64,
        "seconds": seconds,
        "times faster": {"all": 7.5},
        "spearman": spearman,
    }
    found["peak"] = {"stock": 2**31, "ours": 2**30}
    text = speed_report({"cases": {"sst2": found}})
    assert "| mean Spearman with stock | - | 0.999991 | - |" in text
    assert "of stock again, with stock | 0.998000 | - |" in text
    assert "| all | 30.0 s | 4.0 s | 7.5 |" in text and "| 2.00 GiB | 1.00 GiB | 2.0 |" in text


def test_a_printed_profile_is_read_back():
    text = "|  Action \t|  Mean \t|  Calls \t|  Total \t|  % \t|\n----\n"
    text += "|  Total \t|  - \t|  2 \t|  3.5 \t|  100 % \t|\n"
    text += "|  Fit Lambda \t|  1.5 \t|  1 \t|  1.5 \t|  43 \t|\n"
    first, second = read_profile(text)
    assert first["mean_seconds"] is None and first["percentage"] == 100
    assert second == {
        "action": "Fit Lambda",
        "mean_seconds": 1.5,
        "calls": 1,
        "total_seconds": 1.5,
        "percentage": 43,
    }
    with pytest.raises(ValueError, match="no table"):
        read_profile("nothing")
