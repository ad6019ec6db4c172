"""PiSSA (arXiv 2404.02948): factors from the principal singular triplets of the weight itself."""

from typing import Any

import torch

from adarank.adapters.lowrank import LowRank
from adarank.errors import number
from adarank.inits.init import Init, matrix, take_out, write


def pissa(niter: int | None = None) -> Init:
    """W = U diag(σ) Vᵀ: the adapter gets the first r triplets, and the base keeps the rest (eqs. 2 to 4).

    "lora": A = √(σ/s) Vᵀ, B = U √(σ/s); "svd": Q = Vᵀ, P = U, λ = σ/s. Either way ΔW₀ = U_r diag(σ_r) V_rᵀ, so that
    the model is unchanged, and pruning a triplet removes a part of the *pre-trained* weight. niter: None, the full
    decomposition; else subspace iterations of `torch.svd_lowrank` (the paper's fast SVD, from the global generator).
    """
    if niter is not None:
        valid = "a whole number of at least 0, or null for the full SVD"
        niter = number("init.niter", niter, valid, lambda n: n >= 0, whole=True)

    def fill(adapter: LowRank, found: Any) -> None:
        W, r = matrix(adapter), adapter.rank
        if niter is None:
            U, sigma, Vt = torch.linalg.svd(W, full_matrices=False)
        else:
            U, sigma, V = torch.svd_lowrank(W, q=r, niter=niter)
            Vt = V.t()
        root = (sigma[:r] / adapter.scale).sqrt().unsqueeze(1)
        write(adapter, root * Vt[:r], root * U.t()[:r])
        take_out(adapter)

    return Init("pissa", fill, changes_base=True)
