"""A seeded control that keeps randomly drawn triplets, whatever their scores."""

import torch
from torch import Tensor

from adarank.allocators.allocator import Allocator, Request
from adarank.allocators.order import keep_top


def random(min_rank: int = 0, max_rank: int | None = None) -> Allocator:
    """Keep triplets drawn from the request's generator, active ones before pruned ones.

    A falling budget never brings a triplet back, as if one order of all triplets had been drawn at the start.

    min_rank, max_rank: the fewest and the most triplets a module keeps (None: no limit); see `Allocator`.
    """

    def allocate(request: Request) -> Tensor:
        mask = request.mask
        drawn = torch.rand(len(mask), generator=request.generator, device=mask.device)
        return keep_top(request, drawn + mask, min_rank, max_rank)

    return Allocator(allocate, min_rank, max_rank)
