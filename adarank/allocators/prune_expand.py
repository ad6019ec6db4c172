"""Prune and expand at a constant budget (ElaLoRA, arXiv 2504.00254; FlexLoRA, arXiv 2601.22905)."""

from typing import Literal

import torch
from torch import Tensor

from adarank.allocators.allocator import Allocator, check_clamps
from adarank.allocators.order import begins, keep_first, place_in_module, places, sum_in_module
from adarank.errors import SettingError


def prune_expand(
    exchange: int = 4,
    lowest: int = 1,
    worth: Literal["triplet", "module"] = "triplet",
    decay: bool = True,
    min_rank: int = 1,
    max_rank: int | None = None,
) -> Allocator:
    """Of every module the `lowest` least important active triplets (ElaLoRA's k) are candidates. The `exchange`
    (ElaLoRA's b) least important candidates of all modules go off; for each of the `exchange` most important ones its
    module gets a free slot. worth: a candidate is as important as its own score says ("triplet", ElaLoRA), or as the
    sum over its module's active triplets ("module", FlexLoRA: with score=spectral_entropy that is the module's entropy).

    decay: b falls with the progress p of the run, round(b·(1 − p³)); else it is b throughout. min_rank, max_rank: of
    every module (None: all it holds); a module at min_rank is not pruned but may grow. Only slots that were off before
    the call are turned on; where none is left, no triplet is given up for it. Counted in triplets exactly the budget
    is kept: what it has gained goes to slots in the same order, and what it has lost is pruned, least important first.
    Raises SettingError for exchange or lowest below 1 and clamps that no module can keep.
    """
    for name, value in (("exchange", exchange), ("lowest", lowest)):
        if value < 1:
            raise SettingError(f"allocator.{name}={value} is no number of triplets; valid: at least 1")
    check_clamps(min_rank, max_rank)

    def allocate(
        scores: Tensor,
        mask: Tensor,
        budget: int,
        cost: Tensor,
        module: Tensor,
        generator: torch.Generator | None,
        progress: float = 0.0,
    ) -> Tensor:
        n, first = len(mask), begins(module)
        b = round(exchange * (1 - progress**3)) if decay else exchange
        active = sum_in_module(mask.long(), module)
        up = place_in_module((-scores).masked_fill(~mask, -torch.inf), module)  # active ones, the least important at 0
        slot = place_in_module((~mask).to(scores.dtype), module)  # free ones from 0
        rank = active + slot  # that a free slot would find
        forced = torch.where(mask, up >= active - min_rank, rank < min_rank)

        value = scores if worth == "triplet" else sum_in_module(scores.masked_fill(~mask, 0.0), module)

        prunable = mask & (up < lowest) & ~forced
        rising = torch.argsort(up, stable=True)
        rising = rising[torch.argsort(value.masked_fill(~prunable, torch.inf)[rising], stable=True)]
        pruned = prunable & (places(rising) < b)

        by_place = torch.empty_like(scores)
        by_place[first + up] = value  # module by module, the least important active triplet first
        candidates = active.clamp_max(lowest)
        source = (candidates - 1 - slot).clamp_min(0)  # the j-th slot is worth the j-th best candidate
        key = torch.where(mask, scores, by_place[first + source])

        allowed = mask | (rank < (n if max_rank is None else max_rank))
        free = torch.where(slot < candidates, 2, 4)
        kind = torch.where(mask, torch.where(pruned, 3, 1), torch.where(allowed, free, 5)).masked_fill(forced, 0)
        falling = places(torch.argsort(key, descending=True, stable=True))
        return keep_first(torch.argsort(kind * n + falling), budget, cost) & allowed

    return Allocator(allocate, min_rank, max_rank, paced=True, grows=True)
