"""Statistics over seeds. Numpy in, numbers out; scipy.special only (scipy.stats takes 1.7 s to import)."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

EXACT_PAIRS = 20  # 2**19 sums; beyond that the sign flips are sampled


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


def smallest_p(pairs: int) -> float:
    """The smallest two-sided p that a sign-flip test on `pairs` pairs can reach: 2 / 2**pairs, at most 1."""
    return min(1.0, 2.0 / 2.0**pairs)


def sign_flip_p(differences: ArrayLike, samples: int = 100_000, seed: int = 0) -> float:
    """Two-sided p of the paired sign-flip test that `differences` [n] are symmetric about 0.

    The share of the 2**n sign patterns whose |sum| reaches the observed one; exact up to EXACT_PAIRS pairs, beyond
    that (1 + hits) / (1 + samples) over sampled patterns. 1 for n = 0.
    """
    d = np.asarray(differences, dtype=np.float64)
    if d.size == 0:
        return 1.0
    reached = abs(d.sum()) - 1e-9 * np.abs(d).sum()  # sums that are equal but for rounding count as reached
    if d.size <= EXACT_PAIRS:
        sums = d[:1]  # the first sign stays: flipping all signs leaves |sum| as it is
        for value in d[1:]:
            sums = np.concatenate([sums + value, sums - value])
        return float(np.mean(np.abs(sums) >= reached))
    generator = np.random.default_rng(seed)
    sums = (2.0 * generator.integers(0, 2, size=(samples, d.size)) - 1.0) @ d
    return float((1 + np.count_nonzero(np.abs(sums) >= reached)) / (1 + samples))


def tost_p(differences: ArrayLike, margin: float) -> float:
    """p of two one-sided paired t tests: small when the mean of `differences` [n] lies within ±margin.

    The larger of the two one-sided p values (Schuirmann 1987). 1 for n < 2; without any spread the mean decides.
    """
    d = np.asarray(differences, dtype=np.float64)
    if d.size < 2:
        return 1.0
    from scipy.special import stdtr

    distance = margin - abs(float(d.mean()))
    error = float(d.std(ddof=1)) / float(np.sqrt(d.size))
    if error == 0.0:
        return 0.0 if distance > 0 else 1.0
    return float(stdtr(d.size - 1, -distance / error))


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """Holm's step-down adjustment of the p values [m], in their order: compare with the level itself (Holm 1979)."""
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values)
    factors = np.arange(values.size, 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * factors))
    return adjusted
