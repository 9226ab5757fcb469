"""Words of texts, and whether two rows have nearly the same texts.

Answers and duplicates ask the same function, so that a row is called nearly the same by both or by
neither.
"""

import re

ALIKE = 0.75  # of the words of two texts that both have, from which they are nearly the same
WORD = re.compile(r"\w+")


def words_of(columns: list[str] | tuple[str, ...]) -> list[set[str]]:
    """Words of each text column, in lower case."""
    return [{word.casefold() for word in WORD.findall(text)} for text in columns]


def are_alike(first: list[set[str]], second: list[set[str]]) -> bool:
    """Whether texts of these words are nearly the same in every column, in whatever order.

    All columns count: the same premise with another hypothesis is another row.
    """
    return all(
        bool(one) and len(one & other) >= ALIKE * len(one | other)
        for one, other in zip(first, second, strict=True)
    )
