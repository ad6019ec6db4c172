"""Finished adapters at a smaller budget: the best low-rank approximation of all of them together."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adarank.adapters.lowrank import KINDS, LowRank, adapters_of, original_change, singular_triplets, split
from adarank.adapters.saving import FACTORS, START
from adarank.errors import SettingError


class Compressed(NamedTuple):
    """ranks: {module name: triplets left}; lost: {module name: ‖ΔW − ΔW'‖_F / ‖ΔW‖_F}, 0 where ΔW is 0; overall: the
    same over all modules together."""

    ranks: dict[str, int]
    lost: dict[str, float]
    overall: float


@torch.no_grad()
def compress(model: nn.Module, budget: int) -> Compressed:
    """Keep the `budget` largest singular values of all ΔW together and drop the rest for good; returns what is lost.

    After training, without data: PARA (arXiv 2604.27796). By QR and SVD of the factors, s included, so that modules
    with different scales compare; pruned triplets do not count. Of all ranks that add up to the budget this one loses
    least, Σ ‖ΔW − ΔW'‖²_F (Eckart–Young, module by module). Where an init took ΔW₀ out of the base, ΔW is the whole
    change of the original weight, ΔW − ΔW₀ as the adapter has it, and the base gets ΔW₀ back. Fewer triplets than the
    budget are left where all of them together have fewer singular values that are not 0 to rounding.

    The adapters' Parameters are new: make optimiser and controller after it. Raises SettingError for a budget below 1
    or a model without adapters.
    """
    adapters = adapters_of(model)
    if not adapters:
        raise SettingError("the model has no adapters to compress; call adarank.adapt or adarank.load_adapter first")
    _check(budget)
    changes = {
        name: original_change(a.scale, a.Q, a.effective_lam(), a.P, a.start_Q, a.start_P)
        for name, a in adapters.items()
    }
    triplets, found = largest(changes, budget)
    for name, adapter in adapters.items():
        V, sigma, U = triplets[name]
        _replace(adapter, split(V, sigma / adapter.scale, U, adapter.kind))
    return found


@torch.no_grad()
def compress_saved(
    tensors: Mapping[str, Tensor], description: Mapping[str, Any], budget: int
) -> tuple[dict[str, Tensor], dict[str, Any], Compressed]:
    """`compress` for what `adarank.adapters.saving.read_adapter` returns: only factors matter, so that no model is
    needed. Returns (tensors, description, what is lost)."""
    if description["kind"] not in KINDS:
        raise SettingError(f"an adapter of kind {description['kind']!r} has no ΔW of low rank to compress")
    _check(budget)
    modules = description["modules"]
    changes = {}
    for name, info in modules.items():
        factors = (tensors[f"{name}.{part}"] for part in FACTORS)
        changes[name] = original_change(info["scale"], *factors, *(tensors.get(f"{name}.{part}") for part in START))
    triplets, found = largest(changes, budget)
    kept = {name: tensors[name] for name in description["trained"]}
    for name, (V, sigma, U) in triplets.items():
        values = split(V, sigma / modules[name]["scale"], U, description["kind"])
        kept |= {f"{name}.{part}": value.contiguous() for part, value in zip(FACTORS, values, strict=True)}
    left = {name: {**info, "rank": found.ranks[name], "start_rank": None} for name, info in modules.items()}
    return kept, {**description, "modules": left}, found


def largest(
    changes: Mapping[str, tuple[Tensor, Tensor, Tensor]], budget: int
) -> tuple[dict[str, tuple[Tensor, Tensor, Tensor]], Compressed]:
    """({module: (V, σ, U)} of the `budget` largest singular values of all changes (Q, gain, P), what is lost)."""
    triplets = {name: singular_triplets(*change) for name, change in changes.items()}
    values = {name: sigma for name, (_, sigma, _) in triplets.items()}
    pooled = torch.cat([v.double().cpu() for v in values.values()])
    noise = pooled.max() * torch.finfo(next(iter(values.values())).dtype).eps if len(pooled) else 0.0
    best = torch.argsort(pooled, descending=True, stable=True)[:budget]
    kept = torch.zeros_like(pooled, dtype=torch.bool)
    kept[best] = pooled[best] > noise
    keeps = dict(zip(values, kept.split([len(v) for v in values.values()]), strict=True))
    squares = dict(zip(values, pooled.square().split([len(v) for v in values.values()]), strict=True))
    chosen = {}
    for name, (V, sigma, U) in triplets.items():
        index = keeps[name].nonzero().squeeze(1).to(sigma.device)
        chosen[name] = (V[index], sigma[index], U[index])
    lost = {name: _ratio(square[~keeps[name]], square) for name, square in squares.items()}
    overall = _ratio(pooled.square()[~kept], pooled.square())
    return chosen, Compressed({name: int(keep.sum()) for name, keep in keeps.items()}, lost, overall)


def _check(budget: Any) -> None:
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise SettingError(f"budget={budget} is no number of triplets; valid: a whole number of at least 1")


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
