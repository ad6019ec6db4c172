"""The budget divided evenly between families of modules (all queries, all keys, …); inside each the best triplets."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from adarank.allocators.allocator import Allocator, check_clamps
from adarank.allocators.order import keep_first, place_in_module


def family(name: str) -> str:
    """What a module is called inside its block: "encoder.layer.3.attention.self.query" -> "attention.self.query".

    Everything after the last part that is a number; the last part where there is no number.
    """
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit() and i + 1 < len(parts)]
    return ".".join(parts[numbers[-1] + 1 :] if numbers else parts[-1:])


def by_family(names: Sequence[str], min_rank: int = 0, max_rank: int | None = None) -> Allocator:
    """Families take triplets in turn, each its best one next, so that their mean ranks stay even, as long as the
    budget pays; a family that has no more to give leaves its turns to the others.

    names: of the modules, in the adapters' order; `family` says which belong together. min_rank, max_rank: of every
    module (None: no limit). Counted in triplets exactly the budget is kept. Raises SettingError for clamps that no
    module can keep.
    """
    check_clamps(min_rank, max_rank)
    families = [family(name) for name in names]
    numbers = {name: i for i, name in enumerate(dict.fromkeys(families))}
    sizes = Counter(families)
    of_module = [(numbers[name], sizes[name]) for name in families]  # (its family, modules in it)

    def allocate(
        scores: Tensor, mask: Tensor, budget: int, cost: Tensor, module: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        number, size = torch.tensor(of_module, device=module.device)[module].unbind(1)
        place = place_in_module(scores, module)
        forced, allowed = place < min_rank, place < (len(scores) if max_rank is None else max_rank)
        keys = scores.masked_fill(forced, torch.inf).masked_fill(~allowed, -torch.inf)
        turn = place_in_module(keys, number) / size  # the mean rank that the family has reached before it
        turn = turn.masked_fill(forced, -1.0).masked_fill(~allowed, torch.inf)
        return keep_first(torch.argsort(turn, stable=True), budget, cost) & allowed

    return Allocator(allocate, min_rank, max_rank)
