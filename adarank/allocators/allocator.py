"""What an allocator is."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from adarank.errors import SettingError


class Allocator(NamedTuple):
    """A pure function over triplets (see `adarank.allocators`), with what it asks of a run.

    min_rank, max_rank: triplets that each module keeps at least (where it holds as many) and at most (None: all it
    holds). unit: the only unit of budgets that it can count in, None for either. paced: `allocate` takes `progress`
    too, how far the run is from the first possible allocation (0) to the final budget (1). keeps_budget: False where
    the number of triplets is not the budget's but what training makes it. grows: it turns triplets on that were off.
    """

    allocate: Callable[..., Tensor]
    min_rank: int = 0
    max_rank: int | None = None
    unit: str | None = None
    paced: bool = False
    keeps_budget: bool = True
    grows: bool = False

    def __call__(self, *given: object, **named: object) -> Tensor:
        return self.allocate(*given, **named)


def check_clamps(min_rank: int, max_rank: int | None) -> None:
    """Raise SettingError for ranks that no module can have."""
    if min_rank < 0:
        raise SettingError(f"allocator.min_rank={min_rank} is no rank; valid: at least 0")
    least = max(min_rank, 1)
    if max_rank is not None and max_rank < least:
        raise SettingError(f"allocator.max_rank={max_rank} is too small; valid: at least {least}, or null")


def check_run(
    allocator: Allocator, unit: str, ranks: Sequence[int], costs: Sequence[int], initial: int, final: int
) -> None:
    """Raise SettingError where the allocator cannot keep a run's budgets, between `initial` and `final`, in `unit`.

    ranks, costs: of each module, the triplets it holds and what one takes of the budget. Every budget must pay for
    min_rank, and the final one must fit below max_rank; before that, max_rank may leave a part of the budget unused.
    """
    if allocator.unit not in (None, unit):
        raise SettingError(
            f"budget.unit={unit} does not go with this allocator, which counts {allocator.unit}; "
            f"valid: budget.unit={allocator.unit}"
        )

    held = sum(rank * cost for rank, cost in zip(ranks, costs, strict=True))
    if allocator.grows and max(initial, final) == held == initial:
        raise SettingError(
            f"capacity: all {held} {unit} that the adapters hold are on from the start, which leaves this allocator none "
            "to turn on; valid: a capacity above 1 (adapters of a higher rank than the schedule starts with)"
        )

    def taken(clamp: int) -> int:
        return sum(min(clamp, rank) * cost for rank, cost in zip(ranks, costs, strict=True))

    lowest = min(initial, final)
    every = range(max(ranks, default=0) + 1)
    if taken(allocator.min_rank) > lowest:
        raise SettingError(
            f"allocator.min_rank={allocator.min_rank} takes {taken(allocator.min_rank)} {unit} in all modules "
            f"together, the budget goes down to {lowest}; valid: at most {max(m for m in every if taken(m) <= lowest)}"
        )
    if allocator.max_rank is not None and taken(allocator.max_rank) < final:
        enough = min((m for m in every if taken(m) >= final), default=max(ranks, default=0))
        raise SettingError(
            f"allocator.max_rank={allocator.max_rank} leaves room for {taken(allocator.max_rank)} {unit} in all "
            f"modules together, the final budget is {final}; valid: at least {enough}"
        )
