"""Labels of rows, whatever a file writes them as: names and numbers of classes.

The same rules hold for training rows, validation rows and queries. Numbers are numbers in any
spelling (`1`, `01`, `1.0`); case, blanks, `-` and `_` in a class name do not count where classes
differ without them.
"""

import math
import re
import sys
from collections.abc import Sequence

LARGEST = 1e15  # size of a regression's label: its square must fit into float32
WHOLE = re.compile(r"[+-]?\d{1,400}", re.ASCII)
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def is_missing(value) -> bool:
    """Whether a cell holds no label: nothing, blanks, or the number NaN."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and not value.strip())


def number_of(value) -> float:
    """Number of a cell (of true: 1); NaN if it is none, as the texts `nan` and `NA` are."""
    if isinstance(value, (bool, int, float)):
        if abs(value) > sys.float_info.max:  # an integer that no float holds
            return math.inf
        return float(value)
    if isinstance(value, str) and NUMBER.fullmatch(value.strip()):
        return float(value)
    return math.nan


def value_of(value) -> float | None:
    """Value of a regression's label; None if it is no number, or too large to be learned."""
    number = number_of(value)
    return number if abs(number) <= LARGEST else None


def name_of(value) -> str:
    """Class name of a label: 3, 3.0 and `03` are the same class. Whole numbers stay exact."""
    if not isinstance(value, bool) and WHOLE.fullmatch(str(value).strip()):
        return str(int(value))
    number = math.nan if isinstance(value, bool) else number_of(value)
    if not math.isfinite(number):
        return str(value)
    return str(int(number)) if number.is_integer() else str(number)


def fold(name: str) -> str:
    """Class name without what does not count: case, blanks around it, and which of `-`, `_` and
    blanks stands between words.
    """
    return name.strip().casefold().replace("-", "_").replace(" ", "_")


def class_of(value, names: Sequence[str]) -> int | None:
    """Place among the class names of the class that a label names; None if it names none of them,
    or more than one. LABEL_1, as transformers calls an output without a name, is the class 1.
    """
    for name in (str(value), name_of(value), f"LABEL_{name_of(value)}"):
        if name in names:
            return names.index(name)
    folded = [fold(name) for name in names]
    wanted = fold(str(value))
    return folded.index(wanted) if folded.count(wanted) == 1 else None
