"""Seeded controls: chance draws the triplets that stay, or only how many of them each module keeps."""

import torch
from torch import Tensor

from adarank.allocators.allocator import Allocator, Request
from adarank.allocators.order import keep_top, module_starts, rank_in_group


def random(min_rank: int = 0, max_rank: int | None = None, ranks_only: bool = False) -> Allocator:
    """Keep triplets drawn from the request's generator, active ones before pruned ones.

    By default a falling budget never brings a triplet back, as if one order of all triplets had been drawn at the
    start.

    min_rank, max_rank: the fewest and the most triplets a module keeps (None: no limit); see `Allocator`.
    ranks_only: the draw decides how many triplets each module keeps, and it keeps its most important ones, as `uniform`
        does. This control differs from `global_top` in how many triplets each module keeps, and in that a module's rank
        never rises while the budget falls; its triplets may change places.
    """

    def allocate(request: Request) -> Tensor:
        mask = request.mask
        drawn = torch.rand(len(mask), generator=request.generator, device=mask.device) + mask
        return keep_top(request, _by_importance(drawn, request) if ranks_only else drawn, min_rank, max_rank)

    return Allocator(allocate, min_rank, max_rank)


def _by_importance(keys: Tensor, request: Request) -> Tensor:
    """The same keys [n], sorted within each module: its most important triplet has the highest."""
    starts = module_starts(request.modules)
    descending = torch.zeros_like(keys)
    descending[starts + rank_in_group(keys, request.modules)] = keys
    return descending[starts + rank_in_group(request.scores, request.modules)]
