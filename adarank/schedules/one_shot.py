"""A budget that falls at once."""

from adarank.errors import SettingError
from adarank.schedules.schedule import Schedule, check_falls, check_steps


def one_shot(initial: int, final: int, t: int, total: int) -> Schedule:
    """`initial` before step t, `final` from step t on: one allocation, after step t, by the scores of the steps before.

    initial, final: triplets, initial >= final >= 1; t: at least 1 (scores need a step) and below total. Raises
    SettingError for what cannot be.
    """
    check_falls(initial, final)
    check_steps(initial, final, 0, 0, total, 1)
    if not 1 <= t < total:
        raise SettingError(f"schedule.t={t} is none of the {total} steps after the first; valid: from 1 to {total - 1}")
    return Schedule(initial, final, total, begin=t - 1, settled=t, interval=1, curve=lambda step: initial)
