"""AdaLoRA's schedule (arXiv 2303.10512, eq. 12)."""

from adarank.schedules.schedule import Schedule, check_falls, phased


def cubic(initial: int, final: int, t_i: int, t_f: int, total: int, interval: int = 1) -> Schedule:
    """b(t) = b_T + (b_0 − b_T)(1 − (t − t_i)/(T − t_i − t_f))³ for t_i < t < T − t_f, rounded down.

    AdaLoRA's schedule as its code computes it (arXiv 2303.10512, eq. 12, prints t − t_i − t_f in the numerator, which
    would start above b_0). initial, final: triplets, initial >= final >= 1; t_i: steps before the first allocation;
    t_f: last steps, at the final budget; interval: ΔT. Raises SettingError for what cannot be, and for a budget that
    should fall but would never be applied.
    Example: cubic(432, 288, t_i=100, t_f=300, total=1000, interval=10).budget(400) == 306.
    """
    check_falls(initial, final)

    def curve(k: int, n: int) -> int:
        return int(final + (initial - final) * (1 - k / n) ** 3)

    return phased(initial, final, t_i, t_f, total, interval, curve)
