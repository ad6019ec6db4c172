"""The agreement of orderings, and the agreement that chance alone would produce."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Agreement(NamedTuple):
    """value: mean Spearman correlation over all pairs of maps; low, high: its middle 95% under chance."""

    value: float
    low: float
    high: float


def mean_ranks(values: ArrayLike) -> NDArray[np.float64]:
    """Ranks of `values` [..., n] along the last axis, from 1; equal values share the mean of their ranks."""
    from scipy.stats import rankdata  # takes two seconds to import

    return np.asarray(rankdata(values, axis=-1), dtype=np.float64)


def spearman(x: ArrayLike, y: ArrayLike) -> float | None:
    """Spearman's rank correlation of `x` and `y` [n], ties by mean ranks; None if either is constant."""
    if not (np.ptp(x) and np.ptp(y)):
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(x, y).statistic)


def top_overlap(x: ArrayLike, y: ArrayLike, top: int) -> float:
    """The share of the `top` largest of `x` [n] that are among the `top` largest of `y`; top / n by chance.

    Ties at the border count in part, as if drawn at random. Raises ValueError unless 1 <= top <= n.
    """
    a, b = (membership(np.asarray(v, dtype=np.float64), top) for v in (x, y))
    return float(a @ b / top)


def agreement(maps: ArrayLike, generator: np.random.Generator, samples: int = 1_000) -> Agreement | None:
    """Agreement of `maps` [seeds, modules] and its chance level: the modules of each map shuffled independently.

    None for fewer than two maps or if one is constant.
    """
    values = np.asarray(maps, dtype=np.float64)
    if len(values) < 2 or not np.ptp(values, axis=1).all():
        return None
    ranks = mean_ranks(values)
    ranks -= ranks.mean(axis=1, keepdims=True)
    ranks /= np.linalg.norm(ranks, axis=1, keepdims=True)
    chance = _mean_correlation(generator.permuted(np.broadcast_to(ranks, (samples, *ranks.shape)), axis=2))
    low, high = np.quantile(chance, [0.025, 0.975])
    return Agreement(float(_mean_correlation(ranks)), float(low), float(high))


def membership(x: NDArray[np.float64], top: int) -> NDArray[np.float64]:
    """The degree to which each of `x` [n] belongs to its `top` largest: 1, 0, or a fraction for ties at the border."""
    if not 1 <= top <= x.size:
        raise ValueError(f"top must be a whole number from 1 to {x.size} (got {top})")
    border = np.sort(x)[-top]
    above, at = x > border, x == border
    return np.where(above, 1.0, np.where(at, (top - above.sum()) / at.sum(), 0.0))


def _mean_correlation(ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of r_i · r_j over all pairs, [..., maps, modules] of unit length -> [...]; |Σ r|² = n + 2 Σ r_i · r_j."""
    n = ranks.shape[-2]
    return np.asarray(((ranks.sum(axis=-2) ** 2).sum(axis=-1) - n) / (n * (n - 1)))
