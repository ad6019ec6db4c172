"""The papers' own starts, which keep the model's function: ΔW = 0."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adarank.adapters.lowrank import LowRank
from adarank.inits.init import STD, Init


def default() -> Init:
    """ "svd": P, Q ~ N(0, 0.02²), λ = 0 (AdaLoRA's code); "lora": Q ~ U(±1/√d_in), P = 0 (LoRA's code).

    Draws from torch's global generator, module by module in the order given.
    """

    @torch.no_grad()
    def fill(adapters: Mapping[str, LowRank], found: Any = None) -> None:
        for adapter in adapters.values():
            for part in FACTORS:
                _fill(getattr(adapter, part), part, adapter, None)

    return Init("default", fill)


FACTORS = ("Q", "lam", "P")


@torch.no_grad()
def draw(
    like: Mapping[tuple[str, int], Tensor], adapters: Sequence[LowRank], generator: torch.Generator
) -> dict[tuple[str, int], Tensor]:
    """Factors as `default` draws them, of the shapes of `like` {(part, index of the adapter): tensor}."""
    drawn = {entry: torch.empty_like(tensor) for entry, tensor in like.items()}
    for (part, i), tensor in drawn.items():
        _fill(tensor, part, adapters[i], generator)
    return drawn


def _fill(factor: Tensor, part: str, adapter: LowRank, generator: torch.Generator | None) -> None:
    svd = adapter.kind == "svd"
    if part == "lam":
        factor.fill_(0.0 if svd else 1.0)
    elif svd:
        factor.normal_(0.0, STD, generator=generator)
    elif part == "Q":
        bound = 1 / math.sqrt(adapter.in_features)
        factor.uniform_(-bound, bound, generator=generator)
    else:
        factor.zero_()
