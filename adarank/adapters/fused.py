"""The linear that all low-rank adapters share: base and low-rank product in one autograd node.

With x [n, d_in], Q [r, d_in], λ [r], P [r, d_out] (one row per triplet), scale s and frozen W [d_out, d_in], b [d_out]:

    h   = (s λ ⊙ Q) xᵀ              [r, n]
    out = x Wᵀ + b + hᵀ P           [n, d_out]

and backward, for g = ∂L/∂out [n, d_out]:

    u      = P gᵀ                   [r, n]
    ∂L/∂x  = g W + uᵀ (s λ ⊙ Q)     [n, d_in]
    A      = u x                    [r, d_in]
    ∂L/∂Q  = s λ ⊙ A,   ∂L/∂λ = s Σ_j A_·j Q_·j,   ∂L/∂P = h g

Compared with plain autograd it keeps only one copy of x and h, and writes no intermediate of size [n, d_out]. h and u
are stored with the long side n contiguous: a CPU's matrix kernels vectorise over it, while a short side of r = 12
leaves their registers partly empty (the six thin products take 25 % less time at r = 12, the same at r = 16; lab log,
2026-11-24).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class _LowRankLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        Q: Tensor,
        lam: Tensor,
        P: Tensor,
        scale: float,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        source = rows if dropped is None else dropped.reshape(-1, x.shape[-1])
        h = (Q * (lam * scale).unsqueeze(1)) @ source.t()
        out = F.linear(rows, weight, bias).addmm_(h.t(), P)
        ctx.save_for_backward(source, h, weight, Q, lam, P)
        ctx.scale = scale
        ctx.shape = x.shape
        return out.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        source, h, weight, Q, lam, P = ctx.saved_tensors
        need_x, need_dropped, _, _, need_Q, need_lam, need_P, _ = ctx.needs_input_grad
        g = grad.reshape(-1, grad.shape[-1])
        gain = (lam * ctx.scale).unsqueeze(1)
        u = P @ g.t()
        d_x = d_dropped = d_Q = d_lam = d_P = None
        if need_x:
            d_x = g @ weight
            if not need_dropped:  # no dropout: both paths start at the same x
                d_x.addmm_(u.t(), Q * gain)
            d_x = d_x.view(ctx.shape)
        if need_dropped:
            d_dropped = (u.t() @ (Q * gain)).view(ctx.shape)
        if need_Q or need_lam:
            A = u @ source
            d_lam = torch.linalg.vecdot(A, Q).mul_(ctx.scale) if need_lam else None
            d_Q = A.mul_(gain) if need_Q else None
        if need_P:
            d_P = h @ g
        return d_x, d_dropped, None, None, d_Q, d_lam, d_P, None


class Fed(NamedTuple):
    """The inputs of a low-rank path that replace its own factors, and the destination of its gradients (see
    `adarank.feed.Feed`).

    gained_Q: λ ⊙ Q [r, d_in]; P [r, d_out]; d_gained_Q, d_P: ∂L/∂(λ ⊙ Q) and ∂L/∂P, written here; all in the dtype of
    the computation. anchor: a tensor that requires a gradient, so that the path has one whatever x is. reached: set by
    the backward pass, which adds to the gradients if it is already set.
    """

    gained_Q: Tensor
    P: Tensor
    d_gained_Q: Tensor
    d_P: Tensor
    anchor: Tensor
    reached: list[bool]


class _FedLinear(torch.autograd.Function):
    """`_LowRankLinear` for a given λ ⊙ Q, with s inside the products; it writes the factors' gradients instead of
    returning them."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        scale: float,
        anchor: Tensor,
        fed: Fed,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        source = rows if dropped is None else dropped.reshape(-1, x.shape[-1])
        h = fed.gained_Q @ source.t()
        out = F.linear(rows, weight, bias).addmm_(h.t(), fed.P, alpha=scale)
        ctx.save_for_backward(source, h, weight)
        ctx.scale, ctx.fed, ctx.shape = scale, fed, x.shape
        return out.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        source, h, weight = ctx.saved_tensors
        scale, fed = ctx.scale, ctx.fed
        need_x, need_dropped = ctx.needs_input_grad[:2]
        g = grad.reshape(-1, grad.shape[-1])
        u = torch.addmm(h, fed.P, g.t(), beta=0, alpha=scale)  # h only provides the shape
        d_x = d_dropped = None
        if need_x:
            d_x = g @ weight
            if not need_dropped:
                d_x.addmm_(u.t(), fed.gained_Q)
            d_x = d_x.view(ctx.shape)
        if need_dropped:
            d_dropped = (u.t() @ fed.gained_Q).view(ctx.shape)
        beta = float(fed.reached[0])
        fed.reached[0] = True
        fed.d_gained_Q.addmm_(u, source, beta=beta)
        fed.d_P.addmm_(h, g, beta=beta, alpha=scale)
        return d_x, d_dropped, None, None, None, None, None


def fed_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: float, fed: Fed, dropped: Tensor | None = None
) -> Tensor:
    """`lowrank_linear` for a module that is fed, in the dtype of its inputs."""
    dtype = fed.P.dtype
    bias = None if bias is None else bias.to(dtype)
    dropped = None if dropped is None else dropped.to(dtype)
    return _FedLinear.apply(x.to(dtype), dropped, weight.to(dtype), bias, scale, fed.anchor, fed)


def lowrank_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    Q: Tensor,
    lam: Tensor,
    P: Tensor,
    scale: float,
    dropped: Tensor | None = None,
) -> Tensor:
    """x Wᵀ + b + s·((x Qᵀ) ⊙ λ) P, with the gradients written out by hand.

    Shapes: x [..., d_in], weight [d_out, d_in], bias [d_out] or None, Q [r, d_in], lam [r], P [r, d_out];
    returns [..., d_out]. If `dropped` is given, the low-rank path reads it instead of x (x after dropout). weight and
    bias get no gradient. Under autocast everything is computed in the autocast dtype; otherwise the factors are cast to
    x's dtype. Each gradient has the dtype of its input.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        dropped = None if dropped is None else dropped.to(dtype)
    else:
        dtype = x.dtype
    return _LowRankLinear.apply(x, dropped, weight, bias, Q.to(dtype), lam.to(dtype), P.to(dtype), scale)
