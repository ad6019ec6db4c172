"""Adapters into the weights and out again."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from adarank.adapters.bottleneck import bottlenecks_of
from adarank.adapters.lowrank import adapters_of
from adarank.errors import SettingError

_MERGED = "_adarank_merged"  # {module name: adapter}, kept beside the model's modules, out of its state dict


def is_merged(model: nn.Module) -> bool:
    """Whether `merge` put the adapters aside."""
    return _MERGED in model.__dict__


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Add every ΔW = s·Pᵀ diag(λ ⊙ mask) Q to its weight and leave the plain base modules in place.

    The state dict is then the plain model's, and inference costs what the base's costs. The sum is taken in the
    factors' dtype (at least fp32) and rounded once to the weight's. A 4-bit layer becomes a plain nn.Linear, with a
    warning. Raises SettingError where there is nothing to merge, and for bottlenecks, which have no merge.
    """
    if bottlenecks_of(model):
        raise SettingError(
            "bottleneck adapters cannot be merged, since a non-linearity stands between them and the weights; they stay "
            "in the model, which is what they cost at inference"
        )
    adapters = adapters_of(model)
    if not adapters:
        raise SettingError("the model has no adapters to merge; call adarank.adapt or adarank.load_adapter first")
    for name, adapter in adapters.items():
        _put(model, name, adapter.layer.merged(adapter.base, adapter.delta(), 1))
    model.__dict__[_MERGED] = adapters


@torch.no_grad()
def unmerge(model: nn.Module) -> None:
    """Put the adapters of the last `merge` back and take ΔW out of the weights again: its inverse within rounding."""
    adapters = model.__dict__.pop(_MERGED, None)
    if adapters is None:
        raise SettingError("the model was not merged by adarank.merge, so there is nothing to unmerge")
    for name, adapter in adapters.items():
        merged: Any = model.get_submodule(name)
        if type(merged) is type(adapter.base):
            adapter.base = merged  # the same module, unless the model was copied since
        adapter.to(merged.weight.device)
        adapter.base = adapter.layer.merged(adapter.base, adapter.delta(), -1)
        _put(model, name, adapter.train(merged.training))


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Inside the `with`, the adapters are passed over: the model computes what its original base computes.

    What trains outside the adapters stays as trained: the head, and all that BitFit changes. Raises SettingError where
    the model has no adapter to pass over, since it would not be the base: merged, or trained by BitFit, say.
    """
    adapters: list[Any] = [*adapters_of(model).values(), *bottlenecks_of(model).values()]
    if not adapters:
        raise SettingError(
            "the model has no adapters to pass over; if they are merged, call adarank.unmerge first, and keep a copy of "
            "the base where training changes the base itself (full fine-tuning, BitFit)"
        )
    before = [adapter.enabled for adapter in adapters]
    try:
        for adapter in adapters:
            adapter.enabled = False
        yield
    finally:
        for adapter, enabled in zip(adapters, before, strict=True):
            adapter.enabled = enabled
