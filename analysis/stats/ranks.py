"""Whether two orders agree, and how far chance alone would have them agree."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.stats.paired import mean_ranks


class Agreement(NamedTuple):
    """value: mean Spearman correlation over all pairs of maps; low, high: the middle 95% of it under chance."""

    value: float
    low: float
    high: float


def spearman(x: ArrayLike, y: ArrayLike) -> float | None:
    """Spearman's rank correlation of `x` and `y` [n], ties by mean ranks; None where either is constant."""
    a, b = (_standard(mean_ranks(v)) for v in (x, y))
    return None if a is None or b is None else float(np.clip(a @ b, -1.0, 1.0))


def top_overlap(x: ArrayLike, y: ArrayLike, top: int) -> float:
    """The share of the `top` largest of `x` [n] that are among the `top` largest of `y`; top / n is chance.

    Ties at the border count in parts, as if it were drawn by lot. Raises ValueError unless 1 <= top <= n.
    """
    a, b = (membership(np.asarray(v, dtype=np.float64), top) for v in (x, y))
    return float(a @ b / top)


def agreement(maps: ArrayLike, generator: np.random.Generator, samples: int = 1_000) -> Agreement | None:
    """Agreement of `maps` [seeds, modules] beside its chance level: each map's modules shuffled on their own.

    None for fewer than two maps or where one is constant.
    """
    rows = [_standard(mean_ranks(row)) for row in np.asarray(maps, dtype=np.float64)]
    known = [row for row in rows if row is not None]
    if len(known) < len(rows) or len(known) < 2:
        return None
    ranks = np.stack(known)
    chance = _mean_correlation(generator.permuted(np.broadcast_to(ranks, (samples, *ranks.shape)), axis=2))
    low, high = np.quantile(chance, [0.025, 0.975])
    return Agreement(float(_mean_correlation(ranks)), float(low), float(high))


def _mean_correlation(ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of r_i · r_j over all pairs, [..., maps, modules] of unit length -> [...]; |Σ r|² = n + 2 Σ r_i · r_j."""
    n = ranks.shape[-2]
    return np.asarray(((ranks.sum(axis=-2) ** 2).sum(axis=-1) - n) / (n * (n - 1)))


def _standard(x: NDArray[np.float64]) -> NDArray[np.float64] | None:
    centred = x - x.mean()
    length = float(np.linalg.norm(centred))
    return centred / length if length > 0 else None


def membership(x: NDArray[np.float64], top: int) -> NDArray[np.float64]:
    """How far each of `x` [n] belongs to its `top` largest: 1, 0, or the share of its lot at the border."""
    if not 1 <= top <= x.size:
        raise ValueError(f"The top {top} of {x.size} values is undefined.")
    border = np.sort(x)[-top]
    above, at = x > border, x == border
    return np.where(above, 1.0, np.where(at, (top - above.sum()) / at.sum(), 0.0))
