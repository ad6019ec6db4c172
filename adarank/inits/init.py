"""What an init is."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from adarank.adapters.lowrank import LowRank


class Init(NamedTuple):
    """How factors start, in up to three steps.

    name: as in `adarank.inits`. measure(model, target names, batches) -> found: what it learns from data, on the model
    before it is wrapped, which it leaves as it was. ranks(found, {name: rank asked for}) -> {name: rank}: where it moves
    rank between modules; 0 is a rank. fill(adapters, found): write every factor; found is None without `measure`.
    An init whose ΔW is not 0 takes it out of the base with `LowRank.start_from`, or says which paper wants otherwise.
    """

    name: str
    fill: Callable[[Mapping[str, LowRank], Any], None]
    measure: Callable[[nn.Module, Sequence[str], Iterable[Any]], Any] | None = None
    ranks: Callable[[Any, Mapping[str, int]], dict[str, int]] | None = None
