"""What a schedule is, and what schedules share. Steps count optimiser steps from 0."""

from collections.abc import Callable
from dataclasses import dataclass

from adarank.errors import SettingError


@dataclass(frozen=True)
class Schedule:
    """When to allocate how much.

    initial, final: budgets, in triplets (or parameters) of all modules together; total: steps T; begin: allocations
    happen after this step; settled: the step from which the budget is final, scores are no longer observed and the
    mask, once made, is held; interval: steps between allocations before that; curve: step -> budget for
    begin < step < settled.
    """

    initial: int
    final: int
    total: int
    begin: int
    settled: int
    interval: int
    curve: Callable[[int], int]

    def budget(self, step: int) -> int:
        """Triplets allowed after optimiser step `step`."""
        if step <= self.begin:
            return self.initial
        return self.final if step >= self.settled else self.curve(step)

    def due(self, step: int) -> bool:
        """Whether a mask is applied after step `step`: every `interval` steps at first, every step in the final phase."""
        if step <= self.begin:
            return False
        return step > self.settled or step % self.interval == 0

    def allocations(self) -> list[int]:
        """The steps at which a new mask is made; later ones hold the last."""
        steps = [t for t in range(self.begin + 1, min(self.settled, self.total - 1) + 1) if self.due(t)]
        if (not steps or steps[-1] < self.settled) and self.settled + 1 < self.total:
            steps.append(self.settled + 1)
        return steps


def phased(
    initial: int, final: int, t_i: int, t_f: int, total: int, interval: int, curve: Callable[[int, int], int]
) -> Schedule:
    """`initial` up to step t_i, `final` from step T − t_f, and between them curve(k, n), k of n steps after t_i.

    Raises SettingError for phases that leave no step, and for a final budget that differs and would never be applied.
    """
    check_steps(initial, final, t_i, t_f, total, interval)
    n = total - t_f - t_i
    schedule = Schedule(initial, final, total, t_i, total - t_f, interval, lambda step: curve(step - t_i, n))
    if final != initial and (not schedule.allocations() or schedule.allocations()[-1] < schedule.settled):
        raise SettingError(
            f"schedule.t_f={t_f} with schedule.interval={interval} and {total} steps would never apply the final "
            f"budget of {final} triplets; valid: t_f of at least 2"
        )
    return schedule


def power(initial: int, final: int, k: int, n: int, exponent: int) -> int:
    """b_T + (b_0 − b_T)(1 − k/n)^exponent, exactly, rounded down."""
    return final + (initial - final) * (n - k) ** exponent // n**exponent


def never(budget: int) -> Schedule:
    """No allocation, ever: the budget is what the adapters hold."""
    forever = 2**62
    return Schedule(budget, budget, forever, forever, forever, 1, lambda step: budget)


def check_steps(initial: int, final: int, t_i: int, t_f: int, total: int, interval: int) -> None:
    """Raise SettingError, naming the setting, for a budget or phase that cannot be."""
    for name, budget in (("final", final), ("initial", initial)):
        if not budget >= 1:
            raise SettingError(f"the {name} budget of {budget} triplets is too small; valid: at least 1")
    if total < 1:
        raise SettingError(f"train.steps={total} is no number of steps; valid: at least 1")
    for name, value, least in (("t_i", t_i, 0), ("t_f", t_f, 0), ("interval", interval, 1)):
        if value < least:
            raise SettingError(f"schedule.{name}={value} is too small; valid: at least {least}")
    if t_i + t_f >= total:
        raise SettingError(
            f"schedule.t_i={t_i} plus schedule.t_f={t_f} leave none of the {total} steps to reallocate in; "
            f"valid: t_i + t_f < {total}"
        )


def check_falls(initial: int, final: int) -> None:
    """Raise SettingError for a budget that would have to rise."""
    if initial < final:
        raise SettingError(
            f"the initial budget of {initial} triplets lies below the final one of {final}; valid: at least {final}, "
            "or schedule=growing"
        )
