"""Drop pruned triplets for good: gather the kept rows into new Parameters, optimiser state included.

New Parameters, because swapping the data under old ones breaks a graph that is still alive and DDP's buckets (wrap the
model in DDP again afterwards). The function changes by rounding only: a pruned triplet's λ is zero.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from adarank.adapters.lowrank import LowRank, adapters_of
from adarank.errors import SettingError

CONTROLLER = "adarank_controller"  # the attribute by which an optimiser knows its RankController


def unwrap(optimizer: Any) -> Optimizer:
    """The torch optimiser inside accelerate's wrapper, or the optimiser itself."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer


def compact(model: nn.Module, optimizer: Any = None) -> dict[str, int]:
    """Drop what is pruned now from every adapter of `model`; returns {module name: triplets left}.

    optimizer: whatever trains the adapters, so that its parameters and state shrink with them (a RankController on it
    follows). Its state may hold scalars and tensors of the parameter's shape; anything else is refused by name before
    anything changes (SettingError). A module left with no triplet computes its base alone.
    """
    adapters = adapters_of(model)
    if not adapters:
        raise SettingError("the model has no adapters to compact; call adarank.adapt or adarank.load_adapter first")
    optimizer = None if optimizer is None else unwrap(optimizer)
    controller = getattr(optimizer, CONTROLLER, None)
    if controller is not None:
        controller.compact()
    else:
        drop(list(adapters.values()), [a.mask for a in adapters.values()], optimizer)
    return {name: adapter.rank for name, adapter in adapters.items()}


@torch.no_grad()
def drop(adapters: Sequence[LowRank], keep: Sequence[Tensor], optimizer: Optimizer | None) -> list[Tensor]:
    """Keep the triplets of each adapter where `keep` (bool [rank]) is true; returns their indices, adapter by adapter.

    Reads the masks from the device, which synchronises. Raises SettingError before anything changes.
    """
    tensors = [(a, part) for a in adapters for part in ("Q", "lam", "P")]
    if optimizer is not None:
        check_state(optimizer, [getattr(a, part) for a, part in tensors])
    indices = [mask.nonzero().squeeze(1) for mask in keep]
    of_adapter = {id(a): index for a, index in zip(adapters, indices, strict=True)}
    renewed: dict[nn.Parameter, nn.Parameter] = {}
    for adapter, part in tensors:
        index, old = of_adapter[id(adapter)], getattr(adapter, part)
        if len(index) == len(old):
            continue
        if not isinstance(old, nn.Parameter):
            setattr(adapter, part, old[index])
            continue
        new = nn.Parameter(old[index], requires_grad=old.requires_grad)
        setattr(adapter, part, new)
        renewed[old] = new
        if optimizer is not None and old in optimizer.state:
            state = optimizer.state.pop(old)
            optimizer.state[new] = {
                k: v[index] if isinstance(v, Tensor) and v.shape == old.shape else v for k, v in state.items()
            }
    for adapter, index in zip(adapters, indices, strict=True):
        if len(index) < len(adapter.mask):
            adapter.mask = adapter.mask[index]
    for group in optimizer.param_groups if optimizer is not None else ():
        group["params"] = [renewed.get(p, p) for p in group["params"]]
    return indices


def check_state(optimizer: Optimizer, tensors: Sequence[Tensor], done: str = "compacted") -> None:
    """Raise SettingError, naming the optimiser, where its state of one of `tensors` cannot be gathered or zeroed by row.
    done: what could not be, for the message."""
    for tensor in tensors:
        for key, value in optimizer.state.get(tensor, {}).items():
            plain = value is None or isinstance(value, bool | int | float)
            if not plain and not (isinstance(value, Tensor) and (value.numel() == 1 or value.shape == tensor.shape)):
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise SettingError(
                    f"{type(optimizer).__name__} cannot be {done}: its state {key!r} is {shape} for a parameter of "
                    f"{tuple(tensor.shape)}; valid: optimisers whose state is scalars and parameter-shaped tensors"
                )
