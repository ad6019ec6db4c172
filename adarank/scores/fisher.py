"""Empirical Fisher information: averaged squared gradients."""

from torch import Tensor

from adarank.bank import Bank
from adarank.scores.score import Score, averaged


def fisher(beta: float = 0.85, weighted: bool = False) -> Score:
    """F ← β F + (1−β) g² per parameter; a triplet's score is F(λ_i) + mean_j F(Q_ij) + mean_j F(P_ij).

    g is the gradient of the whole optimiser step rather than of one example, so that F is the diagonal of the empirical
    Fisher information up to the effect of averaging over the batch. It is summed per triplet as in AdaLoRA's eq. 7. g²
    alone measures how strongly the loss depends on a parameter, whatever its value (FISH mask, arXiv 2111.09839).

    weighted: average (w·g)² instead, which is twice the loss increase on removing w if F is the curvature (optimal
    brain damage; arXiv 1801.05787). w is the weight at the same step. beta: in [0, 1); else raises SettingError.
    """

    def squares(bank: Bank) -> Tensor:
        g = bank.grad.to(bank.dtype)
        return bank.triplet_sums((g * bank.weight if weighted else g).square())

    return averaged(squares, beta)
