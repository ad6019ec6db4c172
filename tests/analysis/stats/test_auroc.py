"""AUROC against counting pairs, and its interval against the equation it solves and against simulated coverage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from analysis.stats import auroc, auroc_interval


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=12))
def test_it_is_the_share_of_pairs_in_order(cases):
    ours, theirs = ([value for value, positive in cases if positive is kind] for kind in (True, False))
    if not ours or not theirs:
        with pytest.raises(ValueError, match="auroc needs positive and negative cases"):
            auroc(*zip(*cases, strict=True))
        return
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in ours for b in theirs]
    assert auroc(*zip(*cases, strict=True)) == pytest.approx(sum(pairs) / len(pairs))
    u = reference.mannwhitneyu(ours, theirs).statistic
    assert auroc(*zip(*cases, strict=True)) == pytest.approx(u / (len(ours) * len(theirs)))


@pytest.mark.parametrize(("area", "m", "n"), [(0.7, 8, 12), (0.5, 5, 5), (0.95, 20, 4), (0.1, 6, 9)])
def test_the_bounds_are_z_standard_errors_away_by_their_own_variance(area, m, n):
    """Hanley and McNeil's variance written out, with Newcombe's (m + n) / 2 − 1 for both of their m − 1 and n − 1."""
    low, high = auroc_interval(area, m, n)
    assert 0 < low < area < high < 1
    for theta in (low, high):
        q1, q2, more = theta / (2 - theta), 2 * theta**2 / (1 + theta), (m + n) / 2 - 1
        variance = (theta * (1 - theta) + more * (q1 - theta**2) + more * (q2 - theta**2)) / (m * n)
        assert abs(area - theta) == pytest.approx(reference.norm.ppf(0.975) * variance**0.5, rel=1e-4)


def test_all_pairs_in_order_is_not_certainty():
    low, high = auroc_interval(1.0, 3, 4)
    assert (0.3 < low < 0.7, high) == (True, 1.0)
    assert auroc_interval(0.0, 3, 4) == pytest.approx((0.0, 1 - low), abs=1e-6)
    assert auroc_interval(1.0, 30, 40)[0] > 0.9
    with pytest.raises(ValueError, match="auroc_interval needs an area of cases of either kind"):
        auroc_interval(0.5, 0, 4)


def test_it_covers_what_it_says():
    draw, shift, covered = np.random.default_rng(0), 1.0, 0
    truth = float(reference.norm.cdf(shift / 2**0.5))
    for _ in range(600):
        values = np.concatenate([draw.normal(shift, 1, 8), draw.normal(0, 1, 10)])
        low, high = auroc_interval(auroc(values, np.arange(18) < 8), 8, 10)
        covered += low <= truth <= high
    assert 0.92 < covered / 600 < 0.99
