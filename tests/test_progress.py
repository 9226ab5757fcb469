"""One bar, or one line for each phase, tells what is left of the whole: exactly, once every phase
was measured.
"""

import io

import pytest

from attribution import progress
from attribution.progress import steps, whole

SECONDS = {"covariance": 3.0, "lambda": 6.0, "scores": 4.0}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch) -> Clock:
    ours = Clock()
    monkeypatch.setattr(progress, "clock", ours)
    return ours


def run(clock: Clock, members: int, see=lambda one: None) -> None:
    """Phases of ten batches each, in two parts, that take SECONDS together."""
    with whole(dict.fromkeys(SECONDS, 1.0), members) as one:
        for one.member in range(members):
            for phase, seconds in SECONDS.items():
                for part in ((0.0, 0.5), (0.5, 1.0)):
                    for _ in steps([0] * 5, phase, part=part):
                        clock.now += seconds / 10
                        see(one)


def test_what_is_left_is_exact_from_the_second_member_on_and_a_guess_before(clock):
    whole_time = 3 * sum(SECONDS.values())
    off = {}

    def see(one) -> None:
        member, phase = one.current
        share = (clock.now - one.begun) / SECONDS[phase]
        left = one.left(phase, share)
        off[clock.now - 100] = left - (whole_time - (clock.now - 100))

    run(clock, 3, see)
    errors = {past: abs(error) for past, error in off.items()}
    assert max(error for past, error in errors.items() if past > 13.5) < 1e-9
    assert 0 < max(errors.values()) < whole_time  # covariance alone is taken for a third
    assert errors[min(errors)] == pytest.approx(whole_time - 3 * 3 * 3.0)


def test_a_log_file_has_a_line_for_each_phase_and_one_a_minute(clock, capsys, monkeypatch):
    run(clock, 2)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" (")[0] for line in lines] == [
        f"member {member}/2, {number}/3 {phase}"
        for member in (1, 2)
        for number, phase in enumerate(SECONDS, 1)
    ]
    assert lines[0] == "member 1/2, 1/3 covariance (00:02, about 00:15 left)"  # 2.1 of 18 s
    assert lines[-1].endswith("about 00:04 left)")  # as it begins
    for phase in SECONDS:
        monkeypatch.setitem(SECONDS, phase, 0.3)
    run(clock, 2)
    assert capsys.readouterr().err == ""  # it is over before a line is due
    monkeypatch.setitem(SECONDS, "lambda", 600.0)
    run(clock, 1)
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if "lambda" in line]) == 9
    assert "\r" not in "".join(lines)


def test_a_terminal_has_one_bar_that_is_gone_at_the_end(clock, monkeypatch):
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    run(clock, 2)
    drawn = stream.getvalue().split("\r")
    shown = [line for line in drawn if "%" in line]
    percents = [int(line.partition("%")[0].split()[-1]) for line in shown]
    assert "member 2/2, 3/3 scores" in shown[-1] and percents[-1] > 95
    assert percents[len(percents) // 2] in range(30, 60)
    assert not drawn[-1].strip() and "\n" not in stream.getvalue()


def test_items_pass_through_in_order_and_other_processes_show_nothing(clock, capsys):
    assert list(steps([3, 1, 2], "rows", shown=False)) == [3, 1, 2]
    assert capsys.readouterr().err == ""
    found = []
    for one in steps(iter([3, 1, 2]), "rows", count=3):
        found.append(one)
        clock.now += 2
    assert found == [3, 1, 2]
    assert capsys.readouterr().err == "rows (00:02, about 00:04 left)\n"
