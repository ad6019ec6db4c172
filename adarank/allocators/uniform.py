"""The same rank everywhere, the control that an adaptive allocation has to beat."""

import torch
from torch import Tensor

from adarank.allocators.allocator import Allocator, Request
from adarank.allocators.order import keep_first, rank_in_group


def uniform() -> Allocator:
    """Keep the same number of triplets in every module, the most important ones of each.

    Ranks differ by at most one if the budget does not divide evenly; the first modules get the remainder.
    """

    def allocate(request: Request) -> Tensor:
        round_by_round = torch.argsort(rank_in_group(request.scores, request.modules), stable=True)
        return keep_first(request, round_by_round)

    return Allocator(allocate)
