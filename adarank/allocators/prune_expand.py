"""Prune and expand at a constant budget (ElaLoRA, arXiv 2504.00254; FlexLoRA, arXiv 2601.22905)."""

from typing import Literal

import torch
from torch import Tensor

from adarank.allocators.allocator import Allocator, Request
from adarank.allocators.order import keep_first, module_starts, positions, rank_in_group, sum_per_module
from adarank.errors import whole_number


def prune_expand(
    swaps: int = 4,
    candidates_per_module: int = 1,
    importance_of: Literal["triplet", "module"] = "triplet",
    decay: bool = True,
    min_rank: int = 1,
    max_rank: int | None = None,
    min_rank_grows: bool = True,
) -> Allocator:
    """Prune the `swaps` least important candidates and fill one free slot in each module of the most important ones.

    The candidates are the `candidates_per_module` least important active triplets of every module. Only slots that were
    free before the call are filled; without a free slot, no triplet is pruned in exchange. A budget in triplets is kept
    exactly: if it has risen, further slots are filled in the same order, and if it has fallen, the least important
    triplets are pruned.

    swaps, candidates_per_module: ElaLoRA's b and k. importance_of: "triplet" ranks candidates by their own score
    (ElaLoRA), "module" by the sum over their module's active triplets (FlexLoRA; with score=spectral_entropy that is
    the module's entropy). decay: swaps decrease with the run's progress p as round(b·(1 − p³)); False: they are
    constant. min_rank, max_rank: the fewest and the most triplets a module keeps (None: all it has). min_rank_grows:
    True: a module of rank r has min(k, r) candidates for growth, so that one at min_rank may grow again; False: min(k,
    r − min_rank), as many as for pruning, so that one at min_rank stays there (ElaLoRA's code). Raises SettingError for
    swaps or candidates_per_module below 1, or unless 0 <= min_rank <= max_rank.
    """
    swaps = whole_number("allocator.swaps", swaps)
    candidates_per_module = whole_number("allocator.candidates_per_module", candidates_per_module)

    def allocate(request: Request) -> Tensor:
        scores, mask, modules = request.scores, request.mask, request.modules
        n, starts = len(mask), module_starts(modules)
        b = round(swaps * (1 - request.progress**3)) if decay else swaps
        active = sum_per_module(mask.long(), modules)
        ascending = rank_in_group((-scores).masked_fill(~mask, -torch.inf), modules)  # least important active one: 0
        slot = rank_in_group((~mask).to(scores.dtype), modules)  # free slots count from 0
        rank = active + slot  # the module's rank before this free slot is filled
        forced = torch.where(mask, ascending >= active - min_rank, rank < min_rank)

        value = scores if importance_of == "triplet" else sum_per_module(scores.masked_fill(~mask, 0.0), modules)

        prunable = mask & (ascending < candidates_per_module) & ~forced
        rising = torch.argsort(ascending, stable=True)
        rising = rising[torch.argsort(value.masked_fill(~prunable, torch.inf)[rising], stable=True)]
        pruned = prunable & (positions(rising) < b)

        sorted_value = torch.empty_like(scores)
        sorted_value[starts + ascending] = value  # by module, the least important active triplet first
        candidates = (active if min_rank_grows else active - min_rank).clamp(0, candidates_per_module)
        source = (candidates - 1 - slot).clamp_min(0)  # the j-th slot is worth the j-th best candidate
        key = torch.where(mask, scores, sorted_value[starts + source])

        allowed = mask | (rank < (n if max_rank is None else max_rank))
        free = torch.where(slot < candidates, 2, 4)
        tier = torch.where(mask, torch.where(pruned, 3, 1), torch.where(allowed, free, 5)).masked_fill(forced, 0)
        falling = positions(torch.argsort(key, descending=True, stable=True))
        return keep_first(request, torch.argsort(tier * n + falling)) & allowed

    return Allocator(allocate, min_rank, max_rank, grows=True)
