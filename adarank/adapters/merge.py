"""Merge adapters into the weights, unmerge them, and bypass them."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import nn

from adarank.adapters.base import original_buffers, unwrapped
from adarank.adapters.bottleneck import bottlenecks_of
from adarank.adapters.experts import keep_names, layer_at, put_layer
from adarank.adapters.layers import CONV1D, LINEAR, LINEAR_4BIT, check_mergeable, layer_of, storage_of, wrappers_of
from adarank.adapters.lowrank import LowRank, adapters_of
from adarank.errors import SettingError

_MERGED = "_adarank_merged"  # a `_Merged`, kept out of the model's modules and state dict


class _Merged(NamedTuple):
    """The data for `unmerge`. adapters, plain: {module name: the adapter, and the module that `merge` put in its
    place}; marks: (object, attribute, value) for each quantisation mark that `merge` changed."""

    adapters: dict[str, LowRank]
    plain: dict[str, nn.Module]
    marks: list[tuple[Any, str, Any]]


def is_merged(model: nn.Module) -> bool:
    """Whether `merge` has set the adapters aside."""
    return _MERGED in model.__dict__


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Add every ΔW = s·Pᵀ diag(λ ⊙ mask) Q to its weight, leaving only the plain base modules in the model.

    The state dict is then that of the plain model, and inference costs as much as with the base. The sum is taken in
    the factors' dtype (at least fp32) and rounded once to the weight's. A 4-bit layer becomes a plain nn.Linear, with a
    warning, and the quantization_config of a Transformers model is corrected, so that it can be saved and loaded. A
    merged model may be adapted again; `unmerge` is then refused until the new adapters are merged as well, and undoes
    that last merge only.

    Raises SettingError, before anything is changed, if there is nothing to merge, for bottlenecks, and for a layer
    that would not use W + ΔW, because its weight is computed or offloaded or its forward was replaced.

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
    check_mergeable({name: adapter.base for name, adapter in adapters.items()})
    dequantizes = any(adapter.layer is LINEAR_4BIT for adapter in adapters.values())
    plain = {name: adapter.merged() for name, adapter in adapters.items()}
    for name, module in plain.items():
        put_layer(model, name, module)
    keep_names(model)
    model.__dict__[_MERGED] = _Merged(adapters, plain, _correct_marks(model) if dequantizes else [])


def _correct_marks(model: nn.Module) -> list[tuple[Any, str, Any]]:
    """Tell each Transformers model inside `model` which layers are still 4-bit; returns its previous marks.

    A model without such layers loses all its quantisation marks. Otherwise its quantization_config lists every plain
    linear in llm_int8_skip_modules.
    """
    before: list[tuple[Any, str, Any]] = []
    for module in model.modules():
        if vars(module).get("hf_quantizer") is None:
            continue
        config: Any = module.config
        layers = {name: layer_of(child) for name, child in module.named_modules()}
        if LINEAR_4BIT in layers.values():
            before.append((config, "quantization_config", config.quantization_config))
            config.quantization_config = deepcopy(config.quantization_config)
            plain = [name for name, layer in layers.items() if layer in (LINEAR, CONV1D)]
            config.quantization_config.llm_int8_skip_modules = plain
            continue
        marks = ("hf_quantizer", "is_quantized", "is_loaded_in_4bit", "quantization_method", "quantization_config")
        for holder in (module, config):
            for name in vars(holder).keys() & {*marks, "_is_quantized"}:
                before.append((holder, name, vars(holder)[name]))
                delattr(holder, name)
    return before


@torch.no_grad()
def unmerge(model: nn.Module) -> None:
    """Undo the last `merge` within rounding: subtract ΔW from the weights and put the adapters back.

    Raises SettingError, before anything is changed, if the model was not merged, or if it has since been adapted again
    or a merged module has been replaced. See `merge` for an example.
    """
    model = unwrapped(model, changes=True)
    merged = model.__dict__.get(_MERGED)
    if merged is None:
        raise SettingError("the model was not merged by adarank.merge, so there is nothing to unmerge")
    if newer := next(iter(wrappers_of(model)), None):
        raise SettingError(
            f"the model was adapted again after the merge ({newer}), and unmerging would mix the two sets of adapters; "
            "merge the new ones first, which is then the merge that unmerge undoes"
        )
    if replaced := next((name for name, module in merged.plain.items() if not _is_at(model, name, module)), None):
        raise SettingError(f"{replaced} was replaced after the merge, so that ΔW cannot be subtracted from it")
    check_mergeable(merged.plain)
    for name, adapter in merged.adapters.items():
        plain = merged.plain[name]
        if type(plain) is type(adapter.base):
            adapter.base = plain  # the same module, unless the model has been copied since
        adapter.to(plain.weight.device)
        adapter.base = adapter.unmerged()
        put_layer(model, name, adapter.train(layer_at(model, name).training))
    keep_names(model)
    for holder, name, value in merged.marks:
        setattr(holder, name, value)
    del model.__dict__[_MERGED]


def _is_at(model: nn.Module, name: str, plain: nn.Module) -> bool:
    """Whether the layer called `name` still is the module `plain`, or an expert's matrix in the same stack."""
    try:
        return storage_of(layer_at(model, name)) == storage_of(plain)
    except AttributeError:
        return False


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Inside the `with`, the adapters are bypassed and the model computes what its original base computes.

    Buffers that training has changed, such as BatchNorm's statistics, have their values from before training.
    Parameters trained outside the adapters (the head, and everything that BitFit changes) keep their trained values.
    Raises SettingError if the model has no adapter to bypass and so would not act as the base: after `merge`, or with
    BitFit.

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
            "the base if training changes the base itself (full fine-tuning, BitFit)"
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
