"""Growth: gives new triplets to the modules whose triplets matter most (IncreLoRA, arXiv 2308.12043)."""

import torch
from torch import Tensor

from adarank.allocators.allocator import Allocator, Request
from adarank.allocators.order import keep_first, module_starts, positions, rank_in_group, sum_per_module
from adarank.errors import whole_number


def grow(top_h: int = 4, max_rank: int | None = None) -> Allocator:
    """Keep every active triplet and spend any increase of the budget on the most important modules (IncreLoRA).

    A module's importance is the mean score of its active triplets, 0 if it has none. The `top_h` most important modules
    with a free slot get one slot each in turn; once they are full, the next `top_h` do, and so on. Slots are filled in
    order. A budget in triplets is kept exactly while there are slots; if it falls, the most important are kept.

    max_rank: the most triplets a module gets (None: all it has). Raises SettingError for top_h or max_rank below 1.
    """
    top_h = whole_number("allocator.top_h", top_h)

    def allocate(request: Request) -> Tensor:
        scores, mask, modules = request.scores, request.mask, request.modules
        n, starts = len(mask), module_starts(modules)
        active = sum_per_module(mask.long(), modules)
        mean = sum_per_module(scores.masked_fill(~mask, 0.0), modules) / active.clamp_min(1)
        slot = rank_in_group((~mask).to(scores.dtype), modules)  # free slots count from 0
        allowed = mask | (active + slot < (n if max_rank is None else max_rank))
        grows = sum_per_module((allowed & ~mask).long(), modules) > 0
        leads = grows & (starts == torch.arange(n, device=modules.device))  # the first triplet of each growing module
        by_mean = torch.argsort(mean.masked_fill(~leads, -torch.inf), descending=True, stable=True)
        module_position = positions(by_mean)[starts]  # among modules, the best first
        turns = torch.argsort(module_position, stable=True)
        turns = turns[torch.argsort(slot[turns], stable=True)]
        turns = turns[torch.argsort(module_position[turns] // top_h, stable=True)]  # by group of top_h, slot, module

        by_score = positions(torch.argsort(scores, descending=True, stable=True))
        key = torch.where(mask, by_score, positions(turns) + torch.where(allowed, n, 2 * n))
        return keep_first(request, torch.argsort(key)) & allowed

    return Allocator(allocate, 0, max_rank, grows=True)
