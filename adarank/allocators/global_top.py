"""The most important triplets of all modules together (arXiv 2303.10512, eq. 6)."""

from collections.abc import Callable

import torch
from torch import Tensor


def global_top() -> Callable[..., Tensor]:
    """Keep the triplets with the largest scores, of equal ones those that come first, as many as the budget pays for.

    Counted in triplets (every cost is 1) that is exactly the budget; counted in parameters the first triplet that does
    not fit ends it, so that less than one triplet's cost may be left over.
    """

    def allocate(
        scores: Tensor, mask: Tensor, budget: int, cost: Tensor, module: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        best_first = torch.argsort(scores, descending=True, stable=True)
        new = torch.zeros_like(mask)
        new[best_first] = cost[best_first].cumsum(0) <= budget
        return new

    return allocate
