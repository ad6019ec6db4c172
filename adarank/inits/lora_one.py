"""LoRA-One (arXiv 2502.01235): a descent step along the principal singular directions of the first full gradient."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adarank.adapters.lowrank import LowRank
from adarank.errors import number
from adarank.inits.gradients import weight_gradients
from adarank.inits.init import Init, write


def lora_one(steps: int = 8, gamma: float = 128.0) -> Init:
    """−G = U S Vᵀ, the mean gradient of `steps` batches: B = U_r √(S_r/S₁) / √γ, A = √(S_r/S₁) V_rᵀ / √γ.

    So ΔW₀ = −(s / (γ S₁))·[G]_r, the best rank-r approximation of one step of gradient descent with the step size s/(γ
    S₁); it is *not* subtracted from the base, so that training starts one step ahead. The division by S₁ follows the
    authors' code (the formula in their README has none). The full SVD replaces that code's randomised one. With a
    gradient of 0, ΔW starts at 0.
    """
    gamma = number("init.gamma", gamma, "above 0", lambda g: g > 0)

    def fill(adapter: LowRank, found: Tensor) -> None:
        U, S, Vt = torch.linalg.svd(-found.to(adapter.Q), full_matrices=False)
        root = (S[: adapter.rank] / S[0].clamp(min=torch.finfo(S.dtype).tiny) / gamma).sqrt().unsqueeze(1)
        write(adapter, root * Vt[: adapter.rank], root * U.t()[: adapter.rank])

    def measure(model: nn.Module, asked: Mapping[str, int], batches: Iterable[Any]) -> dict[str, Tensor]:
        return weight_gradients(model, asked, batches, steps, "lora_one")

    return Init("lora_one", fill, measure)
