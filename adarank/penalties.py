"""Penalties: a gradient in closed form, added once per optimiser step before clipping, or a proximal step after it."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from adarank.bank import Bank, involves_pruned
from adarank.errors import number


class Penalty(NamedTuple):
    """A penalty, as one function or two; either may be None.

    add(bank, grad_scale, squared): adds the penalty's gradient to `bank.grad`, times grad_scale (None: 1) if gradients
    are still scaled; squared: the paper's form of the penalty (variant="paper").
    proximal(bank, lr): changes the weights in place after the optimiser's step; lr: the learning rate of λ.
    """

    add: Callable[[Bank, float | Tensor | None, bool], None] | None = None
    proximal: Callable[[Bank, float], None] | None = None


def orthogonality(gamma: float = 0.1) -> Penalty:
    """R pulls the rows of every factor A (Q or P) towards an orthonormal set, with weight γ.

    AdaLoRA's original code, over the 2n factors of n modules:
        R = γ/(2n) Σ_A ‖AAᵀ − I‖_F          ∂R/∂A = γ/(2n) · 2 (AAᵀ − I) A / ‖AAᵀ − I‖_F
    The paper (arXiv 2303.10512, eq. 4), with variant="paper":
        R = γ Σ_A ‖AAᵀ − I‖²_F              ∂R/∂A = γ · 4 (AAᵀ − I) A
    If pruned triplets are frozen, A consists of the other triplets' rows. gamma: γ >= 0, else raises SettingError.
    """
    gamma = number("penalty.gamma", gamma, "at least 0", lambda g: g >= 0)

    @torch.no_grad()
    def add(bank: Bank, grad_scale: float | Tensor | None, squared: bool) -> None:
        if gamma == 0:
            return
        factor = 4 * gamma if squared else 2 * gamma / (2 * len(bank.adapters))
        for block in bank.blocks:
            weight = block.stack()
            gram = torch.baddbmm(block.identity, weight, weight.mT, beta=-1)
            if bank.frozen:
                gram.masked_fill_(involves_pruned(bank.mask[block.triplets]), 0.0)
            if not squared:
                norm = torch.linalg.vector_norm(gram, dim=(1, 2), keepdim=True)
                gram /= norm.clamp_min(torch.finfo(norm.dtype).tiny)  # rows that are orthonormal already give 0/0
            if grad_scale is not None:
                gram *= grad_scale
            block.add_product(gram, weight, factor)

    return Penalty(add)


def l1_proximal(sparsity: float = 0.5, times_lr: bool = True) -> Penalty:
    """SoRA's sparse gates (arXiv 2311.11696): the proximal step of ξ·Σ|λ| after every optimiser step.

        λ ← sign(λ)·max(|λ| − η·ξ, 0)          η: λ's learning rate at that step; 1 if times_lr is false

    The threshold η·ξ is that of the proximal gradient method, as the paper derives it; the authors' scripts use a
    constant one (times_lr=False). Requires adapters whose λ is trained ("svd").

    sparsity: ξ >= 0, else raises SettingError. With times_lr and Adam, whose steps hardly exceed η, keep it below 1:
    otherwise every λ becomes zero.
    """
    sparsity = number("penalty.sparsity", sparsity, "at least 0", lambda xi: xi >= 0)

    def proximal(bank: Bank, lr: float) -> None:
        shrunk = (bank.lam.abs() - (lr * sparsity if times_lr else sparsity)).clamp_min_(0.0)
        bank.lam.copy_(torch.sign(bank.lam) * shrunk)

    return Penalty(proximal=proximal)


@torch.no_grad()
def orthogonality_value(bank: Bank, gamma: float = 0.1, squared: bool = False) -> Tensor:
    """The value R of `orthogonality(gamma)`, a scalar on the bank's device; squared: the paper's form."""
    norms = bank.orthogonality_norms()
    return gamma * norms.square().sum() if squared else gamma * norms.sum() / (2 * len(bank.adapters))
