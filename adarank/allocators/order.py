"""What allocators share: orders over triplets, without reading anything back from the device."""

import torch
from torch import Tensor


def begins(module: Tensor) -> Tensor:
    """For each triplet the index, int64 [n], of its module's first triplet; module by module."""
    at = torch.arange(len(module), device=module.device)
    first = torch.ones_like(module, dtype=torch.bool)
    first[1:] = module[1:] != module[:-1]
    return torch.cummax(torch.where(first, at, 0), 0).values


def sum_in_module(values: Tensor, module: Tensor) -> Tensor:
    """For each triplet the sum of `values` [n] over its module, [n]."""
    first = begins(module)
    return torch.zeros_like(values).index_add_(0, first, values)[first]


def places(order: Tensor) -> Tensor:
    """The place, int64 [n] from 0, of each index in `order`, a permutation: its inverse."""
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    return place


def place_in_module(keys: Tensor, module: Tensor) -> Tensor:
    """The place, int64 [n] from 0, of each triplet inside its module by falling key; of equal keys the first comes first.

    module: any numbers of groups, in any order.
    """
    by_key = torch.argsort(keys, descending=True, stable=True)
    order = by_key[torch.argsort(module[by_key], stable=True)]  # module by module, falling keys in each
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device) - begins(module[order])
    return place


def keep_first(order: Tensor, budget: int, cost: Tensor) -> Tensor:
    """A mask, bool [n], of the first triplets of `order` (indices, int64 [n]) that the budget pays for together: the
    first that does not fit ends it, so that less than the dearest triplet's cost is left over."""
    new = torch.zeros_like(order, dtype=torch.bool)
    new[order] = cost[order].cumsum(0) <= budget
    return new


def keep_top(
    keys: Tensor, budget: int, cost: Tensor, module: Tensor, min_rank: int = 0, max_rank: int | None = None
) -> Tensor:
    """A mask, bool [n], of the triplets with the largest keys, of equal ones those that come first; but first of all
    the best `min_rank` of every module, and never more than `max_rank` of one."""
    if min_rank == 0 and max_rank is None:
        return keep_first(torch.argsort(keys, descending=True, stable=True), budget, cost)
    place = place_in_module(keys, module)
    allowed = place < (len(keys) if max_rank is None else max_rank)
    clamped = keys.masked_fill(place < min_rank, torch.inf).masked_fill(~allowed, -torch.inf)
    by_key = torch.argsort(clamped, descending=True, stable=True)
    order = by_key[torch.argsort(~allowed[by_key], stable=True)]  # -inf is a key that an allowed one may have too
    return keep_first(order, budget, cost) & allowed
