"""The signed first-order change of the loss when a triplet is removed (Molchanov et al., arXiv 1611.06440)."""

from torch import Tensor

from adarank.bank import Bank
from adarank.scores.score import Score, averaged


def taylor(beta: float = 0.85) -> Score:
    """−λ_i ∂L/∂λ_i, averaged: how much the loss rises, to first order, when λ_i becomes zero.

    A ← β A + (1−β)(−λ_i g_i), from zero, without bias correction; the score is A. Unlike the other scores it has a
    sign: if it is negative, removing the triplet lowers the loss, although sensitivity, |w·g|, counts that triplet as
    important. It is the expansion of L(λ_i = 0) − L(λ) around the current weights (the paper takes its absolute value).

    Triplet i enters the model as the product λ_i P_i Q_iᵀ, so that λ_i ∂L/∂λ_i = ⟨P_i, ∂L/∂P_i⟩ = ⟨Q_i, ∂L/∂Q_i⟩.
    If λ is constant (adapter="lora"), the second form is used; a penalty on P is then part of the gradient.

    Once training has converged, λ_i ∂L/∂λ_i is zero on average, and noise dominates. beta: in [0, 1); else raises
    SettingError.
    """

    def rise(bank: Bank) -> Tensor:
        if all(adapter.learns_lambda for adapter in bank.adapters):
            return -bank.lam.to(bank.dtype) * bank.lam_grad
        _, p = bank.row_sums(bank.weight.to(bank.dtype) * bank.grad)
        return -p

    return averaged(rise, beta)
