"""The papers' own starts, which keep the model's function: ΔW = 0."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import nn

from adarank.adapters.lowrank import LowRank

STD = 0.02  # of P and Q in AdaLoRA's code


def default() -> Callable[[Mapping[str, LowRank]], None]:
    """ "svd": P, Q ~ N(0, 0.02²), λ = 0 (AdaLoRA's code); "lora": Q ~ U(±1/√d_in), P = 0 (LoRA's code).

    Draws from torch's global generator, module by module in the order given.
    """

    @torch.no_grad()
    def fill(adapters: Mapping[str, LowRank]) -> None:
        for adapter in adapters.values():
            if adapter.kind == "svd":
                nn.init.normal_(adapter.Q, std=STD)
                nn.init.zeros_(adapter.lam)
                nn.init.normal_(adapter.P, std=STD)
            else:
                bound = 1 / math.sqrt(adapter.in_features)
                nn.init.uniform_(adapter.Q, -bound, bound)
                nn.init.zeros_(adapter.P)

    return fill
