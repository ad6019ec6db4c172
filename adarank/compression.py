"""Compresses finished adapters to a smaller budget with the best low-rank approximation of all of them together."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adarank.adapters.base import unwrapped
from adarank.adapters.layers import check_mergeable
from adarank.adapters.lowrank import FACTORS, START, LowRank, adapters_of, original_change, singular_triplets
from adarank.adapters.parametrisation import Parametrisation, lookup
from adarank.errors import SettingError, whole_number


class Compressed(NamedTuple):
    """ranks: {module name: triplets left}; lost: {module name: ‖ΔW − ΔW'‖_F / ‖ΔW‖_F}, 0 if ΔW is 0; overall: the
    same ratio over all modules together."""

    ranks: dict[str, int]
    lost: dict[str, float]
    overall: float


@torch.no_grad()
def compress(model: nn.Module, budget: int) -> Compressed:
    """Keep the `budget` largest singular values of all ΔW together and drop the rest; returns the ranks and the loss.

    Works after training and without data (PARA, arXiv 2604.27796). The singular values come from QR and SVD of the
    factors and include the scale s, so that modules with different scales can be compared; pruned triplets do not
    count. Of all ranks that add up to the budget, these give the smallest Σ ‖ΔW − ΔW'‖²_F (Eckart–Young in each
    module). If an init subtracted ΔW₀ from the base, ΔW is the whole change of the original weight, and the base gets
    ΔW₀ back. Fewer triplets than `budget` remain if fewer singular values exceed rounding error.

    The adapters get new Parameters: create the optimiser and the controller afterwards. Raises SettingError if
    `budget` is not a whole number of at least 1, or the model has no adapters that can be compressed.

    Example:
        >>> import adarank
        >>> from torch import nn
        >>> model = nn.ModuleDict({"query": nn.Linear(8, 8), "value": nn.Linear(8, 8)})
        >>> adapters = adarank.adapt(model, rank=4)
        >>> for name, size in (("query", 1.0), ("value", 100.0)):
        ...     _ = nn.init.constant_(adapters[name].lam, size)
        >>> compress(model, budget=4).ranks
        {'query': 0, 'value': 4}
    """
    adapters = adapters_of(unwrapped(model, changes=True))
    if not adapters:
        raise SettingError("the model has no adapters to compress; call adarank.adapt or adarank.load_adapter first")
    budget = whole_number("budget", budget)
    check_mergeable({name: adapter.base for name, adapter in adapters.items() if adapter.start_Q is not None})
    changes = {
        name: original_change(a.scale, a.Q, a.effective_lam(), a.P, a.start_Q, a.start_P)
        for name, a in adapters.items()
    }
    triplets, compressed = largest(changes, budget, [adapter.parametrisation for adapter in adapters.values()])
    for name, adapter in adapters.items():
        V, sigma, U = triplets[name]
        _replace(adapter, adapter.parametrisation.split(V, sigma / adapter.scale, U))
    return compressed


@torch.no_grad()
def compress_saved(
    tensors: Mapping[str, Tensor], description: Mapping[str, Any], budget: int
) -> tuple[dict[str, Tensor], dict[str, Any], Compressed]:
    """`compress` for the result of `adarank.adapters.saving.read_adapter`: (tensors, description, ranks and loss)."""
    parametrisation = lookup(description["kind"])
    if parametrisation is None:
        raise SettingError(f"an adapter of kind {description['kind']!r} has no low-rank ΔW to compress")
    budget = whole_number("budget", budget)
    modules = description["modules"]
    changes = {}
    for name, info in modules.items():
        factors = (tensors[f"{name}.{part}"] for part in FACTORS)
        changes[name] = original_change(info["scale"], *factors, *(tensors.get(f"{name}.{part}") for part in START))
    triplets, compressed = largest(changes, budget, [parametrisation])
    kept = {name: tensors[name] for name in (*description["trained"], *description.get("buffers", ()))}
    for name, (V, sigma, U) in triplets.items():
        values = parametrisation.split(V, sigma / modules[name]["scale"], U)
        kept |= {f"{name}.{part}": value.contiguous() for part, value in zip(FACTORS, values, strict=True)}
    left = {name: {**info, "rank": compressed.ranks[name], "start_rank": None} for name, info in modules.items()}
    return kept, {**description, "modules": left}, compressed


def largest(
    changes: Mapping[str, tuple[Tensor, Tensor, Tensor]], budget: int, parametrisations: Iterable[Parametrisation]
) -> tuple[dict[str, tuple[Tensor, Tensor, Tensor]], Compressed]:
    """({module: (V, σ, U)} with the `budget` largest singular values of all changes (Q, gain, P), ranks and loss).
    Raises SettingError for a parametrisation whose weight change is more than its triplets."""
    for parametrisation in parametrisations:
        if not parametrisation.is_plain:
            raise SettingError(f"an adapter of kind {parametrisation.name!r} is more than a low-rank ΔW to compress")
    triplets = {name: singular_triplets(*change) for name, change in changes.items()}
    values = {name: sigma for name, (_, sigma, _) in triplets.items()}
    pooled = torch.cat([v.double().cpu() for v in values.values()])
    noise = pooled.max() * torch.finfo(next(iter(values.values())).dtype).eps if len(pooled) else 0.0
    best = torch.argsort(pooled, descending=True, stable=True)[:budget]
    kept = torch.zeros_like(pooled, dtype=torch.bool)
    kept[best] = pooled[best] > noise
    lengths = [len(v) for v in values.values()]
    keeps = dict(zip(values, kept.split(lengths), strict=True))
    squares = dict(zip(values, pooled.square().split(lengths), strict=True))
    chosen = {}
    for name, (V, sigma, U) in triplets.items():
        index = keeps[name].nonzero().squeeze(1).to(sigma.device)
        chosen[name] = (V[index], sigma[index], U[index])
    lost = {name: _ratio(square[~keeps[name]], square) for name, square in squares.items()}
    overall = _ratio(pooled.square()[~kept], pooled.square())
    return chosen, Compressed({name: int(keep.sum()) for name, keep in keeps.items()}, lost, overall)


def _replace(adapter: LowRank, factors: tuple[Tensor, Tensor, Tensor]) -> None:
    """Set new factors, none of which are pruned, around the original base."""
    start = adapter.start()
    if start is not None:
        adapter.base = adapter.layer.merged(adapter.base, start, 1)
        adapter.start_Q = adapter.start_P = None
    for part, value in zip(FACTORS, factors, strict=True):
        adapter.replace(part, value.contiguous())
    adapter.mask = torch.ones_like(adapter.lam, dtype=torch.bool)


def _ratio(part: Tensor, whole: Tensor) -> float:
    total = float(whole.sum())
    return (float(part.sum()) / total) ** 0.5 if total else 0.0
