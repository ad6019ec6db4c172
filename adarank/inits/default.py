"""The initial values of the methods' papers, which leave the model unchanged: ΔW = 0."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from adarank.adapters.lowrank import FACTORS, LowRank
from adarank.inits.init import Init


def default() -> Init:
    """The initial values of the adapter's parametrisation, drawn from torch's global generator, module by module.

    "svd": P, Q ~ N(0, 0.02²), λ = 0 (AdaLoRA's code); "lora": Q ~ U(±1/√d_in), P = 0 (LoRA's code).
    """

    def fill(adapter: LowRank, found: Any) -> None:
        for part in FACTORS:
            adapter.parametrisation.draw(adapter, part, getattr(adapter, part), None)

    return Init("default", fill)


@torch.no_grad()
def draw(
    like: Mapping[tuple[str, int], Tensor], adapters: Sequence[LowRank], generator: torch.Generator
) -> dict[tuple[str, int], Tensor]:
    """Factors as `default` draws them, with the shapes of `like` {(part, index of the adapter): tensor}."""
    drawn = {entry: torch.empty_like(tensor) for entry, tensor in like.items()}
    for (part, i), tensor in drawn.items():
        adapters[i].parametrisation.draw(adapters[i], part, tensor, generator)
    return drawn
