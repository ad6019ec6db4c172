"""Tests on pairs (two methods with the same seed on the same task): Student's t, with the sign-flip test as a check."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

EXACT_PAIRS = 32  # two halves of 2**16 sums; beyond that the sign flips are sampled
SAMPLES = 100_000


class Estimate(NamedTuple):
    """A mean paired difference. spread: the standard deviation of one difference, with `freedom` degrees of freedom.

    spread and freedom are 0 for fewer than two pairs; without pairs the mean is 0, too.
    """

    mean: float
    spread: float
    pairs: int
    freedom: int

    @property
    def error(self) -> float:
        """The standard error of the mean."""
        return self.spread / math.sqrt(self.pairs) if self.pairs else 0.0


def paired(differences: ArrayLike) -> Estimate:
    """Student's paired t: mean and standard deviation of the finite `differences` [n], n - 1 degrees of freedom."""
    d = np.asarray(differences, dtype=np.float64).ravel()
    d = d[np.isfinite(d)]
    if d.size < 2:
        return Estimate(float(d.sum()), 0.0, d.size, 0)
    return Estimate(float(d.mean()), _settled(float(d.std(ddof=1)), d), d.size, d.size - 1)


def block_spread(scores: ArrayLike) -> tuple[float, int]:
    """(standard deviation of a difference, degrees of freedom) pooled over all methods of `scores` [seeds, methods].

    Randomised blocks: score = seed + method + noise, the same noise for every method; a difference of two methods has
    twice the residual variance, with (seeds - 1)(methods - 1) degrees of freedom (Box, Hunter and Hunter 2005, ch. 4).
    Raises ValueError unless every method has a score for each of at least two seeds.
    """
    x = np.asarray(scores, dtype=np.float64)
    if x.ndim != 2 or min(x.shape) < 2 or not np.isfinite(x).all():
        raise ValueError(f"scores must have a finite value for each of 2 seeds and 2 methods or more (got {x.shape})")
    residual = x - x.mean(0) - x.mean(1, keepdims=True) + x.mean()
    freedom = (x.shape[0] - 1) * (x.shape[1] - 1)
    return _settled(math.sqrt(2 * float((residual**2).sum()) / freedom), x), freedom


def interval(estimate: Estimate, level: float) -> tuple[float, float] | None:
    """The t interval of the mean with coverage 1 - level; None if there is no degree of freedom.

    It excludes 0 exactly where `p_value` is below `level`.
    """
    if estimate.freedom < 1:
        return None
    half = critical(level, estimate.freedom) * estimate.error
    return estimate.mean - half, estimate.mean + half


def p_value(estimate: Estimate) -> float:
    """Two-sided p that the mean is 0; 1 if there is no degree of freedom."""
    if estimate.freedom < 1:
        return 1.0
    if estimate.error == 0.0:
        return 1.0 if estimate.mean == 0.0 else 0.0
    from scipy.special import stdtr  # type: ignore[import-untyped]

    return float(2 * stdtr(estimate.freedom, -abs(estimate.mean) / estimate.error))


def critical(level: float, freedom: float) -> float:
    """The t beyond which a two-sided test at `level` rejects."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 1 - level / 2))


def sign_flip_p(differences: ArrayLike, generator: np.random.Generator) -> float:
    """Two-sided p of the sign-flip test that the finite `differences` [n] are symmetric about 0.

    The share of sign patterns whose |sum| reaches the observed one: all 2**n up to EXACT_PAIRS pairs, beyond that
    (1 + hits) / (1 + SAMPLES) over sampled ones. 1 without pairs. It assumes no distribution, and cannot go below
    2 / 2**n.
    """
    d = np.asarray(differences, dtype=np.float64).ravel()
    return _flip(d[np.isfinite(d)], generator)


def _settled(spread: float, values: NDArray[np.float64]) -> float:
    """The spread, or 0 if it is only the rounding of the values."""
    return spread if spread > 1e-12 * float(np.abs(values).max(initial=0.0)) else 0.0


def _flip(d: NDArray[np.float64], generator: np.random.Generator) -> float:
    """The share of sign patterns over `d` [n] whose |sum| reaches that of `d`."""
    reached = abs(d.sum()) - 1e-9 * np.abs(d).sum()  # sums that are equal up to rounding count as reached
    if reached <= 0:
        return 1.0
    if d.size <= EXACT_PAIRS:
        one, other = _sums(d[: d.size // 2]), _sums(d[d.size // 2 :])
        above = one.size * other.size - int(np.searchsorted(other, reached - one).sum())
        return 2 * above / 2**d.size  # flipping every sign turns a sum above into one below
    hits = 0
    for part in np.array_split(np.arange(SAMPLES), 20):  # a twentieth at a time, to keep the matrix of signs small
        signs = 2.0 * generator.integers(0, 2, size=(part.size, d.size)) - 1.0
        hits += int(np.count_nonzero(np.abs(signs @ d) >= reached))
    return float((1 + hits) / (1 + SAMPLES))


def _sums(d: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sums of `d` [n] under all 2**n sign patterns, in rising order."""
    sums = np.zeros(1)
    for value in d:
        sums = np.concatenate([sums + value, sums - value])
    return np.sort(sums)
