"""Growth: new triplets for the modules whose triplets matter most (IncreLoRA, arXiv 2308.12043)."""

import torch
from torch import Tensor

from adarank.allocators.allocator import Allocator, check_clamps
from adarank.allocators.order import begins, keep_first, place_in_module, places, sum_in_module
from adarank.errors import SettingError


def grow(top_h: int = 4, max_rank: int | None = None) -> Allocator:
    """Nothing that is on goes off; what the budget has gained goes, one slot each in turn, to the `top_h` modules with
    the largest mean score of their active triplets among those with a slot left; where those are full, to the next
    `top_h`, and so on.

    A module takes its free slots in order; one without an active triplet scores 0. max_rank: of every module (None:
    all it holds). Counted in triplets exactly the budget is kept where there are slots for it; a budget below what is
    on keeps the best of it. Raises SettingError for top_h or max_rank below 1.
    """
    if top_h < 1:
        raise SettingError(f"allocator.top_h={top_h} is no number of modules; valid: at least 1")
    check_clamps(0, max_rank)

    def allocate(
        scores: Tensor, mask: Tensor, budget: int, cost: Tensor, module: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        n, first = len(mask), begins(module)
        active = sum_in_module(mask.long(), module)
        mean = sum_in_module(scores.masked_fill(~mask, 0.0), module) / active.clamp_min(1)
        slot = place_in_module((~mask).to(scores.dtype), module)  # free ones from 0
        allowed = mask | (active + slot < (n if max_rank is None else max_rank))
        grows = sum_in_module((allowed & ~mask).long(), module) > 0
        leads = grows & (first == torch.arange(n, device=module.device))  # one triplet of each module that can grow
        by_mean = torch.argsort(mean.masked_fill(~leads, -torch.inf), descending=True, stable=True)
        of_module = places(by_mean)[first]  # among modules, the best first
        turns = torch.argsort(of_module, stable=True)
        turns = turns[torch.argsort(slot[turns], stable=True)]
        turns = turns[torch.argsort(of_module[turns] // top_h, stable=True)]  # by group of top_h, slot, module

        best_on = places(torch.argsort(scores, descending=True, stable=True))
        key = torch.where(mask, best_on, places(turns) + torch.where(allowed, n, 2 * n))
        return keep_first(torch.argsort(key), budget, cost) & allowed

    return Allocator(allocate, 0, max_rank, grows=True)
