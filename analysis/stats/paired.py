"""Tests on pairs: two methods on the same task with the same seed. The pair's sign is what chance would flip."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.stats.intervals import matrix
from analysis.stats.ranks import mean_ranks

EXACT_PAIRS = 32  # two halves of 2**16 sums; beyond that the sign flips are sampled
SAMPLES = 100_000


def smallest_p(pairs: int) -> float:
    """The smallest two-sided p that a test on the signs of `pairs` pairs can attain.

    2 / 2**pairs, at most 1; beyond EXACT_PAIRS the flips are sampled and it is 1 / (1 + SAMPLES).
    """
    return min(1.0, 2.0 / 2.0**pairs) if pairs <= EXACT_PAIRS else 1 / (1 + SAMPLES)


def sign_flip_p(differences: ArrayLike, generator: np.random.Generator) -> float:
    """Two-sided p of the sign-flip test that `differences` [runs, tasks] are symmetric about 0 in every task.

    The statistic is the mean over tasks of the means over runs; each pair is flipped on its own, within its task. The
    share of sign patterns whose |statistic| reaches the observed one: all 2**n up to EXACT_PAIRS pairs, beyond that
    (1 + hits) / (1 + SAMPLES) over sampled ones. 1 without pairs.
    """
    d = matrix(differences)
    weighted = d / np.isfinite(d).sum(axis=0)
    return _flip(weighted[np.isfinite(weighted)], generator)


def wilcoxon_p(differences: ArrayLike, generator: np.random.Generator) -> float:
    """Two-sided p of Wilcoxon's signed-rank test over all pairs of `differences` [runs, tasks].

    Zeros are dropped, ties share their mean rank; exact (over the sign patterns) as `sign_flip_p` is.
    """
    d = matrix(differences)
    d = d[np.isfinite(d) & (d != 0)]
    return _flip(np.sign(d) * mean_ranks(np.abs(d)), generator)


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """Holm's step-down adjustment of the p values [m], in their order: compare with the level itself (Holm 1979)."""
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values)
    factors = np.arange(values.size, 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * factors))
    return adjusted


def attainable(p: ArrayLike, smallest: ArrayLike) -> NDArray[np.float64]:
    """The smallest Holm-adjusted p that each comparison could have attained [m], the others' p being what they are."""
    values, least = np.asarray(p, dtype=np.float64), np.asarray(smallest, dtype=np.float64)
    return np.array([holm(np.where(np.arange(values.size) == i, least, values))[i] for i in range(values.size)])


def _flip(d: NDArray[np.float64], generator: np.random.Generator) -> float:
    """The share of sign patterns over `d` [n] whose |sum| reaches that of `d`."""
    reached = abs(d.sum()) - 1e-9 * np.abs(d).sum()  # sums that are equal but for rounding count as reached
    if reached <= 0:
        return 1.0
    if d.size <= EXACT_PAIRS:
        one, other = _sums(d[: d.size // 2]), _sums(d[d.size // 2 :])
        above = one.size * other.size - int(np.searchsorted(other, reached - one).sum())
        return 2 * above / 2**d.size  # flipping every sign turns a sum above into one below
    hits = 0
    for part in np.array_split(np.arange(SAMPLES), 20):  # a twentieth at a time: the matrix of signs stays small
        signs = 2.0 * generator.integers(0, 2, size=(part.size, d.size)) - 1.0
        hits += int(np.count_nonzero(np.abs(signs @ d) >= reached))
    return float((1 + hits) / (1 + SAMPLES))


def _sums(d: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sums of `d` [n] under all 2**n sign patterns, in rising order."""
    sums = np.zeros(1)
    for value in d:
        sums = np.concatenate([sums + value, sums - value])
    return np.sort(sums)
