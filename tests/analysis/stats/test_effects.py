import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from analysis import stats

DRAWS = np.random.default_rng(3).normal(0.01, 0.02, size=12)


@pytest.mark.parametrize("margin", [0.005, 0.02, 0.04])
def test_tost_is_the_larger_of_two_one_sided_t_tests(margin):
    below = reference.ttest_1samp(DRAWS, -margin, alternative="greater").pvalue
    above = reference.ttest_1samp(DRAWS, margin, alternative="less").pvalue
    assert stats.tost_p(DRAWS, margin) == pytest.approx(max(below, above))


def test_tost_at_the_edges():
    assert stats.tost_p([0.0], 0.005) == 1.0
    assert stats.tost_p([0.0] * 6, 0.005) == 0.0
    assert stats.tost_p([0.1] * 6, 0.005) == 1.0


def test_tost_pools_the_spread_within_tasks():
    """Two tasks by hand: means 1 and 3, squares 2 + 2 on 1 + 1 degrees of freedom, error √2·√(1/2 + 1/2) / 2."""
    d = np.array([[0.0, 2.0], [2.0, 4.0]])
    assert stats.tost_p(d, 3.0) == pytest.approx(reference.t.cdf(-(3.0 - 2.0) / (math.sqrt(2) / 2), 2))


def test_tasks_count_the_same_however_many_pairs_they_have():
    """By hand: means 1 and 4 of three pairs and of one, squares 2 on 2 degrees of freedom, error 1·√(1/3 + 1) / 2."""
    d = np.array([[0.0, 4.0], [1.0, np.nan], [2.0, np.nan]])
    assert stats.tost_p(d, 3.0) == pytest.approx(reference.t.cdf(-(3.0 - 2.5) / (math.sqrt(4 / 3) / 2), 2))
    assert stats.hedges_g(d) == pytest.approx(2.5 * math.gamma(1) / math.gamma(0.5))


@pytest.mark.parametrize("shift", [-0.5, 0.0, 1.0])
def test_probability_of_improvement_is_mann_and_whitney_s_u(shift):
    x, y = np.round(DRAWS[:7] + shift * 0.02, 2), np.round(DRAWS[7:], 2)
    u = reference.mannwhitneyu(x, y).statistic
    assert stats.probability_of_improvement(x, y) == pytest.approx(u / 35)


def test_probability_of_improvement_is_the_mean_over_tasks_and_skips_missing_runs():
    x = np.array([[1.0, 0.0], [1.0, np.nan]])
    y = np.array([[0.0, 0.0], [2.0, 0.0]])
    assert stats.probability_of_improvement(x, y) == (0.5 + 0.5) / 2
    assert stats.probability_of_improvement([np.nan], [1.0]) is None


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=6), st.lists(st.integers(-3, 3), min_size=1, max_size=6))
def test_the_probabilities_of_both_directions_add_to_one(x, y):
    there, back = stats.probability_of_improvement(x, y), stats.probability_of_improvement(y, x)
    assert there + back == pytest.approx(1.0)


@pytest.mark.parametrize("n", [3, 6, 12])
def test_hedges_g_is_cohen_s_d_corrected(n):
    d = DRAWS[:n].mean() / DRAWS[:n].std(ddof=1)
    exact = math.gamma((n - 1) / 2) / (math.sqrt((n - 1) / 2) * math.gamma((n - 2) / 2))
    assert stats.hedges_g(DRAWS[:n]) == pytest.approx(d * exact)
    assert stats.hedges_g(DRAWS[:n]) == pytest.approx(d * (1 - 3 / (4 * (n - 1) - 1)), rel=0.02)


def test_hedges_g_is_unbiased_for_few_pairs():
    """True effect 0.8, 6 pairs: the plain ratio is 19% too large (Hedges 1981: 1 / J(5))."""
    d = np.random.default_rng(0).normal(0.8, 1.0, size=(4000, 6))
    assert np.mean([stats.hedges_g(x) for x in d]) == pytest.approx(0.8, abs=0.03)
    assert np.mean(d.mean(1) / d.std(1, ddof=1)) > 0.9


@pytest.mark.parametrize("few", [[], [0.1], [0.1, 0.2], [0.3, 0.3, 0.3]])
def test_where_there_is_no_effect_size(few):
    assert stats.hedges_g(few) is None


@pytest.mark.parametrize("n", [2, 6, 12])
@pytest.mark.parametrize("level", [0.05, 0.01])
def test_the_detectable_difference_is_found_four_times_in_five(n, level):
    found = stats.minimum_detectable(DRAWS[:n], level)
    error = DRAWS[:n].std(ddof=1) / math.sqrt(n)
    critical = reference.t.ppf(1 - level / 2, n - 1)
    assert reference.nct.sf(critical, n - 1, found / error) == pytest.approx(0.8, abs=1e-4)


def test_the_detectable_difference_by_simulation():
    x = np.random.default_rng(4).normal(size=8)
    x = (x - x.mean()) / x.std(ddof=1)  # spread 1
    found = stats.minimum_detectable(x)
    draws = np.random.default_rng(5).normal(found, 1.0, size=(4000, 8))
    assert np.mean(reference.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.02)


def test_where_nothing_can_be_said_of_detection():
    assert stats.minimum_detectable([0.1]) is None
    assert stats.minimum_detectable([0.1, 0.1]) is None
