"""The same rank everywhere: the control that an adaptive allocation has to beat."""

import torch
from torch import Tensor

from adarank.allocators.allocator import Allocator
from adarank.allocators.order import keep_first, place_in_module


def uniform() -> Allocator:
    """Round by round, one triplet of every module, in each module by falling score, as long as the budget pays.

    Ranks differ by one at most where the budget does not divide evenly; the first modules get the rest.
    """

    def allocate(
        scores: Tensor, mask: Tensor, budget: int, cost: Tensor, module: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        in_turn = torch.argsort(place_in_module(scores, module), stable=True)
        return keep_first(in_turn, budget, cost)

    return Allocator(allocate)
