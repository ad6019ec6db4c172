"""OLoRA (arXiv 2406.01775): an orthonormal basis of the weight's first columns."""

from typing import Any

import torch

from adarank.adapters.lowrank import LowRank
from adarank.inits.init import Init, matrix, take_out, write


def olora() -> Init:
    """W = Q̂ R: B = the first r columns of Q̂, A = the first r rows of R; the base loses s·BA (Algorithm 1).

    "svd": P = Bᵀ, which is orthonormal, and A's rows split into direction (Q) and length (λ).
    """

    def fill(adapter: LowRank, found: Any) -> None:
        basis, R = torch.linalg.qr(matrix(adapter))
        write(adapter, R[: adapter.rank], basis.t()[: adapter.rank])
        take_out(adapter)

    return Init("olora", fill, changes_base=True)
