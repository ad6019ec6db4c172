"""A budget that falls along half a cosine: slowly, fast, slowly."""

import math

from adarank.schedules.schedule import Schedule, check_falls, phased


def cosine(initial: int, final: int, t_i: int, t_f: int, total: int, interval: int = 1) -> Schedule:
    """b(t) = b_T + (b_0 − b_T)(1 + cos(π (t − t_i)/(T − t_i − t_f)))/2 for t_i < t < T − t_f, rounded down.

    Settings and errors as `cubic`'s.
    Example: cosine(432, 288, t_i=100, t_f=300, total=1000, interval=10).budget(300) == 396.
    """
    check_falls(initial, final)

    def curve(k: int, n: int) -> int:
        return int(final + (initial - final) * (1 + math.cos(math.pi * k / n)) / 2)

    return phased(initial, final, t_i, t_f, total, interval, curve)
