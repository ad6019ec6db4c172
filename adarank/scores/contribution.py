"""What a triplet adds to ΔW."""

import torch
from torch import Tensor

from adarank.bank import Bank
from adarank.scores.score import Buffers, Score


def contribution() -> Score:
    """s·|λ_i|·‖P_i‖·‖Q_i‖, the Frobenius norm of triplet i's part of ΔW."""

    def score(buffers: Buffers, bank: Bank) -> Tensor:
        return torch.cat([a.scale * a.lam.abs() * a.P.norm(dim=1) * a.Q.norm(dim=1) for a in bank.adapters])

    return Score(init=lambda bank: {}, observe=lambda buffers, bank: None, score=score)
