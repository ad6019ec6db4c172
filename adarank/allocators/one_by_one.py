"""One triplet per module at a time, until the newest adds too little (AROMA, arXiv 2504.05343)."""

import torch
from torch import Tensor

from adarank.allocators.allocator import Allocator, Request
from adarank.allocators.order import rank_in_group, sum_per_module
from adarank.errors import number


def one_by_one(threshold: float = 1e-3) -> Allocator:
    """Once every module's newest triplet has settled, add one triplet to each module and freeze the earlier ones.

    A module's newest triplets are those that still train. They have settled if their scores are at least 0 (see
    `adarank.scores.settling`); while any of them has a negative score, nothing changes. Then each module whose newest
    score is below `threshold` drops that triplet and has converged: it never grows again. A module without free slots
    keeps its triplets and stops growing. The budget is ignored.

    threshold: ε of the outer loop, at least 0. Raises SettingError for other values.
    """
    threshold = number("allocator.threshold", threshold, "at least 0", lambda epsilon: epsilon >= 0)

    def allocate(request: Request) -> Tensor:
        scores, mask, modules = request.scores, request.mask, request.modules
        newest = mask if request.finished is None else mask & ~request.finished
        fades = newest & (scores < threshold)
        grows = sum_per_module((newest & ~fades).long(), modules) > 0
        first_free = ~mask & (rank_in_group((~mask).to(scores.dtype), modules) == 0)
        still = newest & (scores < 0)
        return torch.where(still.any(), mask, (mask & ~fades) | (grows & first_free))

    return Allocator(allocate, keeps_budget=False, grows=True, finishes=True)
