"""How well a number tells cases apart: the area under the receiver operating characteristic."""

import math

import numpy as np
from numpy.typing import ArrayLike


def auroc(values: ArrayLike, positive: ArrayLike) -> float:
    """The share of pairs of a positive and a negative case in which the positive one has the higher value; ties: half.

    values: [n]; positive: bool [n]. Raises ValueError unless there are cases of both kinds.
    """
    x, is_positive = np.asarray(values, dtype=np.float64), np.asarray(positive, dtype=bool)
    ours, theirs = x[is_positive], x[~is_positive]
    if not ours.size or not theirs.size:
        raise ValueError(f"auroc needs positive and negative cases (got {ours.size} and {theirs.size})")
    above = ours[:, None] - theirs
    return float(((above > 0) + 0.5 * (above == 0)).mean())


def auroc_interval(area: float, positives: int, negatives: int, level: float = 0.95) -> tuple[float, float]:
    """The interval of an `auroc`, valid for few cases and for an area of 1, too (Newcombe 2006, part 2, method 5).

    It holds all areas θ with (area − θ)² ≤ z² V(θ), V(θ) = θ(1−θ) [1 + ((m+n)/2 − 1) ((1−θ)/(2−θ) + θ/(1+θ))] / (mn):
    Hanley and McNeil's variance of exponential scores, at θ and not at the estimate. DeLong's interval and the
    bootstrap's have width 0 if all pairs are in order.
    """
    from scipy.special import ndtri  # type: ignore[import-untyped]

    z2 = float(ndtri(0.5 + level / 2)) ** 2
    weight = (positives + negatives) / 2 - 1

    def outside(theta: float) -> bool:
        shape = 1 + weight * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return (area - theta) ** 2 > z2 * theta * (1 - theta) * shape / (positives * negatives)

    def bound(end: float) -> float:
        inside, beyond = area, end
        if not outside(end):
            return end
        while abs(beyond - inside) > 1e-9:
            middle = (inside + beyond) / 2
            inside, beyond = (inside, middle) if outside(middle) else (middle, beyond)
        return inside

    if not 0 <= area <= 1 or min(positives, negatives) < 1 or math.isnan(area):
        raise ValueError(f"auroc_interval needs an area of cases of either kind (got {area}, {positives}, {negatives})")
    return bound(0.0), bound(1.0)
