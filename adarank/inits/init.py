"""The interface of an init, and functions that write the factors."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adarank.adapters.layers import LINEAR_4BIT, layer_of
from adarank.adapters.lowrank import LowRank
from adarank.adapters.svd import STD
from adarank.errors import SettingError, whole_number


class Init(NamedTuple):
    """The initialisation of factors in up to three steps.

    name: as in `adarank.inits`. measure(model, {target name: requested rank}, batches) -> found: the result of
    measuring data with the model before it is wrapped, which it does not change. ranks(found, {name: requested rank})
    -> {name: rank}, for an init that moves rank between modules; 0 is allowed. fill(adapter, found[name]): write the
    factors of one module, called without gradients; without `measure` it gets None. An init whose ΔW is not 0 subtracts
    it from the base with `take_out` and sets changes_base (a 4-bit base is then refused), or its docstring cites the
    paper that does otherwise. own_scale: whether s follows the rank that `ranks` gives a module, α / r_i (α / √r_i with
    rslora), instead of the requested rank; needs alpha.
    """

    name: str
    fill: Callable[[LowRank, Any], None]
    measure: Callable[[nn.Module, Mapping[str, int], Iterable[Any]], Any] | None = None
    ranks: Callable[[Any, Mapping[str, int]], dict[str, int]] | None = None
    changes_base: bool = False
    own_scale: bool = False


def matrix(adapter: LowRank) -> Tensor:
    """The base's W [d_out, d_in], in the factors' dtype (at least fp32)."""
    return adapter.layer.matrix(adapter.base).detach().to(adapter.Q.dtype)


@torch.no_grad()
def write(adapter: LowRank, Q: Tensor, P: Tensor) -> None:
    """Set the factors so that ΔW = s·Pᵀ Q (Q [r, d_in], P [r, d_out]).

    If λ is trained, every row gets length 1 and λ_i = ‖q_i‖·‖p_i‖; a row of zeros, which has no direction, is drawn
    from N(0, 0.02²), as in AdaLoRA, with λ_i = 0. If λ is the constant 1, Q and P are copied.
    """
    if adapter.learns_lambda:
        lengths = [rows.norm(dim=1, keepdim=True) for rows in (Q, P)]
        Q, P = (
            torch.where(length > 0, rows / length, torch.randn_like(rows) * STD)
            for rows, length in zip((Q, P), lengths, strict=True)
        )
        adapter.lam.copy_((lengths[0] * lengths[1]).squeeze(1))
    adapter.Q.copy_(Q)
    adapter.P.copy_(P)


@torch.no_grad()
def take_out(adapter: LowRank) -> None:
    """Subtract the factors' current ΔW from the base's weight, so that the model is unchanged."""
    adapter.start_from(adapter.Q, adapter.P * (adapter.lam * adapter.scale).unsqueeze(1))


def taken(name: str, batches: Iterable[Any], steps: int) -> Iterator[Any]:
    """At most `steps` of the batches. Raises SettingError if there are none."""
    steps = whole_number("init.steps", steps)
    remaining = iter(batches)
    first = next(remaining, None)
    if first is None:
        raise SettingError(f"init={name} uses data, but batches is empty; give at least 1 batch")
    yield first
    yield from islice(remaining, steps - 1)


def call(model: nn.Module, batch: Any) -> Any:
    """model(**batch), or model(*batch) if the batch is not a mapping.

    A model that holds some parameters in half precision and others, such as its head, in fp32 runs under autocast to
    the former.
    """
    held = {p.dtype: p.device.type for p in model.parameters() if p.is_floating_point()}
    half = next((dtype for dtype in held if dtype.itemsize == 2), None)
    mixed = torch.autocast(held[half], half) if half is not None and len(held) > 1 else nullcontext()
    with mixed:
        return model(**batch) if isinstance(batch, Mapping) else model(*batch)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside the `with`, the model is in evaluation mode, so that dropout adds no noise; afterwards its mode is
    restored.

    4-bit layers keep their mode, because on some CPUs bitsandbytes permanently repacks their weights in evaluation.
    """
    before = [(module, module.training) for module in model.modules()]
    for module, _ in before:
        module.training = module.training and layer_of(module) is LINEAR_4BIT
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
