"""How large a difference is, how small it surely is, and how large it would have to be to be seen."""

import math

import numpy as np
from numpy.typing import ArrayLike

from analysis.stats.intervals import matrix, task_mean

POWER = 0.8


def probability_of_improvement(scores: ArrayLike, others: ArrayLike) -> float | None:
    """The chance that a run of `scores` beats one of `others` (higher is better) on a task, mean over tasks.

    [runs, tasks] both, ties count half: Mann and Whitney's U / (n m) (Agarwal et al. 2021, arXiv 2108.13264). None
    where no task has both.
    """
    x, y = (np.atleast_2d(np.asarray(v, dtype=np.float64).T).T for v in (scores, others))
    found = []
    for one, other in zip(x.T, y.T, strict=True):
        gap = one[np.isfinite(one)][:, None] - other[np.isfinite(other)]
        if gap.size:
            found.append(float(np.mean((gap > 0) + 0.5 * (gap == 0))))
    return float(np.mean(found)) if found else None


def hedges_g(differences: ArrayLike) -> float | None:
    """Mean paired difference in units of the differences' standard deviation (pooled over tasks), bias-corrected.

    Hedges 1981, with the exact factor Γ(f/2) / (√(f/2) Γ((f-1)/2)), f = pairs - tasks. None where f < 2 or nothing
    varies.
    """
    mean, _, freedom, spread = _moments(differences)
    if freedom < 2 or not spread:
        return None
    half = freedom / 2
    return mean / spread * math.exp(math.lgamma(half) - math.lgamma(half - 0.5)) / math.sqrt(half)


def tost_p(differences: ArrayLike, margin: float) -> float:
    """p of two one-sided paired t tests: small when the mean of `differences` [runs, tasks] lies within ±margin.

    The larger of the two one-sided p values (Schuirmann 1987), standard deviation pooled over tasks. 1 where there
    is no degree of freedom; without any spread the mean decides.
    """
    mean, error, freedom, _ = _moments(differences)
    if freedom < 1:
        return 1.0
    from scipy.special import stdtr

    distance = margin - abs(mean)
    if error == 0.0:
        return 0.0 if distance > 0 else 1.0
    return float(stdtr(freedom, -distance / error))


def minimum_detectable(differences: ArrayLike, level: float = 0.05, power: float = POWER) -> float | None:
    """The true mean difference that a two-sided paired t test at `level` would find with `power`, at this n and spread.

    error · δ, δ the noncentrality at which the t test's critical value is exceeded with `power`. None where nothing
    varies or there is no degree of freedom.
    """
    _, error, freedom, _ = _moments(differences)
    if freedom < 1 or not error:
        return None
    from scipy.special import nctdtrinc, stdtrit

    critical = float(stdtrit(freedom, 1 - level / 2))
    return error * float(nctdtrinc(freedom, 1 - power, critical))


def _moments(differences: ArrayLike) -> tuple[float, float, int, float]:
    """Mean (tasks count the same), its standard error, degrees of freedom, standard deviation pooled over tasks."""
    d = matrix(differences)
    counts = np.isfinite(d).sum(axis=0)
    freedom = int(counts.sum() - counts.size)
    if freedom < 1:
        return 0.0, 0.0, 0, 0.0
    spread = float(np.sqrt(np.nansum((d - np.nanmean(d, axis=0)) ** 2) / freedom))
    return float(task_mean(d)), spread * float(np.sqrt((1 / counts).sum())) / counts.size, freedom, spread
