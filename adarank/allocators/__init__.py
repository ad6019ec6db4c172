"""Who gets the budget. An allocator is a call that returns a pure function

    (scores [n], mask bool [n], budget, cost int64 [n], module int64 [n], generator) -> new mask bool [n]

over the n triplets of all modules, on their device and without reading anything back from it.
"""

from adarank.allocators.global_top import global_top
from adarank.allocators.threshold import threshold

__all__ = ["global_top", "threshold"]
