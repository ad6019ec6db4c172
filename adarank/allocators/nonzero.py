"""Whatever the training left: no budget (SoRA, arXiv 2311.11696)."""

import torch
from torch import Tensor

from adarank.allocators.allocator import Allocator


def nonzero() -> Allocator:
    """Keep the triplets whose score is above 0 (with the score |λ|: λ ≠ 0), however many; the budget is not looked at.

    For methods that make λ exactly zero (a proximal step).
    """

    def allocate(
        scores: Tensor, mask: Tensor, budget: int, cost: Tensor, module: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        return scores > 0

    return Allocator(allocate, keeps_budget=False)
