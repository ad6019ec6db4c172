"""MiLoRA (arXiv 2406.09044): factors from the minor singular triplets of the weight itself."""

from typing import Any

import torch

from adarank.adapters.lowrank import LowRank
from adarank.inits.init import Init, matrix, take_out, write


def milora() -> Init:
    """W = U diag(σ) Vᵀ: the adapter gets the *last* r triplets, and the base keeps the principal ones.

    Like `pissa`, but with the smallest singular values: "lora": A = √(σ/s) Vᵀ, B = U √(σ/s); "svd": Q = Vᵀ,
    P = U, λ = σ/s. Training starts in the subspace that pre-training uses least, and the model is unchanged.
    """

    def fill(adapter: LowRank, found: Any) -> None:
        U, sigma, Vt = torch.linalg.svd(matrix(adapter), full_matrices=False)
        last = slice(len(sigma) - adapter.rank, None)
        root = (sigma[last] / adapter.scale).sqrt().unsqueeze(1)
        write(adapter, root * Vt[last], root * U.t()[last])
        take_out(adapter)

    return Init("milora", fill, changes_base=True)
