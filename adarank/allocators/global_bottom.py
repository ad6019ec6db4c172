"""The positive control: AdaLoRA's rule reversed."""

import torch
from torch import Tensor

from adarank.allocators.allocator import Allocator, Request
from adarank.allocators.order import keep_top, positions


def global_bottom(min_rank: int = 0, max_rank: int | None = None) -> Allocator:
    """Keep the active triplets with the smallest scores over all modules, that is, prune the most important first.

    A study in which this is no worse than pruning the least important first cannot detect where rank matters. Active
    triplets come before pruned ones, so that a falling budget never brings one back; ties go to the first.

    min_rank, max_rank: the fewest and the most triplets a module keeps (None: no limit); see `Allocator`.

    Example:
        >>> scores, mask = torch.tensor([3.0, 1.0, 2.0, 0.0]), torch.tensor([True, True, True, False])
        >>> costs, modules = torch.ones(4, dtype=torch.long), torch.tensor([0, 0, 1, 1])
        >>> global_bottom()(Request(scores, mask, budget=2, costs=costs, modules=modules)).tolist()
        [False, True, True, False]
    """

    def allocate(request: Request) -> Tensor:
        mask = request.mask
        rising = positions(torch.argsort(request.scores, stable=True))
        return keep_top(request, (len(mask) * mask - rising).float(), min_rank, max_rank)

    return Allocator(allocate, min_rank, max_rank)
