"""How far factors are from the orthonormal ones that AdaLoRA's penalty asks for (arXiv 2303.10512, eq. 4)."""

import torch
from torch import Tensor


def drift(rows: Tensor) -> float:
    """‖F Fᵀ − I‖_F / √r of a factor with r rows (our P or Q, [r, d]): 0 where they are orthonormal; 0 for no row."""
    if not len(rows):
        return 0.0
    rows = rows.double()
    eye = torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    return float((rows @ rows.t() - eye).norm()) / len(rows) ** 0.5
