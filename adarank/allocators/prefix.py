"""One random rank for all modules at each allocation (DyLoRA, arXiv 2210.07558)."""

from collections.abc import Callable

import torch
from torch import Tensor

from adarank.allocators.allocator import Request
from adarank.allocators.order import rank_in_group
from adarank.errors import whole_number


def prefix(minimum: int = 1) -> Callable[[Request], Tensor]:
    """Keep each module's first b triplets, with b ~ U{minimum, …, r_max} while the budget allows all triplets (DyLoRA).

    A smaller budget keeps the longest prefix that fits. r_max: the rank of the largest module. Scores are ignored.

    minimum: the smallest b, at least 1 (else SettingError); r_max if that is smaller.
    """
    minimum = whole_number("allocator.minimum", minimum)

    def allocate(request: Request) -> Tensor:
        scores, costs = request.scores, request.costs
        position = rank_in_group(torch.zeros_like(scores), request.modules)
        layer_costs = torch.zeros_like(costs).index_add_(0, position, costs)  # of the b-th triplets of all modules
        total, largest = layer_costs.sum(), (layer_costs > 0).sum()
        affordable = ((layer_costs.cumsum(0) <= request.budget) & (layer_costs > 0)).sum()
        smallest = largest.clamp(max=minimum)
        uniform = torch.rand((), device=scores.device, dtype=torch.float64, generator=request.generator)
        drawn = smallest + (uniform * (largest - smallest + 1)).long()
        return position < torch.where(total <= request.budget, drawn, affordable)

    return allocate
