"""What modules of one model share in a pass: query, key and value read the same input tensor.

So they have one input covariance, one eigendecomposition and one rotation instead of three.
"""

import torch


class SharedInput:
    """One input tensor of the current pass, and what was computed from it for the modules that read
    it.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.users = tensor, 0  # users: modules that read it and are not done
        self.rotated: dict = {}  # (basis, bias, type) -> tokens in that basis
        self.leaders: dict = {}  # whether without bias -> the module that keeps the covariance


class Shared:
    """Per model: the inputs of the current pass (query, key and value read the same one) and equal
    bases.
    """

    def __init__(self) -> None:
        self.inputs: dict[int, SharedInput] = {}
        self.bases: list[torch.Tensor] = []
        self.complete = (
            True  # whether the current batch ends a group of batches; see EigenPairwiseTracker
        )
        self.first = True  # whether the batch passes for the first time; see `draws.fisher_column`

    def enter(self, tensor: torch.Tensor) -> SharedInput:
        """The entry of this input tensor; one more module will use it."""
        entry = self.inputs.setdefault(id(tensor), SharedInput(tensor))
        entry.users += 1
        return entry

    def leave(self, entry: SharedInput) -> None:
        """A module is done with the entry; after the last one it goes."""
        entry.users -= 1
        if entry.users == 0:
            self.inputs.pop(id(entry.tensor), None)

    def intern(self, basis: torch.Tensor) -> torch.Tensor:
        """The first basis with these values, so that equal bases are one object."""
        for known in self.bases:
            if (
                known.shape == basis.shape
                and known.dtype == basis.dtype
                and torch.equal(known, basis)
            ):
                return known
        self.bases.append(basis)
        return basis

    def clear(self) -> None:
        """Forgets everything, before another phase."""
        self.inputs.clear()
        self.bases.clear()
