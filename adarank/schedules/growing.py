"""A budget that rises: the other way round, as in IncreLoRA (arXiv 2308.12043)."""

from typing import Literal

from adarank.errors import SettingError
from adarank.schedules.schedule import Schedule, phased, power

EXPONENTS = {"linear": 1, "cubic": 3}


def growing(
    initial: int,
    final: int,
    t_i: int,
    t_f: int,
    total: int,
    interval: int = 1,
    curve: Literal["linear", "cubic"] = "linear",
) -> Schedule:
    """b(t) = b_T − (b_T − b_0)(1 − (t − t_i)/(T − t_i − t_f))^e for t_i < t < T − t_f, rounded down; initial <= final.

    curve: "linear" (e = 1), as IncreLoRA's code adds the same number at every interval; "cubic" (e = 3), fast at first.
    IncreLoRA fixes the number added at a time and has the end follow; here the end is fixed. Settings and errors
    otherwise as `cubic`'s.
    Example: growing(72, 288, t_i=100, t_f=300, total=1000, interval=10).budget(400) == 180.
    """
    if curve not in EXPONENTS:
        raise SettingError(f"schedule.curve={curve} is not known; valid: {', '.join(EXPONENTS)}")
    if initial > final:
        raise SettingError(
            f"the initial budget of {initial} triplets lies above the final one of {final}, and schedule=growing never "
            f"falls; valid: at most {final} (init_rank, at most rank)"
        )
    exponent = EXPONENTS[curve]
    return phased(initial, final, t_i, t_f, total, interval, lambda k, n: power(initial, final, k, n, exponent))
