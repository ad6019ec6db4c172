"""One rank for all modules, drawn anew at each allocation (DyLoRA, arXiv 2210.07558)."""

from collections.abc import Callable

import torch
from torch import Tensor

from adarank.allocators.order import place_in_module
from adarank.errors import SettingError


def prefix(minimum: int = 1) -> Callable[..., Tensor]:
    """The first b triplets of every module, b ~ U{minimum, …, r_max} while the budget pays for all; the scores do not count.

    Where the budget pays for less, b is the longest prefix of all modules that it pays for. r_max: the triplets of the
    largest module. minimum: at least 1 (SettingError below), and r_max where it is larger.
    """
    if minimum < 1:
        raise SettingError(f"allocator.minimum={minimum} is no rank; valid: at least 1")

    def allocate(
        scores: Tensor, mask: Tensor, budget: int, cost: Tensor, module: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        place = place_in_module(torch.zeros_like(scores), module)
        costs = torch.zeros_like(cost).index_add_(0, place, cost)  # of the b-th triplets of all modules together
        total, largest = costs.sum(), (costs > 0).sum()
        paid = ((costs.cumsum(0) <= budget) & (costs > 0)).sum()
        least = largest.clamp(max=minimum)
        draw = torch.rand((), device=scores.device, dtype=torch.float64, generator=generator)
        drawn = least + (draw * (largest - least + 1)).long()
        return place < torch.where(total <= budget, drawn, paid)

    return allocate
