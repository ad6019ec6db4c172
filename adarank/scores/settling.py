"""The relative size of a triplet, negative while it still changes (AROMA, arXiv 2504.05343)."""

import torch
from torch import Tensor

from adarank.bank import Bank
from adarank.errors import number, whole_number
from adarank.scores.score import Buffers, Score


def settling(change: float = 0.1, checks: int = 20) -> Score:
    """‖ΔW_i‖_F / ‖W‖_F with ΔW_i = s·λ_i P_i Q_iᵀ and W the base's weight; times −1 until the triplet has settled.

    Every allocation is a check. A triplet has settled once ΔW_i has changed by less than the share `change` between two
    checks, ‖ΔW_i − ΔW_i'‖ < change·‖ΔW_i'‖, or at its check number `checks`. A triplet that restarts has no checks yet.
    λ may be constant.

    change: ε of AROMA's inner loop, at least 0. checks: the length of the longest inner loop, at least 1. Raises
    SettingError for other values.
    """
    change = number("score.change", change, "at least 0", lambda epsilon: epsilon >= 0)
    checks = whole_number("score.checks", checks)

    def init(bank: Bank) -> Buffers:
        return {"before": bank.buffer(), "settled": bank.triplet_buffer(), "checked": bank.triplet_buffer()}

    def settled(buffers: Buffers, bank: Bank) -> Tensor:
        now, before = bank.weight.double(), buffers["before"].double()  # their difference is small
        old, both = _inner(before, before, bank), _inner(now, before, bank)
        moved = (_inner(now, now, bank) + old - 2 * both).clamp_min(0.0).sqrt()
        return (buffers["settled"] > 0) | (moved < change * old.sqrt())

    def score(buffers: Buffers, bank: Bank) -> Tensor:
        size = bank.scale * _inner(bank.weight.double(), bank.weight.double(), bank).sqrt() / _base_norms(bank)
        done = settled(buffers, bank) | (buffers["checked"] >= checks)
        return torch.where(done, size, -size).to(bank.dtype)

    def restart(buffers: Buffers, bank: Bank) -> None:
        buffers["settled"].copy_(settled(buffers, bank))
        buffers["checked"].add_(bank.mask)  # also once when a triplet starts
        buffers["before"].copy_(bank.weight)

    return Score(init, score=score, restart=restart)


def _inner(a: Tensor, b: Tensor, bank: Bank) -> Tensor:
    """The inner product of a's and b's λ_i P_i Q_iᵀ for every triplet, [triplets]; a, b: flat, as `bank.weight`."""
    Q, P = bank.row_sums(a * b)
    lam = [torch.cat([t for (part, _), t in bank.unflatten(flat).items() if part == "lam"]) for flat in (a, b)]
    return lam[0] * lam[1] * Q * P


def _base_norms(bank: Bank) -> Tensor:
    """‖W‖_F of every triplet's base, [triplets]."""
    norms = [torch.linalg.vector_norm(a.layer.matrix(a.base).detach().to(a.Q)) for a in bank.adapters]
    return torch.stack(norms).double()[bank.module]
