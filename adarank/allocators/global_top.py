"""The b most important triplets of all modules together (arXiv 2303.10512, eq. 6)."""

from collections.abc import Callable

import torch
from torch import Tensor


def global_top() -> Callable[..., Tensor]:
    """Keep exactly `budget` triplets: those with the largest scores; of equal ones, those that come first."""

    def allocate(
        scores: Tensor, mask: Tensor, budget: int, cost: Tensor, module: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        best_first = torch.argsort(scores, descending=True, stable=True)
        new = torch.zeros_like(mask)
        new[best_first[:budget]] = True
        return new

    return allocate
