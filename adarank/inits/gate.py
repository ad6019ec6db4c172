"""SoRA's start (arXiv 2311.11696), as its code has it: LoRA's factors and random gates."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from adarank.adapters.lowrank import LowRank
from adarank.errors import SettingError
from adarank.inits.init import Init


def gate() -> Init:
    """Q ~ U(±1/√d_in), P = 0, λ ~ N(0, 1); ΔW = 0, so the model's function is kept. For adapter="svd".

    Draws from torch's global generator, module by module. Raises SettingError where λ is constant.
    """

    @torch.no_grad()
    def fill(adapters: Mapping[str, LowRank], found: Any = None) -> None:
        for adapter in adapters.values():
            if adapter.kind != "svd":
                raise SettingError(
                    f"init=gate draws λ, which adapter={adapter.kind} holds constant; valid: adapter=svd"
                )
            bound = 1 / math.sqrt(adapter.in_features)
            adapter.Q.uniform_(-bound, bound)
            adapter.lam.normal_()
            adapter.P.zero_()

    return Init("gate", fill)
