"""Whether two changes lie in the same subspace (LoRA, arXiv 2106.09685, §7.2 and appendix G)."""

import torch
from torch import Tensor


def similarity(first: Tensor, second: Tensor) -> Tensor:
    """φ(i, j) = ‖(first[:, :i])ᵀ second[:, :j]‖_F² / min(i, j), [m, n], in 0..1; row i − 1, column j − 1.

    first [d, m], second [d, n]: orthonormal columns, the most important first. 1: the smaller of the two subspaces lies
    in the other; two random ones give max(i, j) / d on average. The paper takes the singular vectors of A; ours are those
    of ΔW, which do not depend on how the product is factored.
    """
    shared = (first.t() @ second).square().cumsum(0).cumsum(1)
    rows, columns = (torch.arange(1, n + 1, device=shared.device) for n in shared.shape)
    return shared / torch.minimum(rows.unsqueeze(1), columns)
