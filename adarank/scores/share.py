"""A triplet's share of its module's weight change (dynamic DoRA, arXiv 2405.17357)."""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from adarank.bank import Bank
from adarank.scores.score import Buffers, Score, smoothing

EPSILON = 1e-8  # added to ‖ΔW‖, as in the authors' code


def share(beta: float = 0.9) -> Score:
    """‖ΔW_i‖_F / (‖ΔW‖_F + 1e-8) with ΔW_i = λ_i P_i Q_iᵀ and ΔW the sum over its module, averaged over steps.

    A ← β A + (1−β) share, from zero, without bias correction, after every step. A module's scale s cancels. The shares
    of a module add up to at least 1, so that a module with a large ΔW has no larger scores than one with a small one.
    beta: in [0, 1); else raises SettingError. Works with constant λ, too.
    """
    beta = smoothing("beta", beta)

    def init(bank: Bank) -> Buffers:
        return {"average": bank.triplet_buffer()}

    def observe(buffers: Buffers, bank: Bank) -> None:
        q, p = bank.row_norms()
        shares = bank.lam.abs() * p * q / (_norms(bank)[bank.module] + EPSILON)
        buffers["average"].lerp_(shares.to(bank.dtype), 1 - beta)

    def score(buffers: Buffers, bank: Bank) -> Tensor:
        return buffers["average"].clone()

    return Score(init, observe, score)


def _norms(bank: Bank) -> Tensor:
    """‖Pᵀ diag(λ) Q‖_F of every module, [modules], the square root of λᵀ (QQᵀ ⊙ PPᵀ) λ."""
    ranks = [adapter.rank for adapter in bank.adapters]
    lam = pad_sequence(list(bank.lam.to(bank.dtype).split(ranks)), batch_first=True)
    grams = lam.new_ones(*lam.shape, lam.shape[1])  # λ is 0 for padding
    for block in bank.blocks:
        rows = block.stack().to(bank.dtype)
        modules, r = bank.module[block.triplets[:, 0]], rows.shape[1]
        grams[modules, :r, :r] *= rows @ rows.mT
    return torch.einsum("mi,mij,mj->m", lam, grams, lam).clamp_min(0.0).sqrt()
