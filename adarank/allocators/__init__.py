"""Who gets the budget. An allocator is a call that returns a pure function

    (scores [n], mask bool [n], budget, cost int64 [n], module int64 [n], generator) -> new mask bool [n]

over the n triplets of all modules, on their device and without reading anything back from it. budget and cost are in
the same unit: cost is 1 a triplet where the budget is in triplets, d_in + d_out + 1 where it is in parameters. module
holds 0, 0, …, 1, 1, …: triplets are numbered module by module. Every function keeps to the budget but those that say
otherwise: `allocate.keeps_budget = False`.
"""

from adarank.allocators.global_top import global_top
from adarank.allocators.nonzero import nonzero
from adarank.allocators.prefix import prefix
from adarank.allocators.threshold import threshold
from adarank.allocators.uniform import uniform

__all__ = ["global_top", "nonzero", "prefix", "threshold", "uniform"]
