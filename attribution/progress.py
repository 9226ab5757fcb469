"""Progress of an analysis: one bar over all phases and members, with the time of the whole.

    with whole({"covariance": 512, "lambda": 512}, members=4) as progress:
        for progress.member in range(4):
            for batch in steps(batches, "lambda"):       # member 2/4, 2/2 lambda |####    | 41 %
                ...

On a terminal there is a bar while a phase runs; in a pipe or a log file a line for each phase that
is not over in two seconds, and one a minute. What is left is estimated: a phase takes as long as it
did for an earlier member, or else by its weight, as those did that were measured in this run.
"""

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Sized

from tqdm import tqdm

SOON = 2.0  # seconds without a line in a log file, from which a phase has its first one
EVERY = 60.0  # seconds between two lines of a phase
OFTEN = 0.1  # seconds between two drawings of the bar
FORM = "{desc} |{bar}| {percentage:3.0f} %{postfix}"


class Whole:
    """All phases of an analysis, in their order, once for each member."""

    def __init__(self, weights: dict[str, float], members: int = 1) -> None:
        """weights: phase -> about how long it takes, in any unit."""
        self.weights = weights
        self.members = members
        self.member = 0  # the present one, from 0 on
        self.took: dict[str, float] = {}  # phase -> seconds, where one has ended
        self.start = self.begun = self.said = clock()
        self.current: tuple[int, str] | None = None
        self.told = False  # whether the present phase had a line

    def label(self, phase: str) -> str:
        """`member 2/4, 3/4 lambda`."""
        parts = [f"member {self.member + 1}/{self.members}"] if self.members > 1 else []
        names = [*self.weights]
        counted = phase in names and len(names) > 1
        number = f"{names.index(phase) + 1}/{len(names)} " if counted else ""
        return ", ".join([*parts, number + phase])

    def left(self, phase: str, share: float) -> float | None:
        """Seconds until the whole is done, at this share of a phase; None where nothing tells."""
        spent = clock() - self.begun
        known = ({phase: spent / share} if share > 0 else {}) | self.took
        names = [*self.weights]
        if phase not in names or not known:
            return None
        rate = sum(known.values()) / sum(self.weights.get(name, 0.0) for name in known)
        expected = {name: known.get(name, rate * self.weights[name]) for name in names}
        later = sum(expected[name] for name in names[names.index(phase) + 1 :])
        others = (self.members - self.member - 1) * sum(expected.values())
        return max(expected[phase] - spent, 0.0) + later + others

    def steps(self, items, phase: str, count: int, part: tuple[float, float]) -> Iterator:
        """The items of one phase, or of a part of it, under the bar; see `steps`."""
        if self.current != (self.member, phase):
            self.current = self.member, phase
            self.begun = clock()
            self.told = False
        terminal = sys.stderr.isatty()
        shape = {"total": 1, "leave": False, "bar_format": FORM, "delay": OFTEN}  # drawn by `show`
        with tqdm(**shape, disable=not terminal) as bar, contextlib.ExitStack() as stack:
            stack.callback(bar.clear)  # a bar that was never due is not cleared at its end
            for done, item in enumerate(items):
                share = part[0] + (part[1] - part[0]) * done / count
                wait = OFTEN if terminal else EVERY if self.told else SOON
                if clock() - self.said >= wait:
                    self.show(bar, phase, share, terminal)
                yield item
        if part[1] >= 1 and phase in self.weights:
            self.took[phase] = clock() - self.begun

    def show(self, bar: tqdm, phase: str, share: float, terminal: bool) -> None:
        """Draws the bar, or prints a line."""
        past, left = clock() - self.start, self.left(phase, share)
        times = tqdm.format_interval(past)
        times += "" if left is None else f", about {tqdm.format_interval(left)} left"
        self.said = clock()
        self.told = True
        if not terminal:
            print(f"{self.label(phase)} ({times})", file=sys.stderr)
            return
        bar.n = 0 if left is None else past / ((past + left) or 1)
        bar.set_description_str(self.label(phase), refresh=False)
        bar.set_postfix_str(times)


clock = time.perf_counter
opened: list[Whole] = []  # the one that runs, if there is one


@contextlib.contextmanager
def whole(weights: dict[str, float], members: int = 1) -> Iterator[Whole]:
    """Context in which `steps` count as phases of one analysis, see `Whole`."""
    one = Whole(weights, members)
    opened.append(one)
    try:
        yield one
    finally:
        opened.remove(one)


def steps(
    items: Iterable,
    phase: str,
    *,
    count: int | None = None,
    part: tuple[float, float] = (0.0, 1.0),
    shown: bool = True,
) -> Iterable:
    """The items, while the progress of this phase is shown.

    count: number of items, where they have no length. part: begin and end of what they are of the
    phase. shown: False on all processes but the main one.
    """
    if not shown:
        return items
    if count is None:
        assert isinstance(items, Sized)
        count = len(items)
    progress = opened[-1] if opened else Whole({phase: 1.0})
    return progress.steps(items, phase, count, part)
