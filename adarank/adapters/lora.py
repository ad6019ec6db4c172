"""LoRA (arXiv 2106.09685): W + s·B A with A = Q and B = Pᵀ; λ is the constant 1."""

import math
from typing import Any

import torch
from torch import Tensor

from adarank.adapters.parametrisation import Parametrisation


def _split(V: Tensor, sigma: Tensor, U: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    root = sigma.sqrt().unsqueeze(1)
    return V * root, torch.ones_like(sigma), U * root


def _draw(adapter: Any, part: str, factor: Tensor, generator: Any) -> None:
    """Q ~ U(±1/√d_in), λ = 1, P = 0."""
    if part == "Q":
        bound = 1 / math.sqrt(adapter.in_features)
        factor.uniform_(-bound, bound, generator=generator)
    else:
        factor.fill_(1.0 if part == "lam" else 0.0)


PARAMETRISATION = Parametrisation("lora", learns_lambda=False, split=_split, draw=_draw)
