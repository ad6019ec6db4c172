"""A seeded control: the budget falls on triplets drawn at random, whatever their scores."""

import torch
from torch import Tensor

from adarank.allocators.allocator import Allocator, check_clamps
from adarank.allocators.order import keep_top


def random(min_rank: int = 0, max_rank: int | None = None) -> Allocator:
    """Keep triplets drawn from the generator, those that are on before those that are off.

    A falling budget thus prunes at random and what is pruned stays off: as if one order of all triplets had been drawn
    at the start, and the final rank map does not change from one allocation to the next. min_rank, max_rank: of every
    module (None: no limit). Raises SettingError for clamps that no module can keep.
    """
    check_clamps(min_rank, max_rank)

    def allocate(
        scores: Tensor, mask: Tensor, budget: int, cost: Tensor, module: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        drawn = torch.rand(len(mask), generator=generator, device=mask.device)
        return keep_top(drawn + mask, budget, cost, module, min_rank, max_rank)

    return Allocator(allocate, min_rank, max_rank)
