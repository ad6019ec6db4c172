"""Group-sequential looks at paired differences, which judge before all seeds have run, at levels that spend alpha once.

Lan and DeMets 1983 (Biometrika 70:659) with their spending function like O'Brien and Fleming's, in the two-sided form
of Jennison and Turnbull 2000 (Group Sequential Methods, §7.2): 2 − 2 Φ(z / √t) of alpha is spent when the share t of
the planned seeds has been run, z the normal quantile of 1 − alpha / 2. The boundaries come from numerical integration
(Armitage, McPherson and Rowe 1969) and become levels for the p of a paired t test (the significance-level approach of
Jennison and Turnbull, §4.4). With few seeds, the p of successive t tests vary more than those of normal scores, and an
error rate of 0.05 would become 0.053; so the last look's level is what a fixed simulation of t tests leaves of alpha.
experiments/bench/looks.py simulates the errors.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.stats.paired import Estimate, interval, p_value, paired

HOPELESS = 0.1  # the conditional power below which more seeds are not worthwhile
BETTER, WORSE, WITHIN, GO_ON, STOP, UNDECIDED = "better", "worse", "within the margin", "go on", "hopeless", "undecided"
FAR = 12.0  # a boundary beyond this many standard deviations is never crossed
NODES = 301  # of the integration over the scores that cross no boundary
SIMULATIONS = 200_000


class Judgement(NamedTuple):
    """The result of a look. word: "better" or "worse" (a difference above or below 0 is proven), "within the margin"
    (it is proven to lie there, by the interval at `level`), "hopeless", "go on", or at the last look "undecided";
    p: that of the paired t test, significant if at most `level`; chance: the conditional power on which "hopeless"
    depends, None at the last look."""

    word: str
    difference: float
    p: float
    level: float
    chance: float | None


def judge(differences: ArrayLike, looks: Sequence[int], alpha: float, margin: float) -> Judgement:
    """Judge the first n paired differences [n] (higher is better); n is in `looks`, whose last is the planned number.

    Hopeless means that the chance to prove a difference at the last look, if the true one is the larger of the margin
    and the observed one, and the chance to prove equivalence, if the true difference is 0, are both below HOPELESS.
    This can only stop a study earlier, so that it adds no false "better". Raises ValueError if n is not among the
    looks.
    """
    d = np.asarray(differences, dtype=np.float64)
    n, last = d.size, looks[-1]
    if n not in looks:
        raise ValueError(f"differences must have as many values as one of the looks {list(looks)} (got {n})")
    level = levels(tuple(looks), alpha)[list(looks).index(n)]
    estimate = paired(d)
    mean, p, bounds = estimate.mean, p_value(estimate), interval(estimate, level)
    if bounds is not None and -margin < bounds[0] <= bounds[1] < margin:
        return Judgement(WITHIN, mean, p, level, None)
    if p <= level:
        return Judgement(BETTER if mean > 0 else WORSE, mean, p, level, None)
    if n == last:
        return Judgement(UNDECIDED, mean, p, level, None)
    chance = _chance(estimate, p, n / last, levels(tuple(looks), alpha)[-1], margin)
    return Judgement(STOP if chance < HOPELESS else GO_ON, mean, p, level, chance)


@cache
def levels(looks: tuple[int, ...], alpha: float) -> tuple[float, ...]:
    """The two-sided level of each look, for rising numbers of seeds whose last is the planned number."""
    from scipy.special import ndtr, ndtri

    times = [look / looks[-1] for look in looks]
    spent = [2 * float(ndtr(ndtri(alpha / 2) / math.sqrt(time))) for time in times]
    *earlier, last = (2 * float(ndtr(-z)) for z in boundaries(times, spent))
    return (*earlier, min(last, _last_level(looks, alpha, earlier)) if earlier else last)


def boundaries(times: Sequence[float], spent: Sequence[float]) -> list[float]:
    """z of each look such that the chance that |Z| has reached it by then is `spent`, without any difference.

    times: shares of the planned seeds, rising to 1; spent: the chance spent up to each look, rising to alpha.
    """
    from scipy.optimize import brentq
    from scipy.special import ndtr

    points, weights = np.polynomial.legendre.leggauss(NODES)
    found: list[float] = []
    at, mass = np.zeros(1), np.ones(1)  # the values of Z √t that have not crossed, and their probabilities
    before, used = 0.0, 0.0
    for time, total in zip(times, spent, strict=True):
        step = math.sqrt(time - before)

        def beyond(z: float, at: NDArray[np.float64] = at, mass: NDArray[np.float64] = mass,
                   step: float = step, root: float = math.sqrt(time), aim: float = total - used) -> float:  # fmt: skip
            outside = ndtr((-z * root - at) / step) + ndtr((at - z * root) / step)
            return float(mass @ outside) - aim

        z = FAR if beyond(FAR) >= 0 else float(brentq(beyond, 0.0, FAR, xtol=1e-12))
        found.append(z)
        edge = z * math.sqrt(time)
        new = edge * points
        density = np.exp(-((new[:, None] - at) ** 2) / (2 * step**2)) / (step * math.sqrt(2 * math.pi))
        at, mass = new, edge * weights * (density @ mass)
        before, used = time, total
    return found


def _last_level(looks: Sequence[int], alpha: float, earlier: Sequence[float]) -> float:
    """The level of the last look that makes alpha the share of simulated series of t tests that cross at any look.

    The values between two looks enter through their sum and sum of squares, which are independent.
    """
    from scipy.special import stdtr

    draws = np.random.default_rng(0)
    total, squares, p = (np.zeros(SIMULATIONS) for _ in range(3))
    kept = np.ones(SIMULATIONS, dtype=np.bool_)
    for before, look, level in zip((0, *looks), looks, (*earlier, 0.0), strict=False):
        more = look - before
        step = draws.normal(0.0, math.sqrt(more), SIMULATIONS)
        total += step
        squares += step**2 / more + (draws.chisquare(more - 1, SIMULATIONS) if more > 1 else 0.0)
        variance = (squares - total**2 / look) / (look - 1)
        p = 2 * stdtr(look - 1, -abs(total) / np.sqrt(look * variance))
        kept &= p > level
    left = round(alpha * SIMULATIONS) - int((~kept).sum())
    return float(np.sort(p[kept])[left])


def _chance(estimate: Estimate, p: float, time: float, level: float, margin: float) -> float:
    """The larger of the two conditional powers at the last look (`judge`), for normal z scores.

    time: the share of the seeds that has been run; level: that of the last look.
    """
    from scipy.special import ndtr, ndtri

    mean, error = estimate.mean, estimate.error
    if error == 0.0:  # no difference at all, so no interval can be reached
        return 1.0
    root, rest = math.sqrt(time), math.sqrt(1 - time)
    critical, now = -float(ndtri(level / 2)), -float(ndtri(p / 2))
    final = error * root  # the standard error at the last look
    drift = max(margin, abs(mean)) / final
    difference = float(ndtr((root * now + drift * (1 - time) - critical) / rest))
    room = margin / final + float(ndtri(level / 2))  # the largest distance of the last z from 0 for equivalence
    center = time * mean / final
    equivalence = float(ndtr((room - center) / rest) - ndtr((-room - center) / rest)) if room > 0 else 0.0
    return max(difference, equivalence)
