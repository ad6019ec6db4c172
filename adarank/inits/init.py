"""What an init is, and how it writes its factors."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from adarank.adapters.layers import LINEAR_4BIT, layer_of
from adarank.adapters.lowrank import LowRank
from adarank.errors import SettingError

STD = 0.02  # of the entries of P and Q in AdaLoRA's code


class Init(NamedTuple):
    """How factors start, in up to three steps.

    name: as in `adarank.inits`. measure(model, {target name: rank asked for}, batches) -> found: what it learns from
    data, on the model before it is wrapped, which it leaves as it was. ranks(found, {name: rank asked for}) ->
    {name: rank}: where it moves rank between modules; 0 is a rank. fill(adapters, found): write every factor; found is
    None without `measure`. An init whose ΔW is not 0 takes it out of the base with `take_out` and sets changes_base (a
    4-bit base is then refused), or says which paper wants otherwise.
    """

    name: str
    fill: Callable[[Mapping[str, LowRank], Any], None]
    measure: Callable[[nn.Module, Mapping[str, int], Iterable[Any]], Any] | None = None
    ranks: Callable[[Any, Mapping[str, int]], dict[str, int]] | None = None
    changes_base: bool = False


def matrix(adapter: LowRank) -> Tensor:
    """The base's W [d_out, d_in], in the factors' dtype (at least fp32)."""
    return adapter.layer.matrix(adapter.base).detach().to(adapter.Q.dtype)


@torch.no_grad()
def write(adapter: LowRank, Q: Tensor, P: Tensor) -> None:
    """Make ΔW = s·Pᵀ Q (Q [r, d_in], P [r, d_out]).

    lora: as they are. svd: every row of length 1 and λ_i = ‖q_i‖·‖p_i‖; a row of zeros has no direction to keep and
    is drawn from N(0, 0.02²), as AdaLoRA draws it, beside λ_i = 0.
    """
    if adapter.kind == "svd":
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
    """Take the ΔW that the factors make now out of the base's weight, so that the model's function is kept."""
    adapter.start_from(adapter.Q, adapter.P * (adapter.lam * adapter.scale).unsqueeze(1))


def taken(name: str, batches: Iterable[Any], steps: int) -> Iterator[Any]:
    """At most `steps` of the batches; SettingError where there are none."""
    if steps < 1:
        raise SettingError(f"init.steps={steps} is no number of batches; valid: at least 1")
    some = iter(batches)
    first = next(some, None)
    if first is None:
        raise SettingError(f"init={name} looks at data: batches is empty; valid: at least 1 batch")
    yield first
    yield from islice(some, steps - 1)


def call(model: nn.Module, batch: Any) -> Any:
    """model(**batch), or model(*batch) where the batch is no mapping."""
    return model(**batch) if isinstance(batch, Mapping) else model(*batch)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside the `with`, the model is in evaluation mode, so that dropout adds no noise; then every module is as it was.

    4-bit layers stay as they are: on some CPUs bitsandbytes packs their weights when they evaluate, and for good.
    """
    before = [(module, module.training) for module in model.modules()]
    for module, _ in before:
        module.training = module.training and layer_of(module) is LINEAR_4BIT
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
