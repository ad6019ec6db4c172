"""The model that carries the adapters: unwrapping it, its buffers, class names and fingerprint."""

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adarank.adapters.layers import weight_name, wrappers_of
from adarank.errors import SettingError

_BEFORE = "_adarank_buffers_before"  # {name: value before training}, kept out of the model's state dict
SAMPLED, VALUES = 24, 16  # parameters in a fingerprint, and values per parameter
TOLERANCE = 2**-7  # one copy of a weight may be in bf16 and another in fp32 or fp16, each rounded once
SMALLEST = 2**-24  # the smallest fp16 number above 0


def unwrapped(model: nn.Module, changes: bool = False) -> nn.Module:
    """The model inside torch.compile's wrapper, DataParallel and DistributedDataParallel, without their name prefixes.

    changes: whether the caller adds, removes or replaces modules or Parameters, which DistributedDataParallel would not
    notice. Raises SettingError for changes inside it, for FullyShardedDataParallel, which replaces Parameters itself,
    and for a wrapper further inside, which would become part of the names.
    """
    while (wrapper := _wrapper(model)) is not None:
        if changes and wrapper == "DistributedDataParallel":
            raise SettingError(
                "the model is wrapped in DistributedDataParallel, which keeps the Parameters it was given; do this to "
                "the model inside (model.module), and wrap it afterwards"
            )
        inner: nn.Module = model._orig_mod if wrapper == "OptimizedModule" else model.module  # type: ignore[assignment]
        model = inner
    for name, module in model.named_modules():
        if (wrapper := _wrapper(module)) is not None:
            instead = "its method compile()" if wrapper == "OptimizedModule" else "the wrapper around the whole model"
            raise SettingError(f"{name} is wrapped in {wrapper}, which changes the names inside; use {instead}")
    return model


def _wrapper(module: nn.Module) -> str | None:
    """The name of the wrapper that `module` is, if any; classes are compared by name, so as not to import them."""
    name = type(module).__name__
    if name == "FullyShardedDataParallel":
        raise SettingError(
            "the model is wrapped in FullyShardedDataParallel, which replaces the adapters' Parameters with flat ones; "
            "use torch.distributed.fsdp.fully_shard, or adapt, save and merge outside of it"
        )
    known = ("OptimizedModule", "DataParallel", "DistributedDataParallel")
    return name if name in known and type(module).__module__.startswith("torch.") else None


def base_name(name: str, wrapped: Collection[str]) -> str:
    """The name that a parameter or buffer of the base has in the plain base. wrapped: the names of wrapped layers."""
    module, _, part = name.rpartition(".base.")
    return f"{module}.{part}" if module in wrapped else name


def remember_buffers(model: nn.Module) -> None:
    """Remember the values of the saved buffers, such as BatchNorm's statistics, before training."""
    for module in model.modules():
        module.__dict__.pop(_BEFORE, None)
    model.__dict__[_BEFORE] = {name: buffer.clone() for name, buffer in _saved_buffers(model).items()}


def changed_buffers(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """{name in the plain base: (buffer, its value before training)} for the buffers that training has changed."""
    buffers = _saved_buffers(model)
    before = {
        f"{prefix}.{name}" if prefix else name: value
        for prefix, module in model.named_modules()
        for name, value in module.__dict__.get(_BEFORE, {}).items()
    }
    pairs = {name: (buffers[name], value.to(buffers[name].device)) for name, value in before.items() if name in buffers}
    return {name: pair for name, pair in pairs.items() if not torch.equal(*pair)}


def _saved_buffers(model: nn.Module) -> dict[str, Tensor]:
    """The base's buffers in a state dict, by their names in the plain base."""
    wrapped = wrappers_of(model)
    return {
        base_name(f"{prefix}.{name}" if prefix else name, wrapped): buffer
        for prefix, module in model.named_modules()
        if prefix not in wrapped
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    }


def train_whole(model: nn.Module, names: Sequence[str]) -> None:
    """Train the modules with these names as a whole, and warn of anything in the model that trains in half
    precision."""
    for name in names:
        model.get_submodule(name).requires_grad_(True)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
            module = name.rpartition(".")[0]
            warnings.warn(
                f"{name} trains in {str(parameter.dtype).removeprefix('torch.')}, whose rounding loses most updates; "
                f"call model.get_submodule({module!r}).float() before adapting, and train under torch.autocast",
                stacklevel=3,
            )
            return


@contextmanager
def original_buffers(model: nn.Module) -> Iterator[None]:
    """Inside the `with`, buffers that training has changed have their values from before training."""
    changed = changed_buffers(model)
    now = {name: buffer.clone() for name, (buffer, _) in changed.items()}
    try:
        for buffer, before in changed.values():
            buffer.copy_(before)
        yield
    finally:
        for name, (buffer, _) in changed.items():
            buffer.copy_(now[name])


def class_names(model: nn.Module) -> list[str]:
    """The class names in a Transformers config; empty if it only has its placeholders LABEL_0, LABEL_1, …"""
    names = [str(name) for name in (getattr(getattr(model, "config", None), "id2label", None) or {}).values()]
    return [] if names == [f"LABEL_{i}" for i in range(len(names))] else names


def name_classes(model: Any, names: Sequence[str]) -> None:
    """Put the class names, in index order, into the config of a Transformers model; without names, change nothing."""
    if names:
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: i for i, name in enumerate(names)}


def fingerprint(model: nn.Module) -> dict[str, list[Any]]:
    """{name in the plain base: [number of values, some of them]} for some frozen parameters from all parts of the
    model.

    A different checkpoint of the same shapes has different values; the same checkpoint in another floating-point dtype
    differs by rounding. Quantised layers are excluded.
    """
    wrapped = wrappers_of(model)
    shifted = {weight_name(n, w.base) for n, w in wrapped.items() if getattr(w, "start_Q", None) is not None}
    frozen = {
        base_name(name, wrapped): parameter
        for name, parameter in model.named_parameters()
        if not parameter.requires_grad and _is_plain(parameter) and name not in shifted
    }
    names = [list(frozen)[i] for i in _spread(len(frozen), SAMPLED)]
    values = {name: _values(frozen[name], frozen[name].numel()) for name in names}
    return {name: [frozen[name].numel(), [float(f"{v:.6g}") for v in values[name]]] for name in names}


def differs_from(model: nn.Module, saved: Mapping[str, list[Any]]) -> str | None:
    """The first parameter of an unadapted `model` whose values differ from those in a `fingerprint`; None if none
    does."""
    parameters = dict(model.named_parameters())
    for name, (numel, values) in saved.items():
        here = parameters.get(name)
        if here is None or not _is_plain(here):
            continue
        there = torch.tensor(values, dtype=torch.float64)
        if here.numel() < numel or not torch.allclose(
            torch.tensor(_values(here, numel), dtype=torch.float64), there, rtol=TOLERANCE, atol=SMALLEST
        ):
            return name
    return None


def _is_plain(parameter: Tensor) -> bool:
    """Whether a parameter holds its values on this process's devices, not quantised."""
    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    return (
        type(parameter) is nn.Parameter
        and parameter.dtype in dtypes
        and not parameter.is_meta
        and parameter.numel() > 0
    )


def _values(parameter: Tensor, numel: int) -> list[float]:
    """Evenly spread values from the first `numel` of a parameter, so that further rows, such as new tokens, do not
    matter."""
    index = torch.tensor(_spread(numel, VALUES), device=parameter.device)
    found: list[float] = parameter.detach().flatten()[index].double().tolist()
    return found


def _spread(total: int, count: int) -> list[int]:
    """Up to `count` different indices below `total`, evenly spread."""
    return sorted({i * (total - 1) // max(count - 1, 1) for i in range(count)}) if total else []
