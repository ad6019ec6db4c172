"""Step -> budget, in triplets (or parameters) of all modules together: see `schedule.Schedule`; one file each."""

from adarank.schedules.constant import constant
from adarank.schedules.cosine import cosine
from adarank.schedules.cubic import cubic
from adarank.schedules.growing import growing
from adarank.schedules.linear import linear
from adarank.schedules.one_shot import one_shot
from adarank.schedules.schedule import Schedule, check_steps, never

__all__ = ["Schedule", "check_steps", "constant", "cosine", "cubic", "growing", "linear", "never", "one_shot"]
