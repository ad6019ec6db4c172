"""What a reallocation leaves behind."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Allocation:
    """One reallocation.

    step: the optimiser step it followed; budget: what was allowed, in `unit` ("triplets" or "parameters"); kept:
    triplets kept, a scalar tensor; parameters: what they cost, Σ d_in + d_out + 1, a scalar tensor; scores [triplets]
    and mask bool [triplets] as they were; module int64 [triplets]: index into names.
    """

    step: int
    budget: int
    unit: str
    kept: Tensor
    parameters: Tensor
    scores: Tensor
    mask: Tensor
    module: Tensor
    names: tuple[str, ...]

    @property
    def ranks(self) -> dict[str, int]:
        """{module name: triplets kept}. Reading it synchronises with the device."""
        counts = torch.bincount(self.module[self.mask], minlength=len(self.names))
        return dict(zip(self.names, counts.tolist(), strict=True))
