"""Means over runs × tasks, and how far they can be trusted."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]  # [..., runs, tasks] -> [...]


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


def matrix(values: ArrayLike) -> NDArray[np.float64]:
    """`values` as float64 [runs, tasks]; a vector is one task's runs. Tasks without any run are left out."""
    x = np.asarray(values, dtype=np.float64)
    x = x[:, None] if x.ndim == 1 else x
    return x[:, np.isfinite(x).any(axis=0)]


def task_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over tasks of the means over runs, [..., runs, tasks] -> [...]: every task counts the same."""
    return np.asarray(np.nanmean(values, axis=-2).mean(axis=-1))


def bootstrap_interval(
    values: ArrayLike,
    generator: np.random.Generator,
    statistic: Statistic = task_mean,
    level: float = 0.95,
    samples: int = 5_000,
) -> tuple[float, float] | None:
    """BCa interval of `statistic` over `values` [runs, tasks], runs resampled within their task.

    Efron 1987; the acceleration is the stratified one of Davison and Hinkley 1997, §5.4: influence values
    l = (n_t - 1)(mean of the jackknife in the task - jackknife), a = Σ l³/n_t³ / (6 (Σ l²/n_t²)^1.5). None where the
    runs are too few: where the one resample that repeats each task's smallest run is likelier than a tail (n ≤ 3 runs
    of one task at 95%), the interval could not reach beyond the runs themselves.
    """
    x = matrix(values)
    columns = [column[np.isfinite(column)] for column in x.T]
    if not columns or np.prod([float(c.size) ** -c.size for c in columns]) > (1 - level) / 2:
        return None
    from scipy.special import ndtr, ndtri

    observed = float(statistic(_stack(columns)))
    draws = [c[generator.integers(0, c.size, size=(samples, c.size))] for c in columns]
    drawn = np.sort(statistic(_stack(draws)))
    if drawn[0] == drawn[-1]:
        return observed, observed
    # half of the resamples that equal the observed value lie below it; but for rounding they would be ties
    near = 1e-9 * max(abs(drawn[0]), abs(drawn[-1]))
    below = np.mean(drawn < observed - near) + 0.5 * np.mean(np.abs(drawn - observed) <= near)
    shift = float(ndtri(np.clip(below, 0.5 / samples, 1 - 0.5 / samples)))
    a = _acceleration(columns, statistic)
    z = shift + ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    low, high = np.quantile(drawn, ndtr(shift + z / (1 - a * z)))
    return float(low), float(high)


def _stack(columns: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Columns [..., n_t] to one array [..., runs, tasks], padded by NaN."""
    longest = max(c.shape[-1] for c in columns)
    wide = [np.pad(c, [(0, 0)] * (c.ndim - 1) + [(0, longest - c.shape[-1])], constant_values=np.nan) for c in columns]
    return np.stack(wide, axis=-1)


def _acceleration(columns: list[NDArray[np.float64]], statistic: Statistic) -> float:
    squares = cubes = 0.0
    for place, column in enumerate(columns):
        if column.size < 2:
            continue
        left = [
            float(statistic(_stack([*columns[:place], np.delete(column, i), *columns[place + 1 :]])))
            for i in range(column.size)
        ]
        influence = (column.size - 1) * (np.mean(left) - np.array(left)) / column.size
        squares, cubes = squares + float((influence**2).sum()), cubes + float((influence**3).sum())
    return cubes / (6 * squares**1.5) if squares > 0 else 0.0
