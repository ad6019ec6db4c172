"""A budget that falls by the same amount at every step."""

from adarank.schedules.schedule import Schedule, check_falls, phased, power


def linear(initial: int, final: int, t_i: int, t_f: int, total: int, interval: int = 1) -> Schedule:
    """b(t) = b_T + (b_0 − b_T)(1 − (t − t_i)/(T − t_i − t_f)) for t_i < t < T − t_f, rounded down.

    Settings and errors as `cubic`'s.
    Example: linear(432, 288, t_i=100, t_f=300, total=1000, interval=10).budget(400) == 360.
    """
    check_falls(initial, final)
    return phased(initial, final, t_i, t_f, total, interval, lambda k, n: power(initial, final, k, n, 1))
