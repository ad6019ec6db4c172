"""ΔW as its thin singular value decomposition, from an adapter's factors or from two weights."""

from typing import NamedTuple

import torch
from torch import Tensor

from adarank.adapters.lowrank import LowRank, original_change, singular_triplets


class Change(NamedTuple):
    """ΔW = U diag(σ) Vᵀ, float64. U: [d_out, k], V: [d_in, k], columns orthonormal; sigma: [k], falling."""

    U: Tensor
    sigma: Tensor
    V: Tensor


@torch.no_grad()
def of_adapter(adapter: LowRank) -> Change:
    """The change of the original weight, k = r (or 2r where an init took ΔW₀ out of the base), never the dense ΔW: QR of
    both factors and the SVD of a k × k matrix. Pruned triplets do not count (λ ⊙ mask)."""
    lam, start_Q, start_P = adapter.effective_lam(), adapter.start_Q, adapter.start_P
    Q, gain, P = original_change(adapter.scale, adapter.Q, lam, adapter.P, start_Q, start_P)
    V, sigma, U = singular_triplets(Q.double(), gain.double(), P.double())
    return Change(U.t(), sigma, V.t())


@torch.no_grad()
def of_weights(before: Tensor, after: Tensor) -> Change:
    """The change from W to W + ΔW, both [d_out, d_in], of full fine-tuning: k = min(d_out, d_in)."""
    U, sigma, Vt = torch.linalg.svd(after.double() - before.double(), full_matrices=False)
    return Change(U, sigma, Vt.t())
