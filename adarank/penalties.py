"""Penalties: a gradient in closed form, added to the bank's gradients once per optimiser step, before clipping; or a
proximal step after the optimiser's."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from adarank.bank import Bank
from adarank.errors import SettingError


class Penalty(NamedTuple):
    """add(bank, grad_scale, squared) adds the penalty's gradient, times grad_scale where gradients are still scaled by
    it; squared: as the paper writes it (mode="paper"). proximal(bank, lr) changes the weights in place after the
    optimiser's step; lr: the learning rate of λ. Either may be None."""

    add: Callable[[Bank, float | Tensor | None, bool], None] | None = None
    proximal: Callable[[Bank, float], None] | None = None


def orthogonality(gamma: float = 0.1) -> Penalty:
    """R pulls the rows of every Q and P (A, say) towards an orthonormal set; weight γ >= 0 (SettingError below).

    As the original code computes it, over the 2n factors of n modules:
        R = γ/(2n) Σ_A ‖AAᵀ − I‖_F          ∂R/∂A = γ/(2n) · 2 (AAᵀ − I) A / ‖AAᵀ − I‖_F
    and as the paper writes it (arXiv 2303.10512, eq. 4), with `squared`:
        R = γ Σ_A ‖AAᵀ − I‖²_F              ∂R/∂A = γ · 4 (AAᵀ − I) A
    Where pruned triplets are frozen, A is made of the others' rows.
    """
    if not gamma >= 0:
        raise SettingError(f"penalty.gamma={gamma} is negative; valid: a number of at least 0")

    @torch.no_grad()
    def add(bank: Bank, grad_scale: float | Tensor | None, squared: bool) -> None:
        if gamma == 0:
            return
        factor = 4 * gamma if squared else 2 * gamma / (2 * len(bank.adapters))
        for (weight, grad), triplets in zip(bank.blocks, bank.block_triplets, strict=True):
            eye = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
            gram = torch.baddbmm(eye, weight, weight.mT, beta=-1)
            if bank.frozen:
                gram.masked_fill_(_without(bank.mask[triplets]), 0.0)
            if not squared:
                norm = torch.linalg.vector_norm(gram, dim=(1, 2), keepdim=True)
                gram /= norm.clamp_min(torch.finfo(norm.dtype).tiny)  # 0/0 where the rows already are orthonormal
            if grad_scale is not None:
                gram *= grad_scale
            grad.baddbmm_(gram, weight, alpha=factor)

    return Penalty(add)


def l1_proximal(xi: float = 0.5, times_lr: bool = True) -> Penalty:
    """SoRA's sparse gates (arXiv 2311.11696): the proximal step of ξ·Σ|λ| after every step of the optimiser.

        λ ← sign(λ)·max(|λ| − η·ξ, 0)          η: λ's learning rate at that step; 1 where times_lr is false

    The threshold η·ξ is the proximal gradient method's, as the paper derives it; a constant one (times_lr=False) is what
    the authors' scripts run with. xi: ξ >= 0; with Adam, whose steps are η at most or little more, and times_lr, below 1,
    or no gate withstands it. Needs λ that learns ("svd"). Raises SettingError for a negative ξ.
    """
    if not xi >= 0:
        raise SettingError(f"penalty.xi={xi} is negative; valid: a number of at least 0")

    def proximal(bank: Bank, lr: float) -> None:
        shrunk = (bank.lam.abs() - (lr * xi if times_lr else xi)).clamp_min_(0.0)
        bank.lam.copy_(torch.sign(bank.lam) * shrunk)

    return Penalty(proximal=proximal)


def _without(on: Tensor) -> Tensor:
    """Where a row or column belongs to a pruned triplet: on bool [modules, r] -> bool [modules, r, r]."""
    return ~(on.unsqueeze(1) & on.unsqueeze(2))


@torch.no_grad()
def orthogonality_value(bank: Bank, gamma: float = 0.1, squared: bool = False) -> Tensor:
    """R itself, a scalar on the bank's device: what `orthogonality(gamma)` adds the gradient of."""
    norms = []
    for (weight, _), triplets in zip(bank.blocks, bank.block_triplets, strict=True):
        gram = weight @ weight.mT - torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        if bank.frozen:
            gram.masked_fill_(_without(bank.mask[triplets]), 0.0)
        norms.append(torch.linalg.vector_norm(gram, dim=(1, 2)))
    flat = torch.cat(norms)
    return gamma * flat.square().sum() if squared else gamma * flat.sum() / (2 * len(bank.adapters))
