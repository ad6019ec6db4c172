"""The size of a difference: in standard deviations, as a chance to win, over several tasks, over several ranks."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.stats.paired import Estimate, critical


class Share(NamedTuple):
    """A share of pairs with its interval."""

    value: float
    low: float
    high: float


class OverTasks(NamedTuple):
    """A mean standardised difference over tasks. tau: the standard deviation of the true effects between tasks; i2: the
    share of the variation between tasks that is not noise within them; tasks: their number."""

    mean: float
    interval: tuple[float, float] | None
    tau: float
    i2: float
    tasks: int


def improvement(scores: ArrayLike, others: ArrayLike, level: float = 0.05) -> Share | None:
    """The chance that a method wins a pair (same seed, higher is better); ties count half. None without pairs.

    scores, others: [n], NaN if a run is missing. The interval is Wilson's (1927) score interval, of coverage
    1 - level.
    """
    d = np.asarray(scores, dtype=np.float64) - np.asarray(others, dtype=np.float64)
    d = d[np.isfinite(d)]
    if not d.size:
        return None
    from scipy.special import ndtri  # type: ignore[import-untyped]

    z, n, p = float(ndtri(1 - level / 2)), d.size, float(np.mean((d > 0) + 0.5 * (d == 0)))
    center, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = (center - half) / (1 + z * z / n), (center + half) / (1 + z * z / n)
    return Share(p, min(low, p), max(high, p))  # true up to rounding anyway


def hedges_g(estimate: Estimate) -> float | None:
    """The mean paired difference in standard deviations of one difference, bias-corrected; None if nothing varies.

    Hedges 1981, with the exact factor Γ(f/2) / (√(f/2) Γ((f-1)/2)), f degrees of freedom; None below 2.
    """
    if estimate.freedom < 2 or not estimate.spread:
        return None
    return estimate.mean / estimate.spread * _correction(estimate.freedom)


def over_tasks(estimates: Sequence[Estimate], level: float = 0.05) -> OverTasks | None:
    """The random-effects mean of the standardised differences of several tasks; None for fewer than two usable ones.

    Hedges' g with variance 1/n + g²/(2n); between-task variance by Paule and Mandel (1982); the interval is that of
    Hartung and Knapp (2001), t with tasks - 1 degrees of freedom, never narrower than without their factor.
    """
    usable = [(estimate.pairs, value) for estimate in estimates if (value := hedges_g(estimate)) is not None]
    if len(usable) < 2:
        return None
    n, g = np.array(usable, dtype=np.float64).T
    within = 1 / n + g**2 / (2 * n)
    tau2 = _paule_mandel(g, within)
    weights = 1 / (within + tau2)
    mean, freedom = float((weights * g).sum() / weights.sum()), len(g) - 1
    spread = max(1.0, float((weights * (g - mean) ** 2).sum()) / freedom)
    half = critical(level, freedom) * math.sqrt(spread / float(weights.sum()))
    typical = freedom * float((1 / within).sum()) / float((1 / within).sum() ** 2 - (1 / within**2).sum())
    return OverTasks(mean, (mean - half, mean + half), math.sqrt(tau2), tau2 / (tau2 + typical), len(g))


def interquartile_mean(values: ArrayLike) -> NDArray[np.float64]:
    """The mean of the middle half along the last axis (Agarwal et al. 2021, arXiv 2108.13264); values at the border
    count in part."""
    x = np.sort(np.asarray(values, dtype=np.float64), axis=-1)
    n = x.shape[-1]
    weights = np.clip(np.minimum(np.arange(1, n + 1) - n / 4, 3 * n / 4 - np.arange(n)), 0, 1)
    return np.asarray(x @ weights / weights.sum())


def area_under_curve(budgets: ArrayLike, scores: ArrayLike) -> float:
    """The area under `scores` [n] against log2 of `budgets` [n], divided by its width: a mean score over the budgets.

    AURAC of MatryoshkaLoRA (arXiv 2605.07850), by trapezoids. Raises ValueError unless there are two budgets above 0,
    all different.
    """
    x, y = np.asarray(budgets, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if x.size < 2 or (x <= 0).any() or np.unique(x).size < x.size:
        raise ValueError(f"budgets must be two or more different numbers above 0 (got {x.tolist()})")
    order = np.argsort(x)
    x, y = np.log2(x[order]), y[order]
    return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum() / (x[-1] - x[0]))


def fisher_p(failed: tuple[int, int], other: tuple[int, int]) -> float:
    """Two-sided p of Fisher's exact test that two groups fail equally often. Each: (failures, size)."""
    from scipy.stats import fisher_exact  # type: ignore[import-untyped]

    return float(fisher_exact([[k, n - k] for k, n in (failed, other)]).pvalue)


def mcnemar_p(correct: ArrayLike, others: ArrayLike) -> float:
    """Two-sided p of McNemar's exact test that two runs are right equally often on the same rows [n] (booleans)."""
    from scipy.stats import binomtest

    a, b = np.asarray(correct, dtype=bool), np.asarray(others, dtype=bool)
    won, lost = int((a & ~b).sum()), int((b & ~a).sum())
    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def _correction(freedom: int) -> float:
    half = freedom / 2
    return math.exp(math.lgamma(half) - math.lgamma(half - 0.5)) / math.sqrt(half)


def _paule_mandel(effects: NDArray[np.float64], within: NDArray[np.float64]) -> float:
    """The between-task variance at which the weighted squared deviations equal their expectation; 0 if less."""

    def excess(tau2: float) -> float:
        weights = 1 / (within + tau2)
        mean = (weights * effects).sum() / weights.sum()
        return float((weights * (effects - mean) ** 2).sum()) - (len(effects) - 1)

    if excess(0.0) <= 0:
        return 0.0
    from scipy.optimize import brentq  # type: ignore[import-untyped]

    high = float(effects.var()) + 1e-12
    while excess(high) > 0:
        high *= 2
    return float(brentq(excess, 0.0, high))
