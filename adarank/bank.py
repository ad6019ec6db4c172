"""One flat buffer behind the adapters' ordinary Parameters.

    weight:  [ all Q | all λ | all P ]      every Parameter is a view of its stretch; the model never knows it
    grad:    [ all Q | all λ | all P ]      every .grad is, once adopted, a view of the same stretch

Q and P are ordered by row length and rank inside their part, so that factors of one shape lie side by side and one
batched operation serves them all; λ and the mask keep the modules' order. A *triplet* is row i of a module's Q,
entry i of its λ and row i of its P; triplets are numbered module by module.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from adarank.adapters.lowrank import LowRank
from adarank.errors import SettingError


class Block(NamedTuple):
    """Factors of one shape, side by side: weight and grad are [modules, r, d] views of the bank."""

    weight: Tensor
    grad: Tensor


class Bank:
    """Flat storage for the factors of `adapters` ({module name: LowRank}); the adapters stay what they are.

    weight, grad: flat [numel]; lam: [triplets] view of weight; mask: bool [triplets]; module: int64 [triplets], the
    index of each triplet's module in `names`; cost: int64 [triplets], d_in + d_out + 1; blocks: see `Block`.
    """

    def __init__(self, adapters: Mapping[str, LowRank]) -> None:
        if not adapters:
            raise SettingError("adapters is empty; pass what adarank.adapt returned")
        self.names = list(adapters)
        self.adapters = list(adapters.values())
        self._lay_out()

    @property
    def triplets(self) -> int:
        return len(self.mask)

    @torch.no_grad()
    def _lay_out(self) -> None:
        """Copy the adapters' tensors into fresh flat buffers and make them views."""
        kinds = {(a.Q.device, a.Q.dtype) for a in self.adapters}
        if len(kinds) > 1:
            raise SettingError(f"the adapters lie on several devices or in several dtypes ({kinds}); give them one")
        device, _dtype = kinds.pop()
        order = range(len(self.adapters))
        by_shape = {
            part: sorted(order, key=lambda i: getattr(self.adapters[i], part).shape[::-1])
            for part in ("Q", "P")
        }
        entries = [(part, i) for part in ("Q", "lam", "P") for i in by_shape.get(part, order)]
        tensors = [getattr(self.adapters[i], part) for part, i in entries]

        self.weight = torch.cat([t.reshape(-1) for t in tensors])
        self.grad = torch.zeros_like(self.weight)
        self.mask = torch.cat([a.mask for a in self.adapters])
        sizes = [t.numel() for t in tensors]
        self._slots = list(zip(tensors, self._cut(self.weight, tensors), self._cut(self.grad, tensors), strict=True))
        ranks = [a.rank for a in self.adapters]
        self._masks = list(zip([a.mask for a in self.adapters], self.mask.split(ranks), strict=True))
        for tensor, view in [(t, w) for t, w, _ in self._slots] + self._masks:
            tensor.data = view

        start = {entry: sum(sizes[:k]) for k, entry in enumerate(entries)}
        self._lam = slice(start["lam", 0], start["lam", 0] + sum(ranks))
        self.blocks, self._means, rows = self._group(by_shape, start)
        self._rows = {part: torch.cat([rows[part, i] for i in order]).to(device) for part in ("Q", "P")}
        self.module = torch.tensor(order, device=device).repeat_interleave(torch.tensor(ranks, device=device))
        costs = torch.tensor([a.in_features + a.out_features + 1 for a in self.adapters], device=device)
        self.cost = costs[self.module]

    @staticmethod
    def _cut(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
        return [piece.view(t.shape) for piece, t in zip(flat.split([t.numel() for t in like]), like, strict=True)]

    def _group(
        self, by_shape: dict[str, list[int]], start: dict[tuple[str, int], int]
    ) -> tuple[list[Block], list[tuple[int, int, int]], dict[tuple[str, int], Tensor]]:
        """Blocks; (first, end, row length) of each stretch of the flat buffer; row numbers of each factor."""
        blocks: list[Block] = []
        stretches: list[tuple[int, int, int]] = []
        rows: dict[tuple[str, int], Tensor] = {}
        seen = 0
        for part, indices in by_shape.items():
            shapes: dict[torch.Size, list[int]] = {}
            for i in indices:
                shapes.setdefault(getattr(self.adapters[i], part).shape, []).append(i)
            for shape, group in shapes.items():
                r, d = shape
                first = start[part, group[0]]
                end = first + len(group) * r * d
                for j, i in enumerate(group):
                    rows[part, i] = torch.arange(seen + j * r, seen + (j + 1) * r)
                seen += len(group) * r
                if r:
                    size = (len(group), r, d)
                    blocks.append(Block(self.weight[first:end].view(size), self.grad[first:end].view(size)))
                    stretches.append((first, end, d))
        return blocks, stretches, rows

    @property
    def lam(self) -> Tensor:
        """λ of every triplet, [triplets], a view of `weight`."""
        return self.weight[self._lam]

    @torch.no_grad()
    def adopt(self) -> None:
        """Make gradients, and weights that were moved or copied since, views of the flat buffers again.

        Idempotent; a parameter without a gradient gets a zero one. One foreach copy for what autograd allocated.
        """
        if any(t.device != self.weight.device or t.dtype != self.weight.dtype for t, _, _ in self._slots[:1]):
            self._lay_out()
        weights = [(t, view) for t, view, _ in self._slots if t.data_ptr() != view.data_ptr()]
        weights += [(t, view) for t, view in self._masks if t.data_ptr() != view.data_ptr()]
        for tensor, view in weights:
            view.copy_(tensor)
            tensor.data = view
        sources, targets = [], []
        for tensor, _, view in self._slots:
            if not isinstance(tensor, nn.Parameter) or tensor.grad is view:
                continue
            if tensor.grad is None:
                view.zero_()
            elif tensor.grad.data_ptr() != view.data_ptr():
                sources.append(tensor.grad)
                targets.append(view)
            tensor.grad = view
        if sources:
            torch._foreach_copy_(targets, sources)

    def buffer(self) -> Tensor:
        """Zeros for a running average over every parameter, [numel], at least fp32 whatever the training dtype."""
        return torch.zeros_like(self.weight, dtype=torch.promote_types(self.weight.dtype, torch.float32))

    def triplet_sums(self, values: Tensor) -> Tensor:
        """Per triplet: the value of λ_i, plus the mean over row i of Q, plus the mean over row i of P.

        values: flat [numel], laid out as `weight`; returns [triplets]. AdaLoRA's eq. 7 for values = s(w).
        """
        means = torch.cat([values[first:end].view(-1, d).mean(1) for first, end, d in self._means])
        return values[self._lam] + means[self._rows["Q"]] + means[self._rows["P"]]

    @torch.no_grad()
    def zero_pruned(self) -> None:
        """λ ← 0 where the mask is off. By filling, not by a product: a NaN would survive that."""
        self.lam.masked_fill_(~self.mask, 0.0)
