"""Importance per parameter: what a triplet is worth for what it takes of a budget counted in parameters."""

import torch
from torch import Tensor

from adarank.allocators.allocator import Allocator, check_clamps
from adarank.allocators.order import keep_top


def by_cost(min_rank: int = 0, max_rank: int | None = None) -> Allocator:
    """Keep the triplets with the largest score ÷ cost, of equal ones those that come first, as many as the budget pays
    for: the greedy rule of the knapsack problem. Never above the budget; less than one triplet's cost is left over.

    min_rank, max_rank: of every module (None: no limit). It needs budget.unit=parameters, where a triplet takes
    d_in + d_out + 1: in triplets all cost the same. Raises SettingError for clamps that no module can keep.
    """
    check_clamps(min_rank, max_rank)

    def allocate(
        scores: Tensor, mask: Tensor, budget: int, cost: Tensor, module: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        return keep_top(scores / cost, budget, cost, module, min_rank, max_rank)

    return Allocator(allocate, min_rank, max_rank, unit="parameters")
