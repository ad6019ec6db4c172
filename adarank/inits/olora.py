"""OLoRA (arXiv 2406.01775): factors from the weight's QR decomposition."""

from typing import Any

import torch

from adarank.adapters.lowrank import LowRank
from adarank.inits.init import Init, matrix, take_out, write


def olora() -> Init:
    """W = Q̂ R: B = first r columns of Q̂, A = first r rows of R; s·BA is subtracted from the base (Algorithm 1).

    "svd": P = Bᵀ, which is orthonormal, and A's rows are split into direction (Q) and length (λ).
    """

    def fill(adapter: LowRank, found: Any) -> None:
        basis, R = torch.linalg.qr(matrix(adapter))
        write(adapter, R[: adapter.rank], basis.t()[: adapter.rank])
        take_out(adapter)

    return Init("olora", fill, changes_base=True)
