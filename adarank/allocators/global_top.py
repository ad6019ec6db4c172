"""The most important triplets of all modules together (arXiv 2303.10512, eq. 6)."""

import torch
from torch import Tensor

from adarank.allocators.allocator import Allocator, check_clamps
from adarank.allocators.order import keep_top


def global_top(min_rank: int = 0, max_rank: int | None = None) -> Allocator:
    """Keep the triplets with the largest scores, of equal ones those that come first, as many as the budget pays for.

    min_rank, max_rank: of every module (None: no limit). Counted in triplets (every cost is 1) that is exactly the
    budget; counted in parameters the first triplet that does not fit ends it, so that less than one triplet's cost may
    be left over. Raises SettingError for clamps that no module can keep.
    """
    check_clamps(min_rank, max_rank)

    def allocate(
        scores: Tensor, mask: Tensor, budget: int, cost: Tensor, module: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        return keep_top(scores, budget, cost, module, min_rank, max_rank)

    return Allocator(allocate, min_rank, max_rank)
