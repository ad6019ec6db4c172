"""FlexLoRA's importance: the entropy of a module's spectrum (arXiv 2601.22905)."""

import torch
from torch import Tensor

from adarank.bank import Bank
from adarank.scores.score import Buffers, Score, module_sums, refuse_constant_lambda


def spectral_entropy() -> Score:
    """p_i = λ_i² / Σ_j λ_j² in each module, H = −Σ_i p_i ln p_i / ln r, and a triplet's score is p_i·H.

    H, from 0 to 1, is FlexLoRA's importance of a module: low if few directions carry its energy. The scores of a module
    sum to its H and follow the energy inside it, so that an allocator sees both which modules to shrink or expand and
    which triplet to prune. r counts the triplets with λ ≠ 0; with one or none, H = 0 (the authors' code divides by
    ln 1). Comparing triplets of several modules directly (`global_top`) favours small modules and prunes the last
    triplet of each first: give it a minimum rank.

    Nothing is averaged. `init` raises SettingError for adapters with constant λ.
    """

    def score(buffers: Buffers, bank: Bank) -> Tensor:
        lam = bank.lam.to(bank.dtype).abs()
        tiny = torch.finfo(lam.dtype).tiny
        energy = (lam / lam.max().clamp_min(tiny)).square()  # relative: the squares of small numbers underflow
        p = energy / module_sums(energy, bank).clamp_min(tiny)[bank.module]
        count = module_sums((lam != 0).to(lam.dtype), bank)
        H = module_sums(torch.special.entr(p), bank) / count.clamp_min(2).log()
        return p * H[bank.module]

    return Score(refuse_constant_lambda("spectral_entropy"), score=score)
