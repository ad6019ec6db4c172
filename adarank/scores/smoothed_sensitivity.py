"""Smoothed sensitivity: AdaLoRA's importance without its uncertainty (arXiv 2303.10512, eqs. 7–9)."""

from torch import Tensor

from adarank.bank import Bank
from adarank.scores.score import Score, averaged


def smoothed_sensitivity(beta: float = 0.85) -> Score:
    """I = |w·g| per parameter; Ī ← β Ī + (1−β) I; a triplet's score is Ī(λ_i) + mean_j Ī(Q_ij) + mean_j Ī(P_ij).

    beta: in [0, 1); else raises SettingError.
    """

    def products(bank: Bank) -> Tensor:
        return bank.triplet_sums((bank.weight.to(bank.dtype) * bank.grad).abs_())

    return averaged(products, beta)
