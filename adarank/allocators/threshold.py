"""The rule of AdaLoRA's original code, ties and all."""

import torch
from torch import Tensor

from adarank.allocators.allocator import Allocator


def threshold() -> Allocator:
    """Keep the triplets whose score exceeds the (n − budget)-th smallest one.

    Where scores tie at that value all of them are dropped, so that fewer than `budget` may be kept (none, if every
    score is equal): the original's behaviour, kept for mode="original". Use `global_top` otherwise.
    """

    def allocate(
        scores: Tensor, mask: Tensor, budget: int, cost: Tensor, module: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        drop = len(scores) - budget
        if drop <= 0:
            return torch.ones_like(mask)
        return scores > scores.kthvalue(drop).values

    return Allocator(allocate, unit="triplets")
