"""Merge adapters into the weights, take them out again, and bypass them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from adarank.adapters.base import original_buffers, unwrapped
from adarank.adapters.bottleneck import bottlenecks_of
from adarank.adapters.layers import wrappers_of
from adarank.adapters.lowrank import adapters_of
from adarank.errors import SettingError

_MERGED = "_adarank_merged"  # {module name: adapter}, kept out of the model's modules and of its state dict


def is_merged(model: nn.Module) -> bool:
    """Whether `merge` has set the adapters aside."""
    return _MERGED in model.__dict__


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Add every ΔW = s·Pᵀ diag(λ ⊙ mask) Q to its weight and leave the plain base modules in place.

    The state dict is then that of the plain model, and inference costs as much as the base's. The sum is taken in the
    factors' dtype (at least fp32) and rounded once to the weight's. A 4-bit layer becomes a plain nn.Linear, with a
    warning. Raises SettingError where there is nothing to merge, and for bottlenecks, which cannot be merged.

    Example:
        >>> import adarank, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).eval()
        >>> _ = adarank.adapt(model, rank=2, init="pissa")
        >>> x = torch.ones(1, 4)
        >>> before = model(x)
        >>> merge(model)
        >>> type(model[0]).__name__, torch.allclose(model(x), before, atol=1e-6)
        ('Linear', True)
        >>> unmerge(model)
        >>> type(model[0]).__name__, torch.allclose(model(x), before, atol=1e-6)
        ('LowRank', True)
    """
    model = unwrapped(model, changes=True)
    if bottlenecks_of(model):
        raise SettingError(
            "bottleneck adapters cannot be merged, because they contain a non-linearity; they stay in the model and "
            "cost time at inference"
        )
    adapters = adapters_of(model)
    if not adapters:
        raise SettingError("the model has no adapters to merge; call adarank.adapt or adarank.load_adapter first")
    for name, adapter in adapters.items():
        model.set_submodule(name, adapter.layer.merged(adapter.base, adapter.delta(), 1))
    model.__dict__[_MERGED] = adapters


@torch.no_grad()
def unmerge(model: nn.Module) -> None:
    """Undo the last `merge` within rounding: subtract ΔW from the weights and put the adapters back.

    Raises SettingError where the model was not merged. See `merge` for an example.
    """
    model = unwrapped(model, changes=True)
    adapters = model.__dict__.pop(_MERGED, None)
    if adapters is None:
        raise SettingError("the model was not merged by adarank.merge, so there is nothing to unmerge")
    for name, adapter in adapters.items():
        merged: Any = model.get_submodule(name)
        if type(merged) is type(adapter.base):
            adapter.base = merged  # the same module, unless the model was copied since
        adapter.to(merged.weight.device)
        adapter.base = adapter.layer.merged(adapter.base, adapter.delta(), -1)
        model.set_submodule(name, adapter.train(merged.training))


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Inside the `with`, the adapters are bypassed and the model computes what its original base computes.

    Buffers that training has changed, such as BatchNorm's statistics, have their values from before it. Parameters that
    were trained outside the adapters keep theirs: the head, and all that BitFit changes. Raises
    SettingError where the model has no adapter to bypass and so would not be the base: after `merge`, or with BitFit.

    Example:
        >>> import adarank, torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).eval()
        >>> x = torch.ones(1, 4)
        >>> before = model(x)
        >>> adapters = adarank.adapt(model, rank=2)
        >>> _ = nn.init.ones_(adapters["0"].lam)
        >>> with disabled(model):
        ...     torch.equal(model(x), before)
        True
        >>> torch.equal(model(x), before)
        False
    """
    model = unwrapped(model)
    adapters = wrappers_of(model).values()
    if not adapters:
        raise SettingError(
            "the model has no adapters to bypass; if they are merged, call adarank.unmerge first, and keep a copy of "
            "the base where training changes the base itself (full fine-tuning, BitFit)"
        )
    before = [adapter.enabled for adapter in adapters]
    try:
        for adapter in adapters:
            adapter.enabled = False
        with original_buffers(model):
            yield
    finally:
        for adapter, enabled in zip(adapters, before, strict=True):
            adapter.enabled = enabled
