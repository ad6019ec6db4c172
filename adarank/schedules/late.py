"""The whole budget until the end of training."""

from adarank.errors import SettingError
from adarank.schedules.schedule import Schedule, check_steps


def late(initial: int, final: int, total: int, t_f: int = 1, interval: int = 0) -> Schedule:
    """`initial` up to step T − t_f, `final` from then on, in one allocation.

    For what is pruned once training is over (PARA, arXiv 2604.27796) and for what trains every rank until then (DyLoRA,
    arXiv 2210.07558). initial, final: budgets, initial > final >= 1; t_f: last steps at the final budget, 1: it is applied
    after the last one; interval: steps between allocations of the initial budget before, 0: none. Raises SettingError
    for what cannot be, and for a final budget that would never be applied.
    """
    check_steps(initial, final, 0, t_f, total, max(interval, 1))
    if initial <= final:
        raise SettingError(
            f"schedule=late falls at the end, and the initial budget of {initial} does not lie above the final one of "
            f"{final}; valid: init_rank above rank"
        )
    if t_f < 1 or interval < 0:
        name, value, least = ("t_f", t_f, 1) if t_f < 1 else ("interval", interval, 0)
        raise SettingError(f"schedule.{name}={value} is too small; valid: at least {least}")
    settled = total - t_f
    begin = -1 if interval else settled - 1
    schedule = Schedule(initial, final, total, begin, settled, max(interval, 1), lambda step: initial)
    if schedule.allocations()[-1:] < [settled]:
        raise SettingError(
            f"schedule.t_f=1 with schedule.interval={interval} and {total} steps would never apply the final budget of "
            f"{final}; valid: t_f of at least 2, or interval=1"
        )
    return schedule
