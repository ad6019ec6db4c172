"""The classes behind every allocator: its input, its requirements on a run, and the record of an allocation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adarank.errors import SettingError, number, whole_number


class Request(NamedTuple):
    """The input of an allocator. Triplets are numbered module by module; all tensors are on one device.

    scores: [n], fp32 or fp64, the importance of every triplet; -inf for pruned ones that are frozen.
    mask: bool [n], the triplets that are active now.
    budget: how much may be active afterwards, in triplets or in parameters.
    costs: int64 [n], each triplet's cost: 1, or d_in + d_out + 1 if the budget counts parameters.
    modules: int64 [n], the index of each triplet's module, 0, 0, …, 1, 1, ….
    generator: for allocators that draw random numbers, on the triplets' device; None: the global generator.
    names: the modules' names, in the adapters' order.
    progress: from 0 at the first possible allocation to 1 at the final budget.
    finished: bool [n], the triplets that no longer train (see `Allocator.finishes`); None: there are none.
    """

    scores: Tensor
    mask: Tensor
    budget: int
    costs: Tensor
    modules: Tensor
    generator: torch.Generator | None = None
    names: Sequence[str] = ()
    progress: float = 0.0
    finished: Tensor | None = None


@dataclass(frozen=True)
class Allocation:
    """The record of one reallocation.

    step: the preceding optimiser step. budget: how much was allowed, in `unit` ("triplets" or "parameters"). kept: the
    number of triplets kept, and parameters: their cost Σ (d_in + d_out + 1), both scalar tensors. scores: [triplets],
    and mask: bool [triplets], at that moment. module: int64 [triplets], indices into names. observed: True if
    nothing was reallocated, so that scores and mask are those after that step.
    """

    step: int
    budget: int
    unit: str
    kept: Tensor
    parameters: Tensor
    scores: Tensor
    mask: Tensor
    module: Tensor
    names: tuple[str, ...]
    observed: bool = False

    @property
    def ranks(self) -> dict[str, int]:
        """{module name: triplets kept}. Reading it synchronises with the device."""
        counts = torch.bincount(self.module[self.mask], minlength=len(self.names))
        return dict(zip(self.names, counts.tolist(), strict=True))


@dataclass(frozen=True)
class Allocator:
    """An allocation rule together with its requirements on a run.

    allocate: `Request` -> new mask, bool [n]; a pure function.
    min_rank, max_rank: the fewest triplets every module keeps (all it has, if fewer) and the most (None: no limit).
        Raises SettingError unless 0 <= min_rank <= max_rank and max_rank >= 1.
    unit: the only budget unit it can count in, "triplets" or "parameters"; None: either.
    keeps_budget: False if training rather than the budget decides how many triplets remain.
    grows: True if it activates triplets that were pruned or not yet used.
    finishes: True if triplets stop training once an allocation that changes the mask has kept them: their factors then
        remain exactly unchanged.
    """

    allocate: Callable[[Request], Tensor]
    min_rank: int = 0
    max_rank: int | None = None
    unit: str | None = None
    keeps_budget: bool = True
    grows: bool = False
    finishes: bool = False

    def __post_init__(self) -> None:
        least = whole_number("allocator.min_rank", self.min_rank, 0)
        object.__setattr__(self, "min_rank", least)
        if self.max_rank is not None:
            valid = f"a whole number of at least {max(least, 1)}, or null"
            most = number("allocator.max_rank", self.max_rank, valid, lambda n: n >= max(least, 1), whole=True)
            object.__setattr__(self, "max_rank", most)

    def __call__(self, request: Request) -> Tensor:
        return self.allocate(request)


def check_progressive(compaction: str, compact_after: int | None, allocator: Any, initial: int, final: int) -> None:
    """Raise SettingError if progressive compaction would remove triplets before a growing budget or allocator activates
    them."""
    grows = final > initial or getattr(allocator, "grows", False)
    if grows and compaction == "progressive" and compact_after is not None:
        raise SettingError(
            "compaction must be off or final with a schedule or an allocator that activates further triplets, because "
            "progressive removes those that are not used yet (got progressive)"
        )


def check_run(
    allocator: Allocator, unit: str, ranks: Sequence[int], costs: Sequence[int], initial: int, final: int
) -> None:
    """Raise SettingError if the allocator cannot keep a run's budgets, which go from `initial` to `final`, in `unit`.

    ranks, costs: per module, how many triplets it has and what one of them costs. Every budget must pay for min_rank in
    all modules, and the final budget must fit below max_rank; earlier, max_rank may leave part of the budget unused.
    """
    if allocator.unit not in (None, unit):
        raise SettingError(
            f"budget.unit must be {allocator.unit} with this allocator, which counts {allocator.unit} (got {unit})"
        )

    total = sum(rank * cost for rank, cost in zip(ranks, costs, strict=True))
    if allocator.grows and max(initial, final) == total == initial:
        raise SettingError(
            f"max_rank_factor must be above 1 with this allocator: all {total} {unit} of the adapters are active from "
            "the start, so there are none left to activate"
        )
    if not allocator.keeps_budget:
        return

    def cost_of(clamp: int) -> int:
        return sum(min(clamp, rank) * cost for rank, cost in zip(ranks, costs, strict=True))

    lowest = min(initial, final)
    clamps = range(max(ranks, default=0) + 1)
    if cost_of(allocator.min_rank) > lowest:
        largest = max(clamp for clamp in clamps if cost_of(clamp) <= lowest)
        raise SettingError(
            f"allocator.min_rank must be at most {largest} (got {allocator.min_rank}, which takes "
            f"{cost_of(allocator.min_rank)} {unit} over all modules, but the budget falls to {lowest})"
        )
    if allocator.max_rank is not None and cost_of(allocator.max_rank) < final:
        smallest = min((clamp for clamp in clamps if cost_of(clamp) >= final), default=max(ranks, default=0))
        raise SettingError(
            f"allocator.max_rank must be at least {smallest} (got {allocator.max_rank}, which leaves room for "
            f"{cost_of(allocator.max_rank)} {unit} over all modules, but the final budget is {final})"
        )
