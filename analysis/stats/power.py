"""What a paired t test can find: its power, the pairs that it needs, the difference that it would see."""

import math

from analysis.stats.paired import Estimate, critical

POWER = 0.8


def power(effect: float, pairs: int, level: float, freedom: float | None = None) -> float:
    """The chance that a two-sided paired t test at `level` finds a true difference, from the noncentral t.

    effect: the difference in standard deviations of one paired difference; freedom: pairs - 1 unless the spread is
    pooled over more. 0 where there is no degree of freedom.
    """
    freedom = pairs - 1 if freedom is None else freedom
    if freedom < 1:
        return 0.0
    from scipy.special import nctdtr  # type: ignore[import-untyped]

    reached, shift = critical(level, freedom), abs(effect) * math.sqrt(pairs)
    if shift > 30:  # beyond the range in which nctdtr is accurate, and as good as certain
        return 1.0
    above = 1 - float(nctdtr(freedom, shift, reached))
    below = float(nctdtr(freedom, -shift, reached))  # P(T < -t | δ) = 1 - P(T < t | -δ)
    return min(1.0, above + 1 - below)


def pairs_needed(
    difference: float, spread: float, level: float, power: float = POWER, most: int = 10_000, columns: int = 1
) -> int | None:
    """The fewest pairs with which a two-sided paired t test at `level` finds `difference` with `power`.

    spread: the standard deviation of one paired difference; columns: degrees of freedom that each further seed brings
    (methods - 1 where the spread is pooled). None where the difference is 0 or more than `most` pairs are needed; 2
    where nothing varies.
    """
    if difference == 0.0:
        return None
    if spread == 0.0:
        return 2
    effect = abs(difference) / spread

    def enough(pairs: int) -> bool:
        return _power(effect, pairs, level, columns) >= power

    if not enough(most):
        return None
    low, high = 1, 2
    while not enough(high):
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def minimum_detectable(estimate: Estimate, level: float, power: float = POWER) -> float | None:
    """The true difference that the test of `estimate` at `level` would find with `power`, at this n and spread.

    None where nothing varies or there is no degree of freedom.
    """
    if estimate.freedom < 1 or not estimate.spread:
        return None
    from scipy.special import nctdtrinc

    reached = critical(level, estimate.freedom)
    return estimate.error * float(nctdtrinc(estimate.freedom, 1 - power, reached))


def _power(effect: float, pairs: int, level: float, columns: int) -> float:
    return power(effect, pairs, level, (pairs - 1) * columns)
