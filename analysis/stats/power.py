"""The power of a paired t test, the number of pairs that it needs, and the difference that it can detect."""

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

from analysis.stats.paired import Estimate, critical

POWER = 0.8


def power(effect: float, pairs: int, level: float, freedom: float | None = None) -> float:
    """The chance that a two-sided paired t test at `level` finds a true difference, from the noncentral t.

    effect: the difference in standard deviations of one paired difference; freedom: pairs - 1 unless the spread is
    pooled over more. 0 if there is no degree of freedom. Exact to 1e-5, by Gauss's quadrature over the spread's
    distribution (scipy's noncentral t gives NaN in places).
    """
    freedom = pairs - 1 if freedom is None else freedom
    if freedom < 1:
        return 0.0
    return _beyond(abs(effect) * math.sqrt(pairs), critical(level, freedom), freedom)


def pairs_needed(
    difference: float, spread: float, level: float, power: float = POWER, most: int = 10_000, columns: int = 1
) -> int | None:
    """The fewest pairs with which a two-sided paired t test at `level` finds `difference` with `power`.

    spread: the standard deviation of one paired difference; columns: degrees of freedom that each further seed adds
    (methods - 1 if the spread is pooled). None if the difference is 0 or more than `most` pairs are needed; 2 if
    nothing varies.
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

    None if nothing varies or there is no degree of freedom.
    """
    if estimate.freedom < 1 or not estimate.spread:
        return None
    from scipy.optimize import brentq  # type: ignore[import-untyped]

    reached = critical(level, estimate.freedom)
    most = 2 * reached + 10
    while _beyond(most, reached, estimate.freedom) < power:
        most *= 2
    return estimate.error * float(brentq(lambda shift: _beyond(shift, reached, estimate.freedom) - power, 0.0, most))


def _power(effect: float, pairs: int, level: float, columns: int) -> float:
    return power(effect, pairs, level, (pairs - 1) * columns)


def _beyond(shift: float, reached: float, freedom: float) -> float:
    """P(|T| > reached) of a noncentral t: T = (Z + shift) / s, where freedom · s² is a chi-square."""
    from scipy.special import gammaincinv, ndtr  # type: ignore[import-untyped]

    nodes, weights = _quadrature()
    s = np.sqrt(2 * gammaincinv(freedom / 2, nodes) / freedom)  # at the quantiles `nodes` of its distribution
    return float(weights @ (ndtr(shift - reached * s) + ndtr(-shift - reached * s)))


@cache
def _quadrature() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nodes and weights on 0..1."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    return (nodes + 1) / 2, weights / 2
