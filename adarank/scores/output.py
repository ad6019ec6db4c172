"""The size of a triplet's contribution to the layer's output."""

import torch
from torch import Tensor

from adarank.adapters.layers import CONV2D
from adarank.adapters.lowrank import LowRank
from adarank.bank import Bank
from adarank.scores.score import Score, averaged_activation


def output(beta: float = 0.85) -> Score:
    """s·|λ_i|·‖P_i‖·rms(Q_iᵀx): the root mean square over inputs x of the norm of triplet i's part of the output.

    The mean of (Q_iᵀx)² over the rows of x and over the forward passes of an optimiser step is averaged over steps:
    A ← β A + (1−β) mean, from zero, without bias correction. s, λ and P are the current ones. x is the input of the
    low-rank path, after its dropout. Steps whose activations overflowed are skipped.
    beta: in [0, 1); else raises SettingError.
    """

    def score(square: Tensor, bank: Bank) -> Tensor:
        _, p = bank.row_norms()
        return bank.scale * bank.lam.abs() * p * square.sqrt()

    return averaged_activation(mean_square, beta, score)


def mean_square(adapter: LowRank, x: Tensor) -> Tensor:
    """The mean of (Q_iᵀx)² over the rows (pixels, indices) of the layer's input x, [r]."""
    layer, Q = adapter.layer, adapter.Q
    ones = torch.ones_like(Q[:, 0])
    h = layer.delta(adapter.base, x, Q, ones, torch.diag(ones))  # with P = I, so that every triplet is separate
    if layer is CONV2D:
        h = h.movedim(-3, -1)
    return h.reshape(-1, adapter.rank).square().mean(0)
