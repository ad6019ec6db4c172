"""The size of a triplet's part of the weight change."""

from torch import Tensor

from adarank.bank import Bank
from adarank.scores.score import Buffers, Score


def contribution() -> Score:
    """‖s·λ_i P_i Q_iᵀ‖_F = s·|λ_i|·‖P_i‖·‖Q_i‖: how much triplet i adds to ΔW. Nothing is averaged.

    Unlike |λ| it includes the lengths of P and Q, which no penalty fixes exactly, and the scale s, so that modules of
    different scales are comparable. With svd_before_allocation=True it is the singular value of ΔW. Works with constant
    λ, too.
    """

    def score(buffers: Buffers, bank: Bank) -> Tensor:
        q, p = bank.row_norms()
        return bank.scale * bank.lam.abs() * p * q

    return Score(score=score)
