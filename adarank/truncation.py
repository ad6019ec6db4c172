"""Prefix ranks: keeps the first r triplets of every adapter, for methods that train all prefixes at once."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adarank.adapters.base import unwrapped
from adarank.adapters.lowrank import FACTORS, adapters_of
from adarank.adapters.parametrisation import lookup
from adarank.errors import SettingError, whole_number


@torch.no_grad()
def truncate(model: nn.Module, rank: int) -> dict[str, int]:
    """Keep the first `rank` triplets of every adapter and prune the others; returns {module name: triplets kept}.

    For adapters trained at every prefix: MatryoshkaLoRA (arXiv 2605.07850), whose scale becomes s_r, and DyLoRA (arXiv
    2210.07558). For others, `adarank.compress` loses less. Modules with fewer triplets do not change. The pruned
    triplets are masked, so that saving, merging and exporting omit them; `adarank.compact` removes them from memory.

    Raises SettingError if `rank` is not a whole number of at least 1, or the model has no adapters.

    Example:
        >>> import adarank
        >>> from torch import nn
        >>> model = nn.ModuleDict({"query": nn.Linear(8, 8), "value": nn.Linear(8, 8)})
        >>> adapters = adarank.adapt(model, "matryoshka", rank=8)
        >>> truncate(model, 2), adapters["query"].scale
        ({'query': 2, 'value': 2}, 0.7071067811865476)
    """
    adapters = adapters_of(unwrapped(model))
    if not adapters:
        raise SettingError("the model has no adapters to truncate; call adarank.adapt or adarank.load_adapter first")
    rank = whole_number("rank", rank)
    kept = {}
    for name, adapter in adapters.items():
        held = int(adapter.mask.sum())
        kept[name] = min(rank, held)
        if held > rank:
            adapter.mask &= adapter.mask.cumsum(0) <= rank
            adapter.scale *= adapter.parametrisation.prefix_scale(held, rank)
    return kept


def truncate_saved(
    tensors: Mapping[str, Tensor], description: Mapping[str, Any], rank: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`truncate` for the result of `adarank.adapters.saving.read_adapter`: (tensors, description)."""
    parametrisation = lookup(description["kind"])
    if parametrisation is None:
        raise SettingError(f"an adapter of kind {description['kind']!r} has no triplets to truncate")
    rank = whole_number("rank", rank)
    kept, modules = dict(tensors), {}
    for name, info in description["modules"].items():
        held = info["rank"]
        modules[name] = dict(info)
        if held > rank:
            modules[name] |= {"rank": rank, "scale": info["scale"] * parametrisation.prefix_scale(held, rank)}
            kept |= {f"{name}.{part}": tensors[f"{name}.{part}"][:rank].contiguous() for part in FACTORS}
    return kept, {**description, "modules": modules}
