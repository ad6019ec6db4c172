"""Incremental principal component analysis: a truncated one, batch after batch (Ross et al. 2008)."""

from typing import NamedTuple

import torch
from torch import Tensor


class PCA(NamedTuple):
    """Of the rows seen so far: their number, mean [d] and scatter Σ‖x − mean‖²; the first k principal directions
    V [k, d] (orthonormal rows) with their singular values sigma [k], largest first. Without truncation the three are the
    singular value decomposition of the centred rows."""

    rows: int
    mean: Tensor
    scatter: Tensor
    V: Tensor
    sigma: Tensor

    @property
    def ratio(self) -> Tensor:
        """The share of the variance that each direction explains, σ² / scatter, [k]; 0 where there is none."""
        return torch.where(self.scatter > 0, self.sigma**2 / self.scatter, torch.zeros_like(self.sigma))


def update(before: PCA | None, x: Tensor, k: int) -> PCA:
    """Take in rows x [n, d] and keep k directions.

    The SVD of σVᵀ from before, the new rows less their mean, and √(nm/(n + m)) times the difference of the means (m rows
    from before): exact but for what truncation has dropped. The scatter is exact in any case.
    """
    n, mean = len(x), x.mean(0)
    centred = x - mean
    scatter = centred.square().sum()
    if before is not None:
        m = before.rows
        shift = (n * m / (n + m)) ** 0.5 * (before.mean - mean)
        centred = torch.cat([before.sigma.unsqueeze(1) * before.V, centred, shift.unsqueeze(0)])
        scatter = scatter + before.scatter + shift.square().sum()
        mean = (n * mean + m * before.mean) / (n + m)
        n += m
    _, sigma, Vt = torch.linalg.svd(centred, full_matrices=False)
    return PCA(n, mean, scatter, Vt[:k], sigma[:k])
