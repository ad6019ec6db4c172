"""A model in several processes, as replicas (DDP) or in shards (FSDP2), such that a step equals that of one process
with the whole batch.

shard=none    every rank holds the model; DDP averages the gradients while they are computed
shard=fsdp2   frozen weights are sharded and gathered block by block; trained parameters (the bank, the head) stay
              whole on every rank, and one all-reduce averages their gradients; if everything trains, all is sharded
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist

from adarank.errors import RunFailed
from adarank.harness.run.distributed import of_all, rank, world

# The parameters that a replica handles, because DDP's own list is not public.
_averaged: "WeakKeyDictionary[nn.Module, list[nn.Parameter]]" = WeakKeyDictionary()


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def can_shard() -> bool:
    """Whether FSDP2 in this version of torch can exclude parameters (2.7 and later)."""
    from torch.distributed import fsdp

    return hasattr(fsdp, "fully_shard") and "ignored_params" in signature(fsdp.fully_shard).parameters


@torch.no_grad()
def broadcast_model(model: nn.Module) -> None:
    """Copy rank 0's weights, factors and buffers to every rank. They are equal by construction (every rank measures the
    same batches), but not bit for bit on different devices. Raises RunFailed if even the adapters' ranks differ."""
    tensors = [*model.parameters(), *model.buffers()]
    if len({tuple(shapes) for shapes in of_all([tuple(t.shape) for t in tensors])}) > 1:
        raise RunFailed(
            "the processes' models differ in shape: they saw different data, or different devices decided differently"
        )
    for tensor in tensors if world() > 1 else ():
        dist.broadcast(tensor, src=0)


def shard(model: nn.Module) -> None:
    """Shard the model's weights over the ranks, in place: block by block (the members of its ModuleLists, inner ones
    first), then the rest. Call this before creating the optimiser."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    whole = set(trained(model))
    if len(whole) == sum(1 for _ in model.parameters()):
        whole = set()
    mesh = init_device_mesh(next(model.parameters()).device.type, (world(),))
    blocks = [child for m in model.modules() if isinstance(m, nn.ModuleList) for child in m]
    for block in (*reversed(blocks), model):
        if any(p not in whole for p in block.parameters()):
            fully_shard(block, mesh=mesh, ignored_params=whole)


def replicate(model: nn.Module) -> Any:
    """The model wrapped in DDP, which ignores parameters that never get a gradient (factors of modules at rank 0) and
    buffers (masks are equal by construction)."""
    parameters = trained(model)
    left_out = [name for name, p in model.named_parameters() if not p.numel()]
    left_out += [name for name, _ in model.named_buffers()]
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, left_out)
    everything = len(parameters) == sum(1 for _ in model.parameters())  # the task may not use all of them
    net = nn.parallel.DistributedDataParallel(model, init_sync=False, find_unused_parameters=everything)
    _averaged[net] = parameters
    return net


def is_outdated(net: Any) -> bool:
    """Whether compaction put new Parameters, which DDP does not know, into a replica."""
    if not isinstance(net, nn.parallel.DistributedDataParallel):
        return False
    now, then = trained(net.module), _averaged[net]
    return len(now) != len(then) or any(a is not b for a, b in zip(now, then, strict=True))


def no_sync(net: Any, last: bool) -> AbstractContextManager[Any]:
    """A context for each forward and backward pass of a gradient accumulation: only the last one sends gradients."""
    if last or not isinstance(net, nn.parallel.DistributedDataParallel):
        return nullcontext()
    return net.no_sync()  # type: ignore[no-any-return]


def average_gradients(model: nn.Module) -> None:
    """Average the gradients of all unsharded parameters over the ranks with one all-reduce."""
    gradients = [p.grad for p in trained(model) if p.grad is not None and not is_sharded(p)]
    if not gradients:
        return
    flat = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(flat)
    pieces = (flat / world()).split([g.numel() for g in gradients])
    torch._foreach_copy_(gradients, [piece.view_as(g) for piece, g in zip(pieces, gradients, strict=True)])


def local_slice(rows: int) -> slice:
    """This rank's share of `rows` rows."""
    return slice(rank() * rows // world(), (rank() + 1) * rows // world())


def local_batch(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """This rank's rows of a batch, which is padded as a whole so that every rank computes what a single process
    would."""
    return {name: tensor[local_slice(len(tensor))] for name, tensor in batch.items()}


def mean(value: Tensor) -> Tensor:
    """The mean of `value` over the ranks."""
    if world() > 1:
        value = value.clone()
        dist.all_reduce(value)
        value /= world()
    return value


def gather_batches(order: Sequence[np.ndarray], compute: Callable[[np.ndarray], Tensor]) -> Tensor:
    """compute(rows) [rows, …] for every batch in `order`, joined in that order; every rank gets the whole result.

    Rank i of n computes batches i, i + n, …, so that every batch is one that a single process would see.
    """
    found: list[Tensor] = []
    for first in range(0, len(order), world()):
        mine = min(first + rank(), len(order) - 1)  # an extra batch does no harm; sharded weights need every rank
        found += gather_rows(compute(order[mine]), [len(rows) for rows in order[first : first + world()]])
    return torch.cat(found)


def gather_rows(value: Tensor, rows: Sequence[int]) -> list[Tensor]:
    """The [rows[r], …] tensors of all ranks r, given each rank's own `value`; exact, as it only adds zeros."""
    if world() == 1:
        return [value]
    together = value.new_zeros(len(rows), max(rows), *value.shape[1:])
    if rank() < len(rows):
        together[rank(), : len(value)] = value
    dist.all_reduce(together)
    return [found[:n] for found, n in zip(together, rows, strict=True)]


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")  # DTensor, without importing it


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor, for which every rank must call this; return any other tensor unchanged."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined, no-any-return]


def distribute_like(tensor: Tensor, reference: Any) -> Tensor:
    """`tensor` sharded like `reference`, on the same device."""
    tensor = tensor.detach().to(reference.device)
    if not is_sharded(reference):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, reference.device_mesh, reference.placements)
