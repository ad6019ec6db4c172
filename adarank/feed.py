"""The bank feeds its adapters: work that each would repeat is done once per step for all of them together.

    begin       the factors in the dtype of the computation, and λ ⊙ Q               all modules
    forward     h = (λ ⊙ Q) xᵀ,  out = x Wᵀ + b + s·hᵀ P                             each module
    backward    u = s·P gᵀ,  ∂L/∂x = g W + uᵀ (λ ⊙ Q),  A = u x,  ∂L/∂P = s·h g       each module
    finish      ∂L/∂λ_i = Σ_j A_ij Q_ij,  ∂L/∂Q = λ ⊙ A                               all modules

Six products per module and nothing else; A and ∂L/∂P go straight into a flat buffer. In fp32 that buffer is the bank's
own; under autocast it has the dtype of the computation, and `finish` continues in the factors' dtype.
"""

import torch
from torch import Tensor

from adarank.adapters.fused import Fed
from adarank.bank import Bank


class Feed:
    """Feeds the adapters of `bank`, whose products compute in `dtype`, until the layout of the bank changes.

    Every adapter must be one that `can_be_fed`; λ is trained in all of them or in none, and masked in all or none.
    """

    def __init__(self, bank: Bank, dtype: torch.dtype) -> None:
        self.bank, weight = bank, bank.weight
        self.casts = dtype != weight.dtype
        self.learns_lambda, self.masked = bank.adapters[0].learns_lambda, bank.adapters[0].masked
        end = bank.Q_segments[-1][1] if bank.Q_segments else 0
        self.factors = torch.empty_like(weight, dtype=dtype) if self.casts else weight
        self.gained_Q = self.factors[:end] if self.casts else torch.empty_like(weight[:end])
        self.gradients = torch.zeros_like(weight, dtype=dtype) if self.casts else bank.grad
        anchor = torch.zeros((), requires_grad=True)
        factors, gradients = bank.unflatten(self.factors), bank.unflatten(self.gradients)
        order = [i for part, i in factors if part == "Q"]
        shapes = {i: bank.adapters[i].Q.shape for i in order}
        pieces = self.gained_Q.split([shapes[i].numel() for i in order])
        gained = {i: piece.view(shapes[i]) for i, piece in zip(order, pieces, strict=True)}
        self.fed = [
            Fed(gained[i], factors["P", i], gradients["Q", i], gradients["P", i], anchor, [False])
            for i in range(len(bank.adapters))
        ]
        self.rows = bank.Q_triplets.split([(end - start) // d for start, end, d in bank.Q_segments])

    @torch.no_grad()
    def begin(self) -> None:
        """Prepare the tensors for the next forward pass and hand them to the adapters."""
        weight = self.bank.weight
        if self.casts:
            self.factors[len(self.gained_Q) :].copy_(weight[len(self.gained_Q) :])
        lam = self._lam()
        for (start, end, d), rows in zip(self.bank.Q_segments, self.rows, strict=True):
            Q, gained = (flat[start:end].view(-1, d) for flat in (weight, self.gained_Q))
            torch.mul(Q, lam[rows].unsqueeze(1), out=gained)
        for adapter, fed in zip(self.bank.adapters, self.fed, strict=True):
            fed.reached[0] = False
            adapter.fed = fed if adapter.rank else None

    def leave(self) -> None:
        """Take the tensors away again, since all other passes use the factors."""
        for adapter in self.bank.adapters:
            adapter.fed = None

    @torch.no_grad()
    def finish(self) -> None:
        """After the backward pass, compute every factor's gradient in the bank, and set .grad of those that the pass
        reached."""
        weight, grad = self.bank.weight, self.bank.grad
        if self.casts:
            grad.copy_(self.gradients)
        lam, d_lam = self._lam(), []
        for (start, end, d), rows in zip(self.bank.Q_segments, self.rows, strict=True):
            Q, A = (flat[start:end].view(-1, d) for flat in (weight, grad))
            if self.learns_lambda:
                d_lam.append(torch.linalg.vecdot(A, Q))
            A.mul_(lam[rows].unsqueeze(1))
        if d_lam:
            self.bank.lam_grad.index_copy_(0, self.bank.Q_triplets, torch.cat(d_lam))
            if self.masked:
                self.bank.lam_grad.masked_fill_(~self.bank.mask, 0.0)
        self.bank.point_gradients([fed.reached[0] for fed in self.fed])

    def _lam(self) -> Tensor:
        """λ as used in the pass, [triplets]."""
        return self.bank.lam.masked_fill(~self.bank.mask, 0.0) if self.masked else self.bank.lam


def feed_of(bank: Bank, autocast: torch.dtype | None) -> Feed | None:
    """The feed of `bank` under autocast to that dtype; None if any of its adapters cannot be fed or is in evaluation
    mode."""
    adapters = bank.adapters
    alike = len({(a.learns_lambda, a.masked) for a in adapters}) == 1
    dtypes = {a.layer.matrix(a.base).dtype for a in adapters} if autocast is None else {autocast}
    if not alike or len(dtypes) > 1 or not all(a.can_be_fed and a.training for a in adapters):
        return None
    return Feed(bank, dtypes.pop())
