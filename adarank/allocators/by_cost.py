"""Allocation by importance per parameter, for budgets that count parameters."""

from adarank.allocators.allocator import Allocator
from adarank.allocators.order import keep_top


def by_cost(min_rank: int = 0, max_rank: int | None = None) -> Allocator:
    """Keep the triplets with the largest score ÷ cost that fit into the budget, the greedy rule for knapsack problems.

    Ties go to the triplet that comes first. The budget is never exceeded; less than one triplet's cost is left over.
    Requires budget.unit=parameters, with which a triplet costs d_in + d_out + 1.

    min_rank, max_rank: the fewest and the most triplets a module keeps (None: no limit); see `Allocator`.
    """

    return Allocator(
        lambda request: keep_top(request, request.scores / request.costs, min_rank, max_rank),
        min_rank,
        max_rank,
        unit="parameters",
    )
