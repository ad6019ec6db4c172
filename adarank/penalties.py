"""Penalties: a gradient in closed form, added once per optimiser step before clipping, or a proximal step after it."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from adarank.adapters.lowrank import FACTORS
from adarank.bank import Bank, Block, involves_pruned
from adarank.errors import number

NEWTON_STEPS = 20  # of `inverse_root`


class Penalty(NamedTuple):
    """A penalty, as one function or two; either may be None.

    ends: whether `add` is no longer called once the budget is final.

    add(bank, grad_scale, squared): adds the penalty's gradient to `bank.grad`, times grad_scale (None: 1) if gradients
    are still scaled; squared: the paper's form of the penalty (variant="paper").
    proximal(bank, lr): changes the weights in place after the optimiser's step; lr: the learning rate of λ, or one for
    every triplet, [triplets], where the modules' differ. It follows the `add` of the same step, which may keep what it
    needs.
    reads_back: whether it reads values back from the device, as an SVD does; CUDA graphs cannot capture such a step.
    fills_pruned: whether it puts new directions into pruned triplets, which must be trainable for that.
    """

    add: Callable[[Bank, float | Tensor | None, bool], None] | None = None
    proximal: Callable[[Bank, float | Tensor], None] | None = None
    ends: bool = False
    reads_back: bool = False
    fills_pruned: bool = False


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


def variance(gamma: float = 0.1) -> Penalty:
    """R = γ · mean of Var(row) over all rows of Q and P (unbiased variances), until the budget is final.

    The dimensional equilibrium modulator (DEM) of dynamic DoRA (arXiv 2405.17357), as its code computes it: it evens
    out the entries of every triplet's factors. If pruned triplets are frozen, their rows do not change. gamma: γ >= 0,
    else raises SettingError.
    """
    gamma = number("penalty.gamma", gamma, "at least 0", lambda g: g >= 0)

    @torch.no_grad()
    def add(bank: Bank, grad_scale: float | Tensor | None, squared: bool) -> None:
        for block in bank.blocks:
            rows, d = block.weight, block.weight.shape[1]
            centred = rows - rows.mean(1, keepdim=True)
            if bank.frozen:
                triplets = block.triplets.flatten()
                triplets = triplets if block.positions is None else triplets[block.positions]
                centred.masked_fill_(~bank.mask[triplets].unsqueeze(1), 0.0)
            if grad_scale is not None:
                centred *= grad_scale
            block.grad.add_(centred, alpha=2 * gamma / (max(d - 1, 1) * 2 * bank.triplets))

    return Penalty(add, ends=True)


def l1_proximal(sparsity: float = 0.5, times_lr: bool = True) -> Penalty:
    """SoRA's sparse gates (arXiv 2311.11696): the proximal step of ξ·Σ|λ| after every optimiser step.

        λ ← sign(λ)·max(|λ| − η·ξ, 0)          η: λ's learning rate at that step; 1 if times_lr is false

    The threshold η·ξ is that of the proximal gradient method, as the paper derives it; the authors' scripts use a
    constant one (times_lr=False). Requires adapters whose λ is trained ("svd").

    sparsity: ξ >= 0, else raises SettingError. With times_lr and Adam, whose steps hardly exceed η, keep it below 1:
    otherwise every λ becomes zero.
    """
    sparsity = number("penalty.sparsity", sparsity, "at least 0", lambda xi: xi >= 0)

    def proximal(bank: Bank, lr: float | Tensor) -> None:
        shrunk = (bank.lam.abs() - (lr * sparsity if times_lr else sparsity)).clamp_min_(0.0)
        bank.lam.copy_(torch.sign(bank.lam) * shrunk)

    return Penalty(proximal=proximal)


def stiefel(width: int | None = None) -> Penalty:
    """StelLA (arXiv 2510.01938): keeps the rows of every factor A (Q or P) orthonormal, in place of a penalty.

        before the step   G ← G − A Gᵀ A                         the Riemannian gradient
        after the step    Δ ← √(width / d)·(A_new − A)            d: the row length of A
                          Δ ← Δ − ½(A Δᵀ + Δ Aᵀ) A               onto the tangent space at A
                          A ← ((A + Δ)(A + Δ)ᵀ)^(−½) (A + Δ)     the polar retraction

    Any optimiser's step becomes one on the Stiefel manifold. For factors that start there (init="orthonormal") and
    adapters whose λ is trained ("svd"). Rows of pruned triplets stay on it, too, unless they are frozen.

    width: the reference dimension for the size of steps, in the paper the model's hidden size; None: the most frequent
    row length of all factors. Raises SettingError unless it is a whole number of at least 1, or None.
    """
    if width is not None:
        valid = "a whole number of at least 1, or null for the most frequent row length"
        width = number("penalty.width", width, valid, lambda n: n >= 1, whole=True)
    before: list[Tensor] = []  # the factors at `add`, block by block

    def rows(bank: Bank, block: Block, values: Tensor) -> Tensor:
        """A tensor laid out like block.weight as [modules, r, d], with zeros for padding and frozen pruned rows."""
        stack = block._replace(weight=values).stack()
        return stack * bank.mask[block.triplets].unsqueeze(2) if bank.frozen else stack

    @torch.no_grad()
    def add(bank: Bank, grad_scale: float | Tensor | None, squared: bool) -> None:
        if [held.shape for held in before] != [block.weight.shape for block in bank.blocks]:
            before[:] = [torch.empty_like(block.weight) for block in bank.blocks]
        for held, block in zip(before, bank.blocks, strict=True):
            held.copy_(block.weight)
            A, G = rows(bank, block, held), rows(bank, block, block.grad)
            block.add_product(A @ G.mT, A, -1.0)

    def proximal(bank: Bank, lr: float | Tensor) -> None:
        lengths = Counter(d for adapter in bank.adapters for d in (adapter.in_features, adapter.out_features))
        reference = max(lengths, key=lambda d: (lengths[d], -d)) if width is None else width
        for held, block in zip(before, bank.blocks, strict=True):
            A = rows(bank, block, held)
            step = (rows(bank, block, block.weight) - A) * math.sqrt(reference / A.shape[2])
            inner = A @ step.mT
            moved = A + torch.baddbmm(step, inner + inner.mT, A, alpha=-0.5)
            new = block.unstack(inverse_root(moved @ moved.mT) @ moved)
            kept = bank.mask[block.row_triplets].unsqueeze(1) if bank.frozen else None
            block.weight.copy_(new if kept is None else torch.where(kept, new, block.weight))

    return Penalty(add, proximal)


def low_rank_manifold() -> Penalty:
    """GeoLoRA (arXiv 2410.18720; the augmenting step of the authors' code): steps along the manifold of low-rank
    matrices, in place of a penalty.

    With U = Pᵀ and V = Qᵀ, whose columns are orthonormal, S = diag(λ), K = U S and L = V S:
        before the step   ∂L/∂U ← ∂L/∂K = ∂L/∂U S⁻¹      ∂L/∂V ← ∂L/∂L = ∂L/∂V S⁻¹
        after the step    ΔK, ΔL: the optimiser's changes of U and V;  ΔS: see below
                          Û = [U, Ũ], V̂ = [V, Ṽ]: orthonormal bases of U and ΔK, of V and ΔL         (augmentation)
                          Û Ŝ V̂ᵀ with Ŝ = [S + ΔS, ΔLᵀ Ṽ; Ũᵀ ΔK, 0]: its r largest singular triplets are the new
                          U, S, V, where r is the number of slots in the adapter                       (truncation)
    ΔS is the mean of Uᵀ ΔK and ΔLᵀ V (with SGD both are −η Uᵀ ∂L/∂W V), but its diagonal is the optimiser's own change
    of λ. Columns with λ = 0 have no ∂L/∂K. A pruned triplet counts as absent, so that new directions take its place;
    active triplets get the largest singular values. For truncation by a tolerance see `adarank.allocators.tolerance`.

    Any optimiser's step becomes a step on the manifold. Signs follow the old rows, so that momentum keeps its meaning.
    Requires factors that start orthonormal (init="orthonormal"), adapters with trained λ ("svd") and trainable pruned
    triplets.
    """
    before: list[Tensor] = []  # the weights at `add`, flat

    @torch.no_grad()
    def add(bank: Bank, grad_scale: float | Tensor | None, squared: bool) -> None:
        if [held.shape for held in before] != [bank.weight.shape]:
            before[:] = [torch.empty_like(bank.weight)]
        before[0].copy_(bank.weight)
        lam, lam_grad = bank.lam, bank.lam_grad.clone()
        inverse = torch.where(lam.abs() < torch.finfo(lam.dtype).tiny, 0.0, lam.reciprocal())
        bank.grad.mul_(bank.broadcast_to_parameters(inverse))
        bank.lam_grad.copy_(lam_grad)

    def proximal(bank: Bank, lr: float | Tensor) -> None:
        old, new = bank.unflatten(before[0]), bank.unflatten(bank.weight)
        masks = bank.mask.split([a.rank for a in bank.adapters])
        alike = defaultdict(list)
        for i, adapter in enumerate(bank.adapters):
            alike[adapter.rank, adapter.in_features, adapter.out_features].append(i)
        for (rank, *_), modules in alike.items():
            if rank:
                mask = torch.stack([masks[i] for i in modules])
                factors = [torch.stack([old[part, i] for i in modules]) for part in FACTORS]
                moved = [torch.stack([new[part, i] for i in modules]) for part in FACTORS]
                for part, stack in zip(FACTORS, _retracted(factors, moved, mask), strict=True):
                    for i, value in zip(modules, stack, strict=True):
                        new[part, i].copy_(value)

    return Penalty(add, proximal, reads_back=True, fills_pruned=True)


def _retracted(factors: list[Tensor], moved: list[Tensor], mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """New Q [modules, r, d_in], λ [modules, r], P [modules, r, d_out] of `low_rank_manifold`, from those before and
    after the optimiser's step; mask: bool [modules, r]."""
    Q, lam, P = factors
    present = mask | (lam != 0)
    row = present.unsqueeze(2)
    dQ, dP = ((new - factor) * row for new, factor in ((moved[0], Q), (moved[2], P)))
    V, U = Q * row, P * row
    known = (lam != 0).to(lam.dtype)  # whether there is a ∂L/∂K
    by_K, by_L = (U @ dP.mT) * known.unsqueeze(1), (dQ @ V.mT) * known.unsqueeze(2)
    dS = (by_K + by_L) / (known.unsqueeze(1) + known.unsqueeze(2)).clamp_min(1.0)
    dS.diagonal(dim1=1, dim2=2).copy_((moved[1] - lam) * present)
    core = torch.diag_embed(lam) + dS
    eye = torch.eye(lam.shape[1], dtype=lam.dtype, device=lam.device).expand_as(core)
    core = torch.cat([torch.cat([core, eye], 2), torch.cat([eye, torch.zeros_like(core)], 2)], 1)
    basis_out, R_out = torch.linalg.qr(torch.cat([U, dP - (dP @ U.mT) @ U], 1).mT)
    basis_in, R_in = torch.linalg.qr(torch.cat([V, dQ - (dQ @ V.mT) @ V], 1).mT)
    left, sigma, right = torch.linalg.svd(R_out @ core @ R_in.mT, full_matrices=False)
    n = lam.shape[1]
    new_P, new_Q = (basis_out @ left[..., :n]).mT, (right[:, :n] @ basis_in.mT)
    slots = torch.argsort((~mask).byte(), dim=1, stable=True)  # the largest singular values go to active triplets
    place = slots.argsort(1)
    new_P, new_Q = (new.gather(1, place.unsqueeze(2).expand_as(new)) for new in (new_P, new_Q))
    turn = torch.sign((new_P * U).sum(2, keepdim=True) + (new_Q * V).sum(2, keepdim=True))
    turn = torch.where(turn == 0, 1.0, turn)
    return new_Q * turn, sigma[:, :n].gather(1, place), new_P * turn


def inverse_root(gram: Tensor) -> Tensor:
    """gram^(−½) of positive semi-definite matrices [modules, r, r], by the coupled Newton–Schulz iteration.

    It uses only products, so it reads nothing back from the device, unlike `torch.linalg.eigh`. Eigenvalues below about
    1e-5 of the largest row sum do not converge in its number of steps; a retraction's are at least 1.
    """
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    bound = gram.abs().sum(-1, keepdim=True).amax(1, keepdim=True).clamp_min(torch.finfo(gram.dtype).tiny)
    Y, Z = gram / bound, eye.expand_as(gram)
    for _ in range(NEWTON_STEPS):
        T = 1.5 * eye - 0.5 * Z @ Y
        Y, Z = Y @ T, T @ Z
    return Z / bound.sqrt()


@torch.no_grad()
def orthogonality_value(bank: Bank, gamma: float = 0.1, squared: bool = False) -> Tensor:
    """The value R of `orthogonality(gamma)`, a scalar on the bank's device; squared: the paper's form."""
    norms = bank.orthogonality_norms()
    return gamma * norms.square().sum() if squared else gamma * norms.sum() / (2 * len(bank.adapters))
