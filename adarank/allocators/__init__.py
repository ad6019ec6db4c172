"""Allocators, which divide the budget; one per file.

An allocator maps a `Request` (scores, current mask, budget, costs, …) to the new mask, bool [n], over the n triplets of
all modules. It runs on their device, reads nothing back from it and changes nothing. It is a plain function or an
`Allocator`, which combines that function with its requirements on a run. See `adarank.allocators.allocator` for both
classes.
"""

from adarank.allocators.by_cost import by_cost
from adarank.allocators.by_family import by_family
from adarank.allocators.global_bottom import global_bottom
from adarank.allocators.global_top import global_top
from adarank.allocators.grow import grow
from adarank.allocators.nonzero import nonzero
from adarank.allocators.one_by_one import one_by_one
from adarank.allocators.prefix import prefix
from adarank.allocators.prune_expand import prune_expand
from adarank.allocators.random import random
from adarank.allocators.threshold import threshold
from adarank.allocators.tolerance import tolerance
from adarank.allocators.uniform import uniform

__all__ = [
    "by_cost",
    "by_family",
    "global_bottom",
    "global_top",
    "grow",
    "nonzero",
    "one_by_one",
    "prefix",
    "prune_expand",
    "random",
    "threshold",
    "tolerance",
    "uniform",
]
