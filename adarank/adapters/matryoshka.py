"""MatryoshkaLoRA (arXiv 2605.07850): LoRA trained at all its prefix ranks at once.

    training     W + Σ_{r in S} s_r·B_r A_r = W + B diag(w) A      w_i = Σ_{r in S, r > i} s_r      (algorithm 1)
    evaluation   W + s·B A;  the first r of k triplets (`adarank.truncate`): W + s_r·B_r A_r

A_r, B_r are the first r triplets, i counts from 0, k is the number of active triplets, S the powers of two below k and
k itself, and s_r = s·√(k/r), so that s_k = s. Without alpha s = 1/√rank and s_r = 1/√r, as in the authors' script: at
rank 8 the w_i are 2.56, 1.56, .85, .85, .35, .35, .35, .35. A triplet that all prefixes share counts in each of them,
so that the first weighs 7.2 times s; with LoRA's s = 2 that would be 14.5.
"""

import torch
from torch import Tensor

from adarank.adapters import lora
from adarank.adapters.lowrank import LowRank
from adarank.adapters.parametrisation import Parametrisation


def _prefix_scale(k: int, r: int) -> float:
    """s_r / s_k, with s_r ∝ 1/√r."""
    return float((k / r) ** 0.5)


class Matryoshka(LowRank):
    """LoRA whose training pass weights triplet i by w_i / s."""

    def training_lam(self) -> Tensor:
        return super().training_lam() * self.prefix_weights()

    def prefix_weights(self) -> Tensor:
        """w / s [r], counted over the active triplets; the entries of pruned triplets, which the pass skips, are
        arbitrary."""
        mask = self.mask
        lengths = 2.0 ** torch.arange((self.rank - 1).bit_length(), device=mask.device, dtype=self.Q.dtype)
        active, position = mask.sum(), mask.cumsum(0) - 1
        holds = (lengths > position.unsqueeze(1)) & (lengths < active)  # whether a prefix contains a triplet
        return 1.0 + (holds * (active / lengths).sqrt()).sum(1)


PARAMETRISATION = Parametrisation(
    "matryoshka",
    learns_lambda=False,
    split=lora.PARAMETRISATION.split,
    draw=lora.PARAMETRISATION.draw,
    module=Matryoshka,
    prefix_scale=_prefix_scale,
    scale=lambda rank: float(rank**-0.5),
)
