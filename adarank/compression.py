"""Finished adapters at a smaller budget: the best low-rank approximation of all of them together."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from adarank.adapters.lowrank import LowRank, adapters_of, singular_triplets, split
from adarank.errors import SettingError


class Compressed(NamedTuple):
    """ranks: {module name: triplets left}; lost: {module name: ‖ΔW − ΔW'‖_F / ‖ΔW‖_F}, 0 where ΔW is 0; overall: the same
    over all modules together."""

    ranks: dict[str, int]
    lost: dict[str, float]
    overall: float


@torch.no_grad()
def compress(model: nn.Module, budget: int) -> Compressed:
    """Keep the `budget` largest singular values of all ΔW together and drop the rest for good; returns what is lost.

    After training, without data: PARA (arXiv 2604.27796). By QR and SVD of the factors, s included, so that modules with
    different scales compare; pruned triplets do not count. Of all ranks that add up to the budget this one loses least,
    Σ ‖ΔW − ΔW'‖²_F (Eckart–Young, module by module). Where an init took ΔW₀ out of the base, ΔW is the whole
    change of the original weight, ΔW − ΔW₀ as the adapter has it, and the base gets ΔW₀ back. Fewer triplets than the budget
    are left where all of them together have fewer singular values that are not 0 to rounding.

    The adapters' Parameters are new: make optimiser and controller after it. Raises SettingError for a budget below 1 or
    a model without adapters.
    """
    adapters = adapters_of(model)
    if not adapters:
        raise SettingError("the model has no adapters to compress; call adarank.adapt or adarank.load_adapter first")
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise SettingError(f"budget={budget} is no number of triplets; valid: a whole number of at least 1")
    triplets = {name: singular_triplets(*_whole(adapter)) for name, adapter in adapters.items()}
    values = {name: adapters[name].scale * sigma for name, (_, sigma, _) in triplets.items()}
    pooled = torch.cat([v.double().cpu() for v in values.values()])
    noise = pooled.max() * torch.finfo(next(iter(values.values())).dtype).eps if len(pooled) else 0.0
    best = torch.argsort(pooled, descending=True, stable=True)[:budget]
    kept = torch.zeros_like(pooled, dtype=torch.bool)
    kept[best] = pooled[best] > noise
    keeps = dict(zip(values, kept.split([len(v) for v in values.values()]), strict=True))
    squares = dict(zip(values, pooled.square().split([len(v) for v in values.values()]), strict=True))
    for name, adapter in adapters.items():
        index = keeps[name].nonzero().squeeze(1).to(adapter.Q.device)
        V, sigma, U = (part[index] for part in triplets[name])
        _replace(adapter, split(V, sigma, U, adapter.kind))
    lost = {name: _ratio(square[~keeps[name]], square) for name, square in squares.items()}
    overall = _ratio(pooled.square()[~kept], pooled.square())
    return Compressed({name: int(keep.sum()) for name, keep in keeps.items()}, lost, overall)


def _whole(adapter: LowRank) -> tuple[Tensor, Tensor, Tensor]:
    """(Q, λ, P) of the whole change of the original weight, ΔW − ΔW₀, divided by s."""
    Q, lam, P = adapter.Q, adapter.effective_lam(), adapter.P
    if adapter.start_Q is None or adapter.start_P is None:
        return Q, lam, P
    minus = torch.full_like(adapter.start_Q[:, 0], -1 / adapter.scale)
    return torch.cat([Q, adapter.start_Q]), torch.cat([lam, minus]), torch.cat([P, adapter.start_P])


def _replace(adapter: LowRank, factors: tuple[Tensor, Tensor, Tensor]) -> None:
    """New factors, none of them pruned, around the original base."""
    start = adapter.start()
    if start is not None:
        adapter.base = adapter.layer.merged(adapter.base, start, 1)
        adapter.start_Q = adapter.start_P = None
    for part, value in zip(("Q", "lam", "P"), factors, strict=True):
        old = getattr(adapter, part)
        value = value.contiguous()
        trains = isinstance(old, nn.Parameter)
        setattr(adapter, part, nn.Parameter(value, requires_grad=old.requires_grad) if trains else value)
    adapter.mask = torch.ones_like(adapter.lam, dtype=torch.bool)


def _ratio(part: Tensor, whole: Tensor) -> float:
    total = float(whole.sum())
    return (float(part.sum()) / total) ** 0.5 if total else 0.0
