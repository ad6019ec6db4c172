"""Means and their confidence intervals."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]  # [..., n] -> [...]
FEWEST = 20  # values that a bootstrap interval needs: with 8 it covers .88 instead of .95, with 20 .93


def mean_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float | None]:
    """Mean of `values` [n] and the half-width of its t interval at `level`; the half-width is None for n = 1.

    Student's t with n - 1 degrees of freedom on the sample standard deviation. Raises ValueError for n = 0.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0:
        raise ValueError("The mean of no values is undefined.")
    if x.size == 1:
        return float(x.mean()), None
    from scipy.special import stdtrit  # type: ignore[import-untyped]

    quantile = float(stdtrit(x.size - 1, 0.5 + level / 2))
    return float(x.mean()), quantile * float(x.std(ddof=1)) / float(np.sqrt(x.size))


def bootstrap_interval(
    values: ArrayLike,
    generator: np.random.Generator,
    statistic: Statistic = lambda x: np.asarray(x.mean(axis=-1)),
    level: float = 0.95,
    samples: int = 5_000,
) -> tuple[float, float] | None:
    """BCa interval of `statistic` over resamples of the finite `values` [n]; None for fewer than FEWEST
    values.

    Efron 1987, with the acceleration from the jackknife.
    """
    x = np.asarray(values, dtype=np.float64).ravel()
    x = x[np.isfinite(x)]
    if x.size < FEWEST:
        return None
    from scipy.special import ndtr, ndtri

    observed = float(statistic(x))
    drawn = np.sort(statistic(x[generator.integers(0, x.size, size=(samples, x.size))]))
    if drawn[0] == drawn[-1]:
        return observed, observed
    # resamples that equal the observed value up to rounding are ties, half of which count as below it
    near = 1e-9 * max(abs(drawn[0]), abs(drawn[-1]))
    below = np.mean(drawn < observed - near) + 0.5 * np.mean(np.abs(drawn - observed) <= near)
    shift = float(ndtri(np.clip(below, 0.5 / samples, 1 - 0.5 / samples)))
    left = np.array([float(statistic(np.delete(x, i))) for i in range(x.size)])
    influence = left.mean() - left
    squares = float((influence**2).sum())
    a = float((influence**3).sum()) / (6 * squares**1.5) if squares > 0 else 0.0
    z = shift + ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    low, high = np.quantile(drawn, ndtr(shift + z / (1 - a * z)))
    return float(low), float(high)
