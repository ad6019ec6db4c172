"""Whatever the training left: no budget (SoRA, arXiv 2311.11696)."""

from collections.abc import Callable

import torch
from torch import Tensor


def nonzero() -> Callable[..., Tensor]:
    """Keep the triplets whose score is above 0 (with the score |λ|: λ ≠ 0), however many; the budget is not looked at.

    For methods that make λ exactly zero (a proximal step). The function says so by `keeps_budget`, which is False.
    """

    def allocate(
        scores: Tensor, mask: Tensor, budget: int, cost: Tensor, module: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        return scores > 0

    allocate.keeps_budget = False  # type: ignore[attr-defined]
    return allocate
