"""A budget that stays: allocations move it between modules."""

from adarank.errors import SettingError
from adarank.schedules.schedule import Schedule, phased


def constant(initial: int, final: int, t_i: int, t_f: int, total: int, interval: int = 1) -> Schedule:
    """`initial` from the first step to the last; allocations every `interval` steps between t_i and T − t_f.

    The control of a schedule, and what prune-and-expand and gates need. final: the same as initial; else, and for
    phases that cannot be, raises SettingError.
    """
    if initial != final:
        raise SettingError(
            f"schedule=constant keeps the initial budget of {initial} triplets, which is not the final one of {final}; "
            "valid: init_rank equal to rank"
        )
    return phased(initial, final, t_i, t_f, total, interval, lambda k, n: initial)
