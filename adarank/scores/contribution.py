"""A triplet's own part of the weight change."""

from torch import Tensor

from adarank.bank import Bank
from adarank.scores.score import Buffers, Score


def contribution() -> Score:
    """‖s·λ_i P_i Q_iᵀ‖_F = s·|λ_i|·‖P_i‖·‖Q_i‖: the size of what triplet i adds to ΔW; nothing is averaged.

    |λ| with P's and Q's lengths counted, which no penalty fixes exactly; it compares modules of unlike scale s, and with
    basis="singular" it is the singular value of ΔW. For either kind of adapter (LoRA's λ is 1).
    """

    def init(bank: Bank) -> Buffers:
        return {}

    def observe(buffers: Buffers, bank: Bank) -> None:
        """The factors are read when they are asked for."""

    def score(buffers: Buffers, bank: Bank) -> Tensor:
        q, p = bank.row_norms()
        return bank.scale * bank.lam.abs() * p * q

    return Score(init, observe, score)
