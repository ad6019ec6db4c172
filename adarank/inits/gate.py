"""SoRA's start (arXiv 2311.11696), as in its code: LoRA's factors and random gates."""

from typing import Any

from adarank.adapters import lora
from adarank.adapters.lowrank import LowRank
from adarank.errors import SettingError
from adarank.inits.init import Init


def gate() -> Init:
    """Q ~ U(±1/√d_in), P = 0, λ ~ N(0, 1); ΔW = 0, so the model is unchanged. For adapter="svd".

    Draws from torch's global generator, module by module. Raises SettingError if λ is not trained.
    """

    def fill(adapter: LowRank, found: Any) -> None:
        if not adapter.learns_lambda:
            raise SettingError(
                f"init=gate draws λ at random, but adapter={adapter.kind} does not train it; use adapter=svd"
            )
        for part in ("Q", "P"):
            lora.PARAMETRISATION.draw(adapter, part, getattr(adapter, part), None)
        adapter.lam.normal_()

    return Init("gate", fill)
