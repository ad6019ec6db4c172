"""What allocators share: orders over triplets, without reading anything back from the device."""

import torch
from torch import Tensor


def place_in_module(keys: Tensor, module: Tensor) -> Tensor:
    """The place, int64 [n] from 0, of each triplet inside its module by falling key; of equal keys the first comes first."""
    n = len(keys)
    by_key = torch.argsort(keys, descending=True, stable=True)
    order = by_key[torch.argsort(module[by_key], stable=True)]  # module by module, falling keys in each
    at = torch.arange(n, device=keys.device)
    sorted_module = module[order]
    first = torch.ones_like(sorted_module, dtype=torch.bool)
    first[1:] = sorted_module[1:] != sorted_module[:-1]
    begins = torch.cummax(torch.where(first, at, 0), 0).values
    place = torch.empty_like(at)
    place[order] = at - begins
    return place
