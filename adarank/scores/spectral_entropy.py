"""FlexLoRA's importance: the entropy of a module's spectrum (arXiv 2601.22905)."""

import torch
from torch import Tensor

from adarank.bank import Bank
from adarank.scores.score import Buffers, Score, check_lam_learns


def spectral_entropy() -> Score:
    """p_i = λ_i² / Σ_j λ_j² in each module, H = −Σ_i p_i ln p_i / ln r, and a triplet's score is p_i·H.

    H, from 0 to 1, is FlexLoRA's importance of a module: low where few directions carry its energy. The scores of a
    module sum to its H, and inside a module they follow the energy, so that an allocator has both: which modules to
    shrink or expand, and which triplet to drop. r counts the triplets with λ ≠ 0; where that is one or none, H = 0 (the
    authors' code divides by ln 1 there). Triplets of several modules compared directly (`global_top`) favour small
    modules and drop the last triplet of each first: give that a minimum rank.
    Refuses adapters whose λ is constant (SettingError). Nothing is averaged.
    """

    def init(bank: Bank) -> Buffers:
        check_lam_learns("spectral_entropy", bank)
        return {}

    def observe(buffers: Buffers, bank: Bank) -> None:
        """λ is read when it is asked for."""

    def score(buffers: Buffers, bank: Bank) -> Tensor:
        lam = bank.lam.to(bank.dtype).abs()
        tiny = torch.finfo(lam.dtype).tiny
        energy = (lam / lam.max().clamp_min(tiny)).square()  # relative: squares of small numbers vanish
        names = torch.arange(len(bank.names), device=lam.device)
        member = (bank.module == names.unsqueeze(1)).to(lam.dtype)  # [modules, triplets]; its products are sums
        p = energy / (member @ energy).clamp_min(tiny)[bank.module]
        count = member @ (lam != 0).to(lam.dtype)
        H = (member @ torch.special.entr(p)) / count.clamp_min(2).log()
        return p * H[bank.module]

    return Score(init, observe, score)
