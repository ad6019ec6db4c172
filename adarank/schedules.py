"""Budget schedules: the number of triplets (or parameters) that all modules together may keep after each step.

Steps count optimiser steps from 0; T is their total number. Every schedule with phases keeps `initial` up to step t_i
and `final` from step T − t_f on, and reallocates every `interval` steps in between; they differ in the curve. Their
common arguments:

    initial, final   budgets of all modules together, at least 1
    t_i              steps before the first allocation, at least 0
    t_f              steps at the end, with the final budget, at least 0
    total            optimiser steps T, above t_i + t_f
    interval         steps between allocations (the paper's ΔT), at least 1

They raise SettingError for values that are not whole numbers in these ranges, for a budget that moves the wrong way and
for a final budget that no allocation would ever apply.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from adarank.errors import SettingError, whole_number


@dataclass(frozen=True)
class Schedule:
    """The budget at each step and the steps of the allocations.

    initial, final: budgets, in triplets (or parameters) of all modules together; total: steps T; begin: allocations
    happen after this step; settled: the step from which the budget is final, scores are no longer observed and the
    mask, once made, does not change; interval: steps between earlier allocations, which follow the steps offset +
    k·interval; curve: step -> budget in between; steps: the steps of these allocations, if they are not at regular
    intervals.
    """

    initial: int
    final: int
    total: int
    begin: int
    settled: int
    interval: int
    curve: Callable[[int], int]
    steps: frozenset[int] | None = None
    offset: int = 0

    def budget(self, step: int) -> int:
        """The budget after optimiser step `step`."""
        if step <= self.begin:
            return self.initial
        return self.final if step >= self.settled else self.curve(step)

    def due(self, step: int) -> bool:
        """Whether a mask is applied after step `step`: every `interval` steps, then every step of the final phase."""
        if step <= self.begin:
            return False
        if step > self.settled:
            return True
        return (step - self.offset) % self.interval == 0 if self.steps is None else step in self.steps

    def allocations(self) -> list[int]:
        """The steps after which a new mask is made; after the last of them the mask does not change."""
        steps = [t for t in range(self.begin + 1, min(self.settled, self.total - 1) + 1) if self.due(t)]
        if (not steps or steps[-1] < self.settled) and self.settled + 1 < self.total:
            steps.append(self.settled + 1)
        return steps


def cubic(initial: int, final: int, t_i: int, t_f: int, total: int, interval: int = 1) -> Schedule:
    """b(t) = b_T + (b_0 − b_T)(1 − (t − t_i)/(T − t_i − t_f))³ for t_i < t < T − t_f, rounded down.

    AdaLoRA's schedule as in its code. (The paper, arXiv 2303.10512, eq. 12, prints t − t_i − t_f in the
    numerator, which would start above b_0.) Arguments and errors: see the module; initial >= final.
    Example: cubic(432, 288, t_i=100, t_f=300, total=1000, interval=10).budget(400) == 306.
    """
    initial, final = _falling(initial, final)
    return _phased(
        initial, final, t_i, t_f, total, interval, lambda k, n: int(final + (initial - final) * (1 - k / n) ** 3)
    )


def linear(initial: int, final: int, t_i: int, t_f: int, total: int, interval: int = 1) -> Schedule:
    """b(t) = b_T + (b_0 − b_T)(1 − (t − t_i)/(T − t_i − t_f)) for t_i < t < T − t_f, rounded down.

    Arguments and errors: see the module; initial >= final.
    Example: linear(432, 288, t_i=100, t_f=300, total=1000, interval=10).budget(400) == 360.
    """
    initial, final = _falling(initial, final)
    return _phased(initial, final, t_i, t_f, total, interval, lambda k, n: _power(initial, final, k, n, 1))


def accelerating(initial: int, final: int, t_i: int, t_f: int, total: int, interval: int = 1) -> Schedule:
    """b(t) = b_0 − (b_0 − b_T)((t − t_i)/(T − t_i − t_f))³ for t_i < t < T − t_f, with the decrease rounded down.

    Slow at first, when `cubic` is fast (dynamic DoRA, arXiv 2405.17357, as in its code). Arguments and errors: see the
    module; initial >= final.
    Example: accelerating(432, 288, t_i=100, t_f=300, total=1000, interval=10).budget(400) == 414.
    """
    initial, final = _falling(initial, final)
    return _phased(initial, final, t_i, t_f, total, interval, lambda k, n: initial - (initial - final) * k**3 // n**3)


def cosine(initial: int, final: int, t_i: int, t_f: int, total: int, interval: int = 1) -> Schedule:
    """b(t) = b_T + (b_0 − b_T)(1 + cos(π (t − t_i)/(T − t_i − t_f)))/2 for t_i < t < T − t_f, rounded down.

    Arguments and errors: see the module; initial >= final.
    Example: cosine(432, 288, t_i=100, t_f=300, total=1000, interval=10).budget(300) == 396.
    """
    initial, final = _falling(initial, final)

    def curve(k: int, n: int) -> int:
        return int(final + (initial - final) * (1 + math.cos(math.pi * k / n)) / 2)

    return _phased(initial, final, t_i, t_f, total, interval, curve)


def widening(
    initial: int, final: int, t_i: int, t_f: int, total: int, interval: int = 10, last_interval: int = 200
) -> Schedule:
    """b(t) = b_0 − (b_0 − b_T)·T(t)/T_f, T(t) = T_f + (T_0 − T_f)(1 − (t − t_i)/(T − t_i − t_f))³, rounded.

    SalientLoRA's time-series windows: T_0 = interval is the number of steps before the first allocation, and T_f =
    last_interval the number between the last ones: after an allocation at step t the next one follows at t + T(t). The
    budget falls by the share T_0/T_f at the first allocation and then similarly to `cubic`. (The authors' code divides
    t − t_i by T − t_f, so that it ends above b_T.) Other arguments and errors: see the module; initial >= final;
    last_interval: at least interval.
    """
    initial, final = _falling(initial, final)
    t_i, t_f, total, interval = _steps(t_i, t_f, total, interval)
    last_interval = whole_number("schedule.last_interval", last_interval, interval)
    n = total - t_f - t_i

    def window(step: int) -> int:
        return round(last_interval + (interval - last_interval) * (1 - (step - t_i) / n) ** 3)

    steps, step = set(), t_i + interval
    while step <= total - t_f:
        steps.add(step)
        step += window(step)

    def curve(k: int, n: int) -> int:
        return int(initial - window(t_i + k) / last_interval * (initial - final))

    return _phased(initial, final, t_i, t_f, total, interval, curve, frozenset(steps))


def growing(
    initial: int,
    final: int,
    t_i: int,
    t_f: int,
    total: int,
    interval: int = 1,
    curve: Literal["linear", "cubic"] = "linear",
) -> Schedule:
    """b(t) = b_T − (b_T − b_0)(1 − (t − t_i)/(T − t_i − t_f))^e for t_i < t < T − t_f, rounded down.

    For methods that grow (IncreLoRA, arXiv 2308.12043, which fixes the number of triplets added per allocation; here
    the final budget is fixed). curve: "linear" (e = 1), as in IncreLoRA's code; "cubic" (e = 3), fast at first. Other
    arguments and errors: see the module; initial <= final.
    Example: growing(72, 288, t_i=100, t_f=300, total=1000, interval=10).budget(400) == 180.
    """
    if curve not in (exponents := {"linear": 1, "cubic": 3}):
        raise SettingError(f"schedule.curve must be one of {', '.join(exponents)} (got {curve})")
    initial, final = _budgets(initial, final)
    if initial > final:
        raise SettingError(
            f"the initial budget must be at most the final one of {final} with schedule=growing (got {initial}); lower "
            "init_rank to at most rank"
        )
    exponent = exponents[curve]
    return _phased(initial, final, t_i, t_f, total, interval, lambda k, n: _power(initial, final, k, n, exponent))


def constant(
    initial: int, final: int, t_i: int, t_f: int, total: int, interval: int = 1, from_t_i: bool = False
) -> Schedule:
    """`initial` from the first step to the last; allocations move it between modules.

    A control, and the schedule for prune-and-expand methods and gates. from_t_i: allocate after the steps t_i +
    interval, t_i + 2·interval, … (ElaLoRA's and FlexLoRA's code) instead of the multiples of `interval` (AdaLoRA's
    code, and every other schedule). Other arguments and errors: see the module; initial == final.
    Example: constant(8, 8, t_i=3, t_f=2, total=12, interval=4, from_t_i=True).allocations() == [7, 11].
    """
    initial, final = _budgets(initial, final)
    if initial != final:
        raise SettingError(
            f"the initial budget must equal the final one of {final} with schedule=constant (got {initial}); set "
            "init_rank equal to rank"
        )
    schedule = _phased(initial, final, t_i, t_f, total, interval, lambda k, n: initial)
    return replace(schedule, offset=schedule.begin) if from_t_i else schedule


def one_shot(initial: int, final: int, t: int, total: int) -> Schedule:
    """`initial` before step t and `final` from step t on, with one allocation after step t, by the scores up to then.

    initial >= final >= 1; t: from 1 (scores need a step) to total − 1. Raises SettingError outside these ranges.
    """
    initial, final = _falling(initial, final)
    _, _, total, _ = _steps(0, 0, total, 1)
    t = whole_number("schedule.t", t, 1, total - 1, f", of {total} steps")
    return Schedule(initial, final, total, begin=t - 1, settled=t, interval=1, curve=lambda step: initial)


def late(initial: int, final: int, total: int, t_f: int = 1, interval: int = 0) -> Schedule:
    """`initial` before step T − t_f and `final` from then on, by one allocation.

    For pruning after training (PARA, arXiv 2604.27796) and for training every rank until then (DyLoRA, arXiv
    2210.07558). initial > final >= 1; t_f: steps at the end with the final budget, at least 1 (1: it applies only after
    the last step); interval: steps between earlier allocations of the initial budget, 0 for none. Raises SettingError
    outside these ranges and for a final budget that no allocation would ever apply.
    """
    initial, final = _budgets(initial, final)
    interval = whole_number("schedule.interval", interval, 0)
    _, t_f, total, _ = _steps(0, whole_number("schedule.t_f", t_f), total, 1)
    if initial <= final:
        raise SettingError(
            f"the initial budget must be above the final one of {final} with schedule=late (got {initial}); raise "
            "init_rank above rank"
        )
    settled = total - t_f
    begin = -1 if interval else settled - 1
    schedule = Schedule(initial, final, total, begin, settled, max(interval, 1), lambda step: initial)
    if schedule.allocations()[-1:] < [settled]:
        raise SettingError(
            f"schedule.t_f must be at least 2, or schedule.interval 1 (got t_f=1, interval={interval}, {total} steps): "
            f"otherwise no allocation applies the final budget of {final}"
        )
    return schedule


def never(budget: int) -> Schedule:
    """No allocation: the budget is everything that the adapters have."""
    forever = 2**62
    return Schedule(budget, budget, forever, forever, forever, 1, lambda step: budget)


def _steps(t_i: int, t_f: int, total: int, interval: int) -> tuple[int, int, int, int]:
    """The arguments as ints. Raises SettingError, naming the setting, if the phases do not fit into `total` steps."""
    total = whole_number("train.steps", total)
    t_i, t_f = whole_number("schedule.t_i", t_i, 0), whole_number("schedule.t_f", t_f, 0)
    interval = whole_number("schedule.interval", interval)
    if t_i + t_f >= total:
        raise SettingError(
            f"schedule.t_i + schedule.t_f must be below the {total} steps (got {t_i} + {t_f}), so that some steps "
            "remain for reallocation"
        )
    return t_i, t_f, total, interval


def _budgets(initial: int, final: int) -> tuple[int, int]:
    """Both as ints. Raises SettingError if one is not a whole number of at least 1."""
    return whole_number("the initial budget", initial), whole_number("the final budget", final)


def _falling(initial: int, final: int) -> tuple[int, int]:
    """`_budgets` for a schedule that does not rise. Raises SettingError if it does."""
    initial, final = _budgets(initial, final)
    if initial < final:
        raise SettingError(
            f"the initial budget must be at least the final one of {final}, except with schedule=growing "
            f"(got {initial})"
        )
    return initial, final


def _phased(
    initial: int,
    final: int,
    t_i: int,
    t_f: int,
    total: int,
    interval: int,
    curve: Callable[[int, int], int],
    at: frozenset[int] | None = None,
) -> Schedule:
    """`initial` up to step t_i, `final` from step T − t_f on, and curve(k, n) after k of the n steps in between. at:
    the steps of the allocations, None for the multiples of interval."""
    t_i, t_f, total, interval = _steps(t_i, t_f, total, interval)
    n = total - t_f - t_i
    schedule = Schedule(initial, final, total, t_i, total - t_f, interval, lambda step: curve(step - t_i, n), at)
    if final != initial and (not schedule.allocations() or schedule.allocations()[-1] < schedule.settled):
        raise SettingError(
            f"schedule.t_f must be at least 2 (got {t_f}, with schedule.interval={interval} and {total} steps): "
            f"otherwise no allocation applies the final budget of {final}"
        )
    return schedule


def _power(initial: int, final: int, k: int, n: int, exponent: int) -> int:
    """b_T + (b_0 − b_T)(1 − k/n)^exponent, exactly, rounded down."""
    return final + (initial - final) * (n - k) ** exponent // n**exponent
