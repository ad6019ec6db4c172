"""Orderings of triplets for several allocators; none of the functions reads a value back from the device."""

import torch
from torch import Tensor

from adarank.allocators.allocator import Request


def module_starts(modules: Tensor) -> Tensor:
    """For each triplet the index, int64 [n], of its module's first triplet. modules: int64 [n], sorted."""
    at = torch.arange(len(modules), device=modules.device)
    first = torch.ones_like(modules, dtype=torch.bool)
    first[1:] = modules[1:] != modules[:-1]
    return torch.cummax(torch.where(first, at, 0), 0).values


def sum_per_module(values: Tensor, modules: Tensor) -> Tensor:
    """For each triplet the sum of `values` [n] over its module, [n]."""
    starts = module_starts(modules)
    return torch.zeros_like(values).index_add_(0, starts, values)[starts]


def positions(order: Tensor) -> Tensor:
    """The position, int64 [n] from 0, of each index in the permutation `order`: its inverse."""
    position = torch.empty_like(order)
    position[order] = torch.arange(len(order), device=order.device)
    return position


def rank_in_group(keys: Tensor, groups: Tensor) -> Tensor:
    """The position, int64 [n] from 0, of each triplet in its group, sorted by descending key; ties keep their order.

    groups: int64 [n], any numbers in any order; modules, for example.
    """
    by_key = torch.argsort(keys, descending=True, stable=True)
    order = by_key[torch.argsort(groups[by_key], stable=True)]  # group by group, descending keys in each
    position = torch.empty_like(order)
    position[order] = torch.arange(len(order), device=order.device) - module_starts(groups[order])
    return position


def keep_first(request: Request, order: Tensor) -> Tensor:
    """The mask, bool [n], of the longest prefix of `order` (indices, int64 [n]) that fits into the budget.

    The rest of the budget is less than the cost of the most expensive triplet.
    """
    mask = torch.zeros_like(order, dtype=torch.bool)
    mask[order] = request.costs[order].cumsum(0) <= request.budget
    return mask


def keep_top(request: Request, keys: Tensor, min_rank: int = 0, max_rank: int | None = None) -> Tensor:
    """The mask, bool [n], of the triplets with the largest keys [n] that fit into the budget; ties go to the first.

    The best `min_rank` of every module come before all others; no module keeps more than `max_rank`.
    """
    if min_rank == 0 and max_rank is None:
        return keep_first(request, torch.argsort(keys, descending=True, stable=True))
    position = rank_in_group(keys, request.modules)
    allowed = position < (len(keys) if max_rank is None else max_rank)
    clamped = keys.masked_fill(position < min_rank, torch.inf).masked_fill(~allowed, -torch.inf)
    by_key = torch.argsort(clamped, descending=True, stable=True)
    order = by_key[torch.argsort(~allowed[by_key], stable=True)]  # an allowed triplet's key may be -inf, too
    return keep_first(request, order) & allowed
