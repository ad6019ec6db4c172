"""StelLA's initial values (arXiv 2510.01938): random orthonormal factors and λ = 1."""

from typing import Any

from torch import nn

from adarank.adapters.lowrank import LowRank
from adarank.errors import SettingError, number
from adarank.inits.init import Init


def orthonormal(lam: float = 1.0) -> Init:
    """The rows of Q and of P are random orthonormal sets, and every λ is `lam`. For adapters whose λ is trained.

    With StelLA's λ = 1 training starts at W + s·PᵀQ, away from the pretrained function, because the paper and its code
    do not change the base. lam=0 starts at the base. Draws from torch's global generator, module by module. Raises
    SettingError if λ is not trained or `lam` is not a number.
    """
    lam = number("init.lam", lam, "a number", lambda value: True)

    def fill(adapter: LowRank, found: Any) -> None:
        if not adapter.learns_lambda:
            raise SettingError(
                f"init=orthonormal sets λ, but adapter={adapter.kind} does not train it; use adapter=svd"
            )
        for factor in (adapter.P, adapter.Q):
            nn.init.orthogonal_(factor)
        nn.init.constant_(adapter.lam, lam)

    return Init("orthonormal", fill)
