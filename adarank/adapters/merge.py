"""Adapters into the weights and out again."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from adarank.adapters.lowrank import LowRank, adapters_of
from adarank.errors import SettingError

_MERGED = "_adarank_merged"  # {module name: adapter}, kept beside the model's modules, out of its state dict


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


@torch.no_grad()
def _shift(adapter: LowRank, sign: int) -> None:
    weight = adapter.base.weight
    delta = adapter.delta()
    weight.copy_(weight.to(delta.dtype).add(delta, alpha=sign))


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Add every ΔW = s·Pᵀ diag(λ ⊙ mask) Q to its weight and leave the plain base modules in place.

    The state dict is then the plain model's, and inference costs what the base's costs. The sum is taken in the
    factors' dtype (at least fp32) and rounded once to the weight's. Raises SettingError where there is nothing to merge.
    """
    adapters = adapters_of(model)
    if not adapters:
        raise SettingError("the model has no adapters to merge; call adarank.adapt or adarank.load_adapter first")
    for name, adapter in adapters.items():
        _shift(adapter, 1)
        _put(model, name, adapter.base)
    model.__dict__[_MERGED] = adapters


def unmerge(model: nn.Module) -> None:
    """Put the adapters of the last `merge` back and take ΔW out of the weights again: its inverse within rounding."""
    adapters = model.__dict__.pop(_MERGED, None)
    if adapters is None:
        raise SettingError("the model was not merged by adarank.merge, so there is nothing to unmerge")
    for name, adapter in adapters.items():
        adapter.base = model.get_submodule(name)  # the same module, unless the model was copied since
        adapter.to(adapter.base.weight.device)
        _shift(adapter, -1)
        _put(model, name, adapter.train(adapter.base.training))


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Inside the `with`, the adapters are passed over: the model computes what its base computes."""
    adapters = list(adapters_of(model).values())
    before = [adapter.enabled for adapter in adapters]
    try:
        for adapter in adapters:
            adapter.enabled = False
        yield
    finally:
        for adapter, enabled in zip(adapters, before, strict=True):
            adapter.enabled = enabled
