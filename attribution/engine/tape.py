"""A tape of one pass over the rows: inputs and output gradients of linear layers, kept in memory
while an analysis runs.

Of two classes one output matters, z_1 - z_0, and a regression has one output. The gradient of any
label's loss, and of the exact Fisher's column, is a number a row times the gradient of that output.
So covariances, lambda and scores need one forward and one backward pass: the first phase records
it, and later phases read it and multiply. Lambda leaves tokens in the eigenbasis, in place of those
that passed, for the scores. A batch for which there is no room passes through the model again, with
the same numbers.

Symbols: B examples of a batch, T tokens, D features.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch


class Stream:
    """Inputs, or output gradients, of linear layers in one batch, with their rotations."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.users = 0  # modules that read it and are not done
        self.leaders: dict = {}  # whether without bias -> the module that keeps the covariance
        self.alive = 0  # positions up to the last one that is not zero in all rows; 0: not counted
        self.tokens: dict = {None: tensor}  # key of a rotation (None: none) -> tokens

    @property
    def tensor(self) -> torch.Tensor:
        """The tokens (B, T, D), or (B, D), as they passed."""
        return self.tokens[None]

    def rotated(self, key, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Tokens in the rotation of this key, which make() computes once."""
        if key not in self.tokens:
            self.tokens[key] = make()
        return self.tokens[key]

    def keep_one(self) -> None:
        """Frees all but one rotation, or the tokens as they passed if there is none."""
        rotations = [key for key in self.tokens if key is not None and key[0] is not None]
        kept = rotations[0] if rotations else None
        self.tokens = {kept: self.tokens[kept]}
        self.leaders.clear()


@dataclass
class Pass:
    """One batch on the tape."""

    logits: torch.Tensor | None = None  # (B, C); None: not complete
    # Module, its input and its output gradient, in the order of the backward pass.
    steps: list[tuple[object, Stream, Stream]] = field(default_factory=list)

    @property
    def unrotated(self) -> bool:
        """Whether all tokens are there as they passed."""
        return all(None in stream.tokens for _, *streams in self.steps for stream in streams)


class Tape:
    """Passes of batches through a model.

    features: inputs and outputs of its linear layers. room: bytes that the tape may take.
    """

    def __init__(self, features: int, room: int) -> None:
        self.features = features
        self.room = room
        self.passes: dict[tuple[int, ...], Pass] = {}  # by the rows of the batch
        self.recording: Pass | None = None
        self.rotated = True  # whether tokens in the eigenbasis will do for the current phase

    def logits(self, count: int) -> torch.Tensor | None:
        """Logits (count, C) of the first rows of a data set; None unless all have passed."""
        known = {rows: one.logits for rows, one in self.passes.items() if one.logits is not None}
        rows = [row for batch in known for row in batch]
        if sorted(rows) != list(range(count)):
            return None
        return torch.cat(list(known.values()))[torch.tensor(rows).argsort()]

    def find(self, rows: tuple[int, ...]) -> Pass | None:
        """The complete pass of these rows; None if it is not on the tape."""
        found = self.passes.get(rows)
        if found is None or found.logits is None or not (self.rotated or found.unrotated):
            return None
        return found

    def begin(self, rows: tuple[int, ...], tokens: int, itemsize: int) -> None:
        """Begins to record a pass of these rows, if there is room for it.

        tokens: with padding. itemsize: bytes of a number.
        """
        self.recording = None
        size = tokens * self.features * itemsize
        if rows not in self.passes and size <= self.room:
            self.room -= size
            self.recording = self.passes[rows] = Pass()
