"""Divides the budget evenly between families of modules (all queries, all keys, …)."""

from collections import Counter

import torch
from torch import Tensor

from adarank.allocators.allocator import Allocator, Request
from adarank.allocators.order import keep_first, rank_in_group
from adarank.runs.modules import place_of


def by_family(min_rank: int = 0, max_rank: int | None = None) -> Allocator:
    """Families take turns choosing their best remaining triplet, so that their mean ranks stay even.

    A family is all modules of one kind, as `adarank.runs.modules.place_of` reads it from their names. A family without
    triplets left passes its turns to the others. A budget in triplets is kept exactly.

    min_rank, max_rank: the fewest and the most triplets a module keeps (None: no limit); see `Allocator`.
    """

    def allocate(request: Request) -> Tensor:
        scores, modules = request.scores, request.modules
        kinds = [place_of(name).kind for name in request.names]
        sizes = Counter(kinds)  # modules per family, in the order of first appearance
        numbers = {kind: i for i, kind in enumerate(sizes)}
        family_and_size = torch.tensor([(numbers[kind], sizes[kind]) for kind in kinds], device=modules.device)
        family, size = family_and_size[modules].unbind(1)
        position = rank_in_group(scores, modules)
        forced, allowed = position < min_rank, position < (len(scores) if max_rank is None else max_rank)
        keys = scores.masked_fill(forced, torch.inf).masked_fill(~allowed, -torch.inf)
        turn = rank_in_group(keys, family) / size  # the mean rank of the family before this triplet
        turn = turn.masked_fill(forced, -1.0).masked_fill(~allowed, torch.inf)
        return keep_first(request, torch.argsort(turn, stable=True)) & allowed

    return Allocator(allocate, min_rank, max_rank)
