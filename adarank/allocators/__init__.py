"""Who gets the budget. An allocator is a pure function

    (scores [n], mask bool [n], budget, cost int64 [n], module int64 [n], generator) -> new mask bool [n]

over the n triplets of all modules, on their device and without reading anything back from it; or an
`allocator.Allocator`, which is that function with what it asks of a run. budget and cost are in the same unit: cost is
1 a triplet where the budget is in triplets, d_in + d_out + 1 where it is in parameters. module holds 0, 0, …, 1, 1, …:
triplets are numbered module by module. Each file holds the call that returns one.
"""

from adarank.allocators.by_cost import by_cost
from adarank.allocators.by_family import by_family
from adarank.allocators.global_top import global_top
from adarank.allocators.grow import grow
from adarank.allocators.nonzero import nonzero
from adarank.allocators.prefix import prefix
from adarank.allocators.prune_expand import prune_expand
from adarank.allocators.random import random
from adarank.allocators.threshold import threshold
from adarank.allocators.uniform import uniform

__all__ = [
    "by_cost",
    "by_family",
    "global_top",
    "grow",
    "nonzero",
    "prefix",
    "prune_expand",
    "random",
    "threshold",
    "uniform",
]
