"""OLoRA (arXiv 2406.01775): an orthonormal basis of the weight's first columns."""

from collections.abc import Mapping
from typing import Any

import torch

from adarank.adapters.lowrank import LowRank
from adarank.inits.init import Init, matrix, take_out, write


def olora() -> Init:
    """W = Q̂ R: B = the first r columns of Q̂, A = the first r rows of R, and s·BA leaves the base (Algorithm 1).

    "svd": P = Bᵀ, which is orthonormal, and A's rows split into direction (Q) and length (λ).
    """

    @torch.no_grad()
    def fill(adapters: Mapping[str, LowRank], found: Any = None) -> None:
        for adapter in adapters.values():
            basis, R = torch.linalg.qr(matrix(adapter))
            write(adapter, R[: adapter.rank], basis.t()[: adapter.rank])
            take_out(adapter)

    return Init("olora", fill, changes_base=True)
