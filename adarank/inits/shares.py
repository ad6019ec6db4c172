"""Ranks in proportion to one number per module, for inits that measure it before training."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from adarank.errors import number, whole_number
from adarank.inits.gora import share


class Weight(NamedTuple):
    """value: the number to which a module's rank is proportional; limit: the smaller side of its matrix."""

    value: float
    limit: int


def in_proportion(min_rank: int, most: float) -> Callable[[Mapping[str, Weight], Mapping[str, int]], dict[str, int]]:
    """The `ranks` of an init: r_i ∝ value_i, from `min_rank` to `most` times the requested rank, with the requested
    total.

    See `gora.share` for the rounding. A module whose requested rank is below min_rank keeps at least that. Raises
    SettingError unless min_rank >= 0 and most >= 1.
    """
    min_rank = whole_number("init.min_rank", min_rank, 0)
    most = number("init.most", most, "at least 1", lambda f: f >= 1)

    def ranks(found: Mapping[str, Weight], asked: Mapping[str, int]) -> dict[str, int]:
        low = [min(min_rank, r) for r in asked.values()]
        high = [min(math.floor(most * r), found[n].limit) for n, r in asked.items()]
        shares = share([found[n].value for n in asked], low, high, sum(asked.values()))
        return dict(zip(asked, shares, strict=True))

    return ranks
