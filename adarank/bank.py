"""One flat buffer behind the adapters' ordinary Parameters.

    weight:  [ all Q | all λ | all P ]      every Parameter occupies a segment, which the model does not notice
    grad:    [ all Q | all λ | all P ]      after `sync_views`, every .grad is a view of the same segment

Each Parameter has its own storage object over its segment's memory. If it were a view, libraries that save a model and
check which tensors share a storage (safetensors, accelerate) would treat all factors as one tensor.

Within their parts, Q and P are ordered by row length and rank, so that factors of one row length are contiguous and one
batched operation handles them all; λ and the mask keep the modules' order. A *triplet* is row i of a module's Q, entry
i of its λ and row i of its P; triplets are numbered module by module.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate, groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from adarank.adapters.lowrank import LowRank
from adarank.errors import SettingError

Entry = tuple[str, int]


class Block(NamedTuple):
    """The factors of one row length d in Q or in P, which `stack` arranges as [modules, r, d], where r is the largest
    rank.

    weight, grad: [rows, d], views of the bank. triplets: the triplet of every row of the stack, int64 [modules, r], 0
    in padding. identity: [modules, r, r], or [1, r, r] without padding; 0 in padding. positions: the row of the
    flattened stack for every row of `weight`, int64 [rows]; None if all modules have the same rank, so that nothing is
    padded.
    """

    weight: Tensor
    grad: Tensor
    triplets: Tensor
    identity: Tensor
    positions: Tensor | None

    def stack(self) -> Tensor:
        """The weights, [modules, r, d], padded with zeros; a view if nothing is padded."""
        rows = self.weight
        if self.positions is not None:
            rows = rows.new_zeros(self.triplets.numel(), rows.shape[1]).index_copy_(0, self.positions, rows)
        return rows.view(*self.triplets.shape, -1)

    def unstack(self, stack: Tensor) -> Tensor:
        """The inverse of `stack`: [rows, d] of a tensor [modules, r, d], without its padded rows."""
        flat = stack.flatten(0, 1)
        return flat if self.positions is None else flat.index_select(0, self.positions)

    @property
    def row_triplets(self) -> Tensor:
        """The triplet of every row of `weight`, int64 [rows]."""
        return self.unstack(self.triplets.unsqueeze(2)).squeeze(1)

    def add_product(self, left: Tensor, right: Tensor, alpha: float) -> None:
        """grad += alpha · left @ right without its padded rows; left: [modules, r, r], right: [modules, r, d]."""
        if self.positions is None:
            self.grad.view_as(right).baddbmm_(left, right, alpha=alpha)
        else:
            self.grad.add_(torch.bmm(left, right).flatten(0, 1).index_select(0, self.positions), alpha=alpha)


def _block(weight: Tensor, grad: Tensor, triplets: list[Tensor]) -> Block:
    """triplets: the triplets of each module, on the CPU."""
    filled = pad_sequence([torch.ones_like(numbers) for numbers in triplets], batch_first=True)
    padded = not filled.all()
    identity = torch.diag_embed(filled if padded else filled[:1]).to(weight)
    positions = filled.flatten().nonzero().squeeze(1).to(weight.device) if padded else None
    return Block(weight, grad, pad_sequence(triplets, batch_first=True).to(weight.device), identity, positions)


def involves_pruned(mask: Tensor) -> Tensor:
    """Whether the row or the column belongs to a pruned triplet: mask bool [modules, r] -> bool [modules, r, r]."""
    return ~(mask.unsqueeze(1) & mask.unsqueeze(2))


class _Slot(NamedTuple):
    """A tensor of an adapter and its segment of the flat buffers (`weight` with its own storage); the module stores the
    tensor in owner[part]."""

    owner: dict[str, Any]
    part: str
    tensor: Tensor
    weight: Tensor
    grad: Tensor | None


def _slot(adapter: LowRank, part: str, weight: Tensor, grad: Tensor | None) -> _Slot:
    trained = part in adapter._parameters
    owner: dict[str, Any] = adapter._parameters if trained else adapter._buffers
    own_storage = torch.utils.dlpack.from_dlpack(weight)
    return _Slot(owner, part, owner[part], own_storage, grad if trained else None)


class Bank:
    """Flat storage for the factors of `adapters` ({module name: LowRank}), whose values and modules do not change.

    weight, grad: flat [numel], in the factors' dtype. lam, lam_grad: [triplets], views of them. mask: bool [triplets].
    module: int64 [triplets], the index of each triplet's module in `names`. cost: int64 [triplets], d_in + d_out + 1.
    blocks: see `Block`. Q_segments: (start, end, row length) of the segments of the flat buffers that hold rows of Q;
    Q_triplets: the triplet of each of these rows, in their order, int64 [triplets]. frozen: whether pruned triplets are
    frozen, so that penalties skip them. activation: [triplets], if the score records activations (see
    `adarank.scores.score.Score`). fixed: bool [numel], the Parameters that did not require a gradient at the last
    `sync_views`; None if all did.

    Raises SettingError if there are no adapters, or if they are on several devices or have several dtypes.
    """

    activation: Tensor
    frozen = False

    def __init__(self, adapters: Mapping[str, LowRank]) -> None:
        if not adapters:
            raise SettingError("adapters must not be empty; pass the dictionary that adarank.adapt returned")
        self.names = list(adapters)
        self.adapters = list(adapters.values())
        self.allocate()

    @property
    def triplets(self) -> int:
        """The total number of triplets of all modules, including pruned ones."""
        return len(self.mask)

    @torch.no_grad()
    def allocate(self) -> None:
        """Copy the adapters' current tensors into new flat buffers and turn them into views of these."""
        placements = {f"{a.Q.dtype} on {a.Q.device}" for a in self.adapters}
        if len(placements) > 1:
            raise SettingError(f"all adapters must have one device and one dtype (got {', '.join(sorted(placements))})")
        device = self.adapters[0].Q.device
        order = range(len(self.adapters))
        by_shape = {
            part: sorted(order, key=lambda i: getattr(self.adapters[i], part).shape[::-1]) for part in ("Q", "P")
        }
        self._entries = [(part, i) for part in ("Q", "lam", "P") for i in by_shape.get(part, order)]
        tensors = [getattr(self.adapters[i], part) for part, i in self._entries]

        self.weight = torch.cat([t.reshape(-1) for t in tensors])
        self.grad = torch.zeros_like(self.weight)
        self.fixed: Tensor | None = None
        self._fixed_entries: list[Entry] = []
        self.mask = torch.cat([a.mask for a in self.adapters])
        sizes = [t.numel() for t in tensors]
        self._shapes = [t.shape for t in tensors]
        ranks = [a.rank for a in self.adapters]
        views = zip(
            self._entries, self.unflatten(self.weight).values(), self.unflatten(self.grad).values(), strict=True
        )
        self._slots = [_slot(self.adapters[i], part, weight, grad) for (part, i), weight, grad in views]
        self._slots += [
            _slot(a, "mask", view, None) for a, view in zip(self.adapters, self.mask.split(ranks), strict=True)
        ]
        for slot in self._slots:
            slot.tensor.data = slot.weight

        start = dict(zip(self._entries, accumulate(sizes, initial=0), strict=False))
        self._lam = slice(start["lam", 0], start["lam", 0] + sum(ranks))
        self.blocks, self._segments, rows = self._group(by_shape, start)
        self._rows = {part: torch.cat([rows[part, i] for i in order]).to(device) for part in ("Q", "P")}
        self.Q_segments = [segment for segment in self._segments if segment[0] < self._lam.start]
        self.Q_triplets = self._rows["Q"].argsort()
        self.module = torch.tensor(order, device=device).repeat_interleave(torch.tensor(ranks, device=device))
        costs = torch.tensor([a.in_features + a.out_features + 1 for a in self.adapters], device=device)
        self.cost = costs[self.module]

    def unflatten(self, flat: Tensor) -> dict[Entry, Tensor]:
        """Views of a flat buffer with the layout of `weight`: {("Q" | "lam" | "P", index of the module): tensor}."""
        pieces = flat.split([shape.numel() for shape in self._shapes])
        return {e: p.view(s) for e, p, s in zip(self._entries, pieces, self._shapes, strict=True)}

    def flatten(self, pieces: Mapping[Entry, Tensor]) -> Tensor:
        """The inverse of `unflatten`: one new flat buffer, [numel]."""
        return torch.cat([pieces[entry].reshape(-1) for entry in self._entries])

    def _group(
        self, by_shape: dict[str, list[int]], start: dict[Entry, int]
    ) -> tuple[list[Block], list[tuple[int, int, int]], dict[Entry, Tensor]]:
        """Blocks; (start, end, row length) of each segment of the flat buffer; row numbers of each factor."""
        blocks: list[Block] = []
        segments: list[tuple[int, int, int]] = []
        rows: dict[Entry, Tensor] = {}
        triplets = torch.arange(self.triplets).split([a.rank for a in self.adapters])
        row_count = 0
        for part, indices in by_shape.items():
            for d, group in groupby(indices, key=lambda i: getattr(self.adapters[i], part).shape[1]):
                modules = list(group)
                ranks = [self.adapters[i].rank for i in modules]
                numbers = torch.arange(row_count, row_count + sum(ranks)).split(ranks)
                rows |= {(part, i): n for i, n in zip(modules, numbers, strict=True)}
                row_count += sum(ranks)
                if sum(ranks):
                    first, end = start[part, modules[0]], start[part, modules[0]] + sum(ranks) * d
                    weight, grad = self.weight[first:end].view(-1, d), self.grad[first:end].view(-1, d)
                    blocks.append(_block(weight, grad, [triplets[i] for i in modules if len(triplets[i])]))
                    segments.append((first, end, d))
        return blocks, segments, rows

    @property
    def lam(self) -> Tensor:
        """λ of every triplet, [triplets], a view of `weight`."""
        return self.weight[self._lam]

    @property
    def lam_grad(self) -> Tensor:
        """The gradient of λ of every triplet, [triplets], a view of `grad`."""
        return self.grad[self._lam]

    @torch.no_grad()
    def sync_views(self) -> None:
        """Turn gradients, and weights that have been moved or copied, into views of the flat buffers again.

        Idempotent. A parameter without a gradient gets one of zeros, and one that does not require a gradient gets
        none, so that optimisers skip it; gradients that autograd allocated are copied in one foreach operation. Raises
        RuntimeError if anything but the bank replaced an adapter's Parameters or resized its tensors.
        """
        if any(slot.owner[slot.part] is not slot.tensor for slot in self._slots if slot.grad is not None):
            raise RuntimeError(
                "the adapters' parameters were replaced after the RankController was created; pass the optimiser to "
                "adarank.compact(model, optimizer), and create the controller after loading or adapting"
            )
        if any((a.Q.device, a.Q.dtype) != (self.weight.device, self.weight.dtype) for a in self.adapters[:1]):
            self.allocate()
        sources, targets, fixed = [], [], []
        for i, (owner, part, _, weight, grad) in enumerate(self._slots):
            tensor = owner[part]  # .to() replaces buffers with new objects
            if tensor.shape != weight.shape:
                raise RuntimeError(
                    f"an adapter's {part} has the shape {tuple(tensor.shape)}, but the RankController was created for "
                    f"{tuple(weight.shape)}; load the model's state before creating the controller, or, to resume a "
                    "compacted run, load the optimiser's state before the model's"
                )
            if tensor.data_ptr() != weight.data_ptr() and tensor.numel():
                weight.copy_(tensor)
                tensor.data = weight
            # an empty factor (rank 0) gets no gradient, so that the optimiser skips it
            if grad is None or not tensor.numel():
                continue
            if not tensor.requires_grad:
                tensor.grad = None
                fixed.append(self._entries[i])
                continue
            if tensor.grad is None:
                grad.zero_()
            elif tensor.grad.data_ptr() == grad.data_ptr():
                continue
            else:
                sources.append(tensor.grad)
                targets.append(grad)
            tensor.grad = grad.detach()  # a separate object, because moving the model replaces its memory
        if sources:
            torch._foreach_copy_(targets, sources)
        if fixed != self._fixed_entries:
            self._fixed_entries = fixed
            shapes = zip(self._entries, self._shapes, strict=True)
            pieces = {entry: torch.full(shape, entry in fixed, device=self.mask.device) for entry, shape in shapes}
            self.fixed = self.flatten(pieces) if fixed else None

    def point_gradients(self, reached: Sequence[bool]) -> None:
        """Set .grad of every factor of a reached module to its view of `grad`, and that of the others to None. reached:
        [modules]."""
        for (_, i), slot in zip(self._entries, self._slots, strict=False):
            if slot.grad is not None:
                slot.tensor.grad = slot.grad.detach() if reached[i] and slot.tensor.numel() else None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of running averages and scores: the factors' own, but at least fp32."""
        return torch.promote_types(self.weight.dtype, torch.float32)

    def buffer(self) -> Tensor:
        """Zeros for a running average over every parameter, [numel], of dtype `dtype`."""
        return torch.zeros_like(self.weight, dtype=self.dtype)

    def triplet_buffer(self) -> Tensor:
        """Zeros for a running average over every triplet, [triplets], of dtype `dtype`."""
        return torch.zeros_like(self.lam, dtype=self.dtype)

    @property
    def scale(self) -> Tensor:
        """The scale s of every triplet's adapter, [triplets], of dtype `dtype`."""
        like = self.triplet_buffer()
        return torch.cat([like.new_full((a.rank,), a.scale) for a in self.adapters])

    def row_norms(self) -> tuple[Tensor, Tensor]:
        """‖row i of Q‖ and ‖row i of P‖ for every triplet, [triplets] each, of dtype `dtype`."""
        rows = [self.weight[first:end].view(-1, d) for first, end, d in self._segments]
        norms = torch.cat([torch.linalg.vector_norm(row, dim=1, dtype=self.dtype) for row in rows])
        return norms[self._rows["Q"]], norms[self._rows["P"]]

    def triplet_sums(self, values: Tensor) -> Tensor:
        """Per triplet: the value of λ_i plus the means over row i of Q and over row i of P.

        values: flat [numel], like `weight`; returns [triplets]. For s(w) this is AdaLoRA's eq. 7 (arXiv 2303.10512).
        """
        means = torch.cat([values[first:end].view(-1, d).mean(1) for first, end, d in self._segments])
        return values[self._lam] + means[self._rows["Q"]] + means[self._rows["P"]]

    def orthogonality_norms(self) -> Tensor:
        """‖AAᵀ − I‖_F of every factor A (Q or P), [2·modules]; without the rows of pruned triplets if these are
        frozen."""
        norms = []
        for block in self.blocks:
            weight = block.stack()
            gram = weight @ weight.mT - block.identity
            if self.frozen:
                gram.masked_fill_(involves_pruned(self.mask[block.triplets]), 0.0)
            norms.append(torch.linalg.vector_norm(gram, dim=(1, 2)))
        return torch.cat(norms)

    def row_sums(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Per triplet: the sums of `values`, flat [numel] like `weight`, over row i of Q and row i of P, [triplets]
        each."""
        sums = torch.cat([values[first:end].view(-1, d).sum(1) for first, end, d in self._segments])
        return sums[self._rows["Q"]], sums[self._rows["P"]]

    def broadcast_to_parameters(self, triplets: Tensor) -> Tensor:
        """Repeat each triplet's value, [triplets], for each of its parameters: flat [numel], with `weight`'s layout."""
        per_module = triplets.split([a.rank for a in self.adapters])
        pieces = {(part, i): per_module[i] for part, i in self._entries}
        shaped = (
            pieces[entry].unsqueeze(1).expand(shape) if len(shape) > 1 else pieces[entry]
            for entry, shape in zip(self._entries, self._shapes, strict=True)
        )
        return torch.cat([piece.reshape(-1) for piece in shaped])

    @torch.no_grad()
    def zero_pruned(self) -> None:
        """λ ← 0 for pruned triplets, unless λ is fixed. It fills rather than multiplies, since a NaN would survive a
        product."""
        pruned = ~self.mask if self.fixed is None else ~self.mask & ~self.fixed[self._lam]
        self.lam.masked_fill_(pruned, 0.0)
