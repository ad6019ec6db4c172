"""Step -> budget, in triplets (or parameters) of all modules together: see `schedule.Schedule`; one file each."""

from adarank.schedules.constant import constant
from adarank.schedules.cubic import cubic
from adarank.schedules.late import late
from adarank.schedules.schedule import Schedule, check_steps, never

__all__ = ["Schedule", "check_steps", "constant", "cubic", "late", "never"]
