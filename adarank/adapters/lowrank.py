"""The low-rank adapter: W + s·Pᵀ diag(λ) Q around a frozen linear layer.

    before                      after
    parent                      parent
    └── query: Linear           └── query: LowRank
                                    ├── base: Linear   (the same object, frozen)
                                    ├── Q    [r, d_in]
                                    ├── lam  [r]       a Parameter for "svd", a constant 1 for "lora"
                                    ├── P    [r, d_out]
                                    └── mask [r] bool  False: pruned

Row i of Q, entry i of λ and row i of P are triplet i, so that dropping triplets is dropping rows. In AdaLoRA's
notation (arXiv 2303.10512, eq. 3) P is our Pᵀ; in LoRA's (arXiv 2106.09685) A is Q and B is Pᵀ.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adarank.adapters.fused import lowrank_linear

KINDS = ("svd", "lora")


class LowRank(nn.Module):
    """A frozen linear with r trainable triplets.

    kind: "svd" (λ learns) or "lora" (λ is the constant 1); alpha: scale s = alpha / rank, fixed at creation;
    dropout: probability of dropping an input of the low-rank path while training. The factors are created
    uninitialised but for λ (an init fills them), on the base's device, in fp32 or, where the base is wider, in
    the base's dtype.
    """

    Q: Tensor
    lam: Tensor
    P: Tensor
    mask: Tensor

    def __init__(self, base: nn.Linear, kind: str, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.kind = kind
        self.alpha = alpha
        self.scale = alpha / rank if rank else 0.0
        self.dropout = dropout
        self.enabled = True
        self.fused = True  # False: the plain-autograd reference below
        device, dtype = base.weight.device, torch.promote_types(base.weight.dtype, torch.float32)
        self.Q = nn.Parameter(torch.empty(rank, base.in_features, device=device, dtype=dtype))
        lam = torch.ones(rank, device=device, dtype=dtype)
        if kind == "svd":
            self.lam = nn.Parameter(lam)
        else:
            self.register_buffer("lam", lam)
        self.P = nn.Parameter(torch.empty(rank, base.out_features, device=device, dtype=dtype))
        self.register_buffer("mask", torch.ones(rank, device=device, dtype=torch.bool))

    # A wrapped layer is still asked for these by some models (T5 reads wo.weight.dtype, say).
    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    @property
    def in_features(self) -> int:
        return self.base.in_features

    @property
    def out_features(self) -> int:
        return self.base.out_features

    @property
    def rank(self) -> int:
        """The number of triplets held, pruned ones included."""
        return self.Q.shape[0]

    @property
    def triplet_cost(self) -> int:
        """Trainable parameters of one triplet: d_in + d_out, and 1 where λ learns."""
        return self.in_features + self.out_features + isinstance(self.lam, nn.Parameter)

    def effective_lam(self) -> Tensor:
        """λ with the pruned entries at zero, [r]: what evaluation, merge and export use."""
        return self.lam.masked_fill(~self.mask, 0.0)

    def delta(self) -> Tensor:
        """ΔW = s·Pᵀ diag(λ ⊙ mask) Q, [d_out, d_in], in the factors' dtype."""
        return (self.P.t() * (self.effective_lam() * self.scale)) @ self.Q

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d_in] -> [..., d_out]. Training uses λ as it is (pruned triplets may learn), evaluation λ ⊙ mask."""
        base, Q, P = self.base, self.Q, self.P
        if not self.enabled or not len(Q):
            return base(x)
        lam = self.lam if self.training else self.effective_lam()
        dropped = F.dropout(x, self.dropout) if self.dropout and self.training else None
        if self.fused and _is_plain(base):
            return lowrank_linear(x, base.weight, base.bias, Q, lam, P, self.scale, dropped)
        source = x if dropped is None else dropped
        Q, lam, P = (t.to(source.dtype) for t in (Q, lam, P))
        return base(x) + (F.linear(source, Q) * (lam * self.scale)) @ P

    def extra_repr(self) -> str:
        return f"kind={self.kind}, rank={self.rank}, scale={self.scale:g}, dropout={self.dropout:g}"


def _is_plain(base: nn.Module) -> bool:
    """Whether the fused path computes what `base(x)` would: an exact nn.Linear, plain frozen tensors, no hooks.

    Asked in every forward pass, hence the short way to the tensors and hooks.
    """
    if type(base) is not nn.Linear or base._forward_hooks or base._forward_pre_hooks:
        return False
    if base._backward_hooks or base._backward_pre_hooks:
        return False
    weight, bias = base._parameters["weight"], base._parameters["bias"]
    return _is_plain_tensor(weight) and (bias is None or _is_plain_tensor(bias))


def _is_plain_tensor(tensor: Any) -> bool:
    return type(tensor) in (nn.Parameter, Tensor) and not tensor.requires_grad


def adapters_of(model: nn.Module) -> dict[str, LowRank]:
    """The adapters in `model`, by module name, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LowRank)}
