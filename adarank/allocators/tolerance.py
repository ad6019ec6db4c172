"""As many triplets per module as a tolerance requires, without a budget (GeoLoRA, arXiv 2410.18720)."""

import torch
from torch import Tensor

from adarank.allocators.allocator import Allocator, Request
from adarank.allocators.order import module_starts, positions, rank_in_group, sum_per_module
from adarank.errors import number, whole_number


def tolerance(tau: float = 0.15, min_rank: int = 2, max_rank: int | None = None) -> Allocator:
    """Keep the fewest triplets of every module such that the dropped ones hold less than τ of its scores' norm.

    With a module's scores in descending order, c_1 >= c_2 >= …, its rank is the smallest k for which
        ‖(c_{k+1}, c_{k+2}, …)‖ < τ ‖(c_1, c_2, …)‖
    or all of its triplets if every score is 0. The budget is ignored. If the scores are singular values
    (score=magnitude with orthonormal P and Q, or score=contribution after svd_before_allocation), ΔW changes by less
    than τ ‖ΔW‖_F.

    tau: τ, above 0 and below 1. min_rank, max_rank: the smallest (2 in GeoLoRA's code) and largest (None: no limit)
    rank of a module. Raises SettingError outside these ranges.
    """
    tau = number("allocator.tau", tau, "above 0 and below 1", lambda t: 0 < t < 1)
    min_rank = whole_number("allocator.min_rank", min_rank, 0)

    def allocate(request: Request) -> Tensor:
        scores, modules = request.scores, request.modules
        position = rank_in_group(scores, modules)
        square = scores.clamp_min(0.0).double().square()
        total = sum_per_module(square, modules)
        share = torch.where(total > 0, square / total, 0.0)
        order = torch.argsort(modules * len(modules) + position)  # by module, in descending order of the scores
        before = share[order].cumsum(0) - share[order]
        tail = (1.0 - before + before[module_starts(modules)])[positions(order)]  # from each triplet on
        kept = (tail >= tau**2) | ((total == 0) & (scores > -torch.inf)) | (position < min_rank)
        return kept & (position < (len(scores) if max_rank is None else max_rank))

    return Allocator(allocate, min_rank, max_rank, keeps_budget=False)
