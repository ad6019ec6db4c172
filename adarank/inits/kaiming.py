"""The initial values in dynamic DoRA's code (arXiv 2405.17357): random factors scaled by Kaiming's rule, and λ = 0."""

import math
from typing import Any

from adarank.adapters.lowrank import LowRank
from adarank.errors import SettingError
from adarank.inits.init import Init


def kaiming() -> Init:
    """Q ~ U(±√(6/d_in)), P ~ U(±√(6/r)), λ = 0, so that the model is unchanged. For adapters whose λ is trained.

    These are torch's kaiming_uniform_ of A [r, d_in] and B [d_out, r], so that P's entries are about 20 times as large
    as with AdaLoRA's init. Draws from torch's global generator, module by module. Raises SettingError if λ is not
    trained.
    """

    def fill(adapter: LowRank, found: Any) -> None:
        if not adapter.learns_lambda:
            raise SettingError(
                f"init=kaiming starts with λ = 0, but adapter={adapter.kind} does not train it; use adapter=svd"
            )
        for factor, fan_in in ((adapter.Q, adapter.in_features), (adapter.P, max(adapter.rank, 1))):
            bound = math.sqrt(6 / fan_in)
            factor.uniform_(-bound, bound)
        adapter.lam.zero_()

    return Init("kaiming", fill)
