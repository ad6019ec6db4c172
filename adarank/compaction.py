"""Removes pruned triplets permanently by gathering the remaining rows, and their optimiser state, into new Parameters.

The Parameters are new because replacing the data of old ones breaks autograd graphs still in use and DDP's buckets
(wrap the model in DDP again afterwards). The model's function only changes by rounding, since a pruned triplet's λ is
zero.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from adarank.adapters.base import unwrapped
from adarank.adapters.lowrank import FACTORS, LowRank, adapters_of
from adarank.errors import SettingError
from adarank.optimizers import CONTROLLER, check_state, unwrap


def compact(model: nn.Module, optimizer: Any = None) -> dict[str, int]:
    """Remove all pruned triplets from every adapter of `model`; returns {module name: remaining triplets}.

    optimizer: the optimiser that trains the adapters, if there is one, or a list of several; its parameters and state
    shrink with them, and so do RankControllers attached to it. Its state may hold only scalars and tensors of the
    parameter's shape. A module without remaining triplets computes only its base. Raises SettingError, before anything
    changes, for a model without adapters and for any other optimiser state.
    """
    adapters = adapters_of(unwrapped(model, changes=True))
    if not adapters:
        raise SettingError("the model has no adapters to compact; call adarank.adapt or adarank.load_adapter first")
    several = optimizer if isinstance(optimizer, list | tuple) else [optimizer] if optimizer is not None else []
    optimizers = [unwrap(o) for o in several]
    check_state(optimizers, [getattr(a, part) for a in adapters.values() for part in FACTORS])
    attached = {c for o in optimizers if (c := getattr(o, CONTROLLER, None)) is not None}
    for controller in attached:
        controller.compact()
    held = {id(a) for controller in attached for a in controller.bank.adapters}
    others = [a for a in adapters.values() if id(a) not in held]
    drop(others, [a.mask for a in others], optimizers)
    return {name: adapter.rank for name, adapter in adapters.items()}


@torch.no_grad()
def drop(adapters: Sequence[LowRank], keep: Sequence[Tensor], optimizers: Sequence[Optimizer]) -> list[Tensor]:
    """Keep the triplets of each adapter for which `keep` (bool [rank]) is true; returns their indices per adapter.

    Synchronises with the device. Raises SettingError, before anything changes, for state that cannot be gathered.
    """
    tensors = [(a, part) for a in adapters for part in FACTORS]
    check_state(optimizers, [getattr(a, part) for a, part in tensors])
    indices = [mask.nonzero().squeeze(1) for mask in keep]
    index_of = {id(a): index for a, index in zip(adapters, indices, strict=True)}
    replaced: dict[nn.Parameter, nn.Parameter] = {}
    for adapter, part in tensors:
        index, old = index_of[id(adapter)], getattr(adapter, part)
        if len(index) == len(old):
            continue
        adapter.replace(part, old[index])
        if not isinstance(old, nn.Parameter):
            continue
        replaced[old] = new = getattr(adapter, part)
        for optimizer in optimizers:
            if old in optimizer.state:
                state = optimizer.state.pop(old)
                optimizer.state[new] = {
                    k: v[index] if isinstance(v, Tensor) and v.shape == old.shape else v for k, v in state.items()
                }
    for adapter, index in zip(adapters, indices, strict=True):
        if len(index) < len(adapter.mask):
            adapter.mask = adapter.mask[index]
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["params"] = [replaced.get(p, p) for p in group["params"]]
    return indices
