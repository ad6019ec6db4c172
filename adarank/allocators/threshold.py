"""The rule of AdaLoRA's original code, which keeps too few triplets when scores tie."""

import torch
from torch import Tensor

from adarank.allocators.allocator import Allocator, Request


def threshold() -> Allocator:
    """Keep the triplets whose score exceeds the (n − budget)-th smallest, as AdaLoRA's original code does.

    All triplets that tie at that score are pruned, so that fewer than `budget` may remain (none, if all scores are
    equal). The default of variant="original"; use `global_top` otherwise.
    """

    def allocate(request: Request) -> Tensor:
        drop = len(request.scores) - request.budget
        if drop <= 0:
            return torch.ones_like(request.mask)
        return request.scores > request.scores.kthvalue(drop).values

    return Allocator(allocate, unit="triplets")
