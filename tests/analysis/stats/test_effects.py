import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as reference

from analysis import stats

DRAWS = np.random.default_rng(3).normal(0.01, 0.02, size=12)


@pytest.mark.parametrize("n", [1, 5, 12])
def test_improvement_is_the_share_of_pairs_won_with_wilson_s_interval(n):
    won = int((DRAWS[:n] > 0).sum())
    found = stats.improvement(DRAWS[:n], np.zeros(n))
    expected = reference.binomtest(won, n).proportion_ci(method="wilson")
    assert found == pytest.approx((won / n, expected.low, expected.high))


def test_improvement_counts_ties_half_and_skips_missing_runs():
    assert stats.improvement([1.0, 0.0, np.nan, 2.0], [1.0, 1.0, 0.0, np.nan]).value == 0.25
    assert stats.improvement([np.nan], [1.0]) is None


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=6))
@settings(deadline=None)
def test_the_shares_of_both_directions_add_to_one(values):
    x, y = zip(*values, strict=True)
    there, back = stats.improvement(x, y), stats.improvement(y, x)
    assert there.value + back.value == pytest.approx(1.0)
    assert there.low + back.high == pytest.approx(1.0)
    assert -1e-12 <= there.low <= there.value <= there.high <= 1 + 1e-12


@pytest.mark.parametrize("n", [3, 6, 12])
def test_hedges_g_is_cohen_s_d_corrected(n):
    d = DRAWS[:n].mean() / DRAWS[:n].std(ddof=1)
    exact = math.gamma((n - 1) / 2) / (math.sqrt((n - 1) / 2) * math.gamma((n - 2) / 2))
    assert stats.hedges_g(stats.paired(DRAWS[:n])) == pytest.approx(d * exact)
    assert stats.hedges_g(stats.paired(DRAWS[:n])) == pytest.approx(d * (1 - 3 / (4 * (n - 1) - 1)), rel=0.02)


def test_hedges_g_is_unbiased_for_few_pairs():
    """True effect 0.8, 6 pairs: the plain ratio is 19% too large (Hedges 1981: 1 / J(5))."""
    d = np.random.default_rng(0).normal(0.8, 1.0, size=(4000, 6))
    assert np.mean([stats.hedges_g(stats.paired(x)) for x in d]) == pytest.approx(0.8, abs=0.03)
    assert np.mean(d.mean(1) / d.std(1, ddof=1)) > 0.9


@pytest.mark.parametrize("few", [[], [0.1], [0.1, 0.2], [0.3, 0.3, 0.3]])
def test_where_there_is_no_effect_size(few):
    assert stats.hedges_g(stats.paired(few)) is None


def draw(effects, pairs, seed=0):
    generator = np.random.default_rng(seed)
    return [stats.paired(generator.normal(effect, 1.0, size=pairs)) for effect in effects]


def test_over_tasks_without_heterogeneity_is_the_weighted_mean():
    estimates = draw([0.5, 0.5, 0.5], 200)
    found = stats.over_tasks(estimates)
    g = np.array([stats.hedges_g(e) for e in estimates])
    weights = 1 / (1 / 200 + g**2 / 400)
    assert (found.tau, found.i2, found.tasks) == (0.0, 0.0, 3)
    assert found.mean == pytest.approx((weights * g).sum() / weights.sum())
    half = reference.t.ppf(0.975, 2) / math.sqrt(weights.sum())
    assert found.interval == pytest.approx((found.mean - half, found.mean + half))


def test_tasks_that_disagree_widen_the_interval():
    agree, differ = stats.over_tasks(draw([0.5] * 4, 50)), stats.over_tasks(draw([-1.0, 2.0, 0.0, 1.0], 50))
    assert differ.i2 > 0.9
    assert differ.tau == pytest.approx(1.29, abs=0.3)
    assert np.ptp(differ.interval) > 3 * np.ptp(agree.interval)


def test_over_tasks_covers_the_mean_effect():
    """Five tasks whose true effects vary: 95 % intervals hold the mean about 95 % of the time."""
    generator = np.random.default_rng(4)
    hits = 0
    for _ in range(400):
        effects = generator.normal(0.3, 0.5, size=5)
        estimates = [stats.paired(generator.normal(effect, 1.0, size=10)) for effect in effects]
        low, high = stats.over_tasks(estimates).interval
        hits += low <= 0.3 <= high
    assert 0.92 < hits / 400 < 0.985


def test_a_single_task_has_no_mean_over_tasks():
    assert stats.over_tasks(draw([0.5], 10)) is None
    assert stats.over_tasks([*draw([0.5], 10), stats.paired([0.1])]) is None


@pytest.mark.parametrize("n", [4, 8, 11, 13])
def test_the_interquartile_mean_is_the_trimmed_mean(n):
    values = np.random.default_rng(n).normal(size=n)
    found = float(stats.interquartile_mean(values))
    if n % 4 == 0:
        assert found == pytest.approx(reference.trim_mean(values, 0.25))
    assert np.quantile(values, 0.25) - 0.5 < found < np.quantile(values, 0.75) + 0.5
    fine = np.repeat(values, 4)  # four copies of each: a quarter is a whole number of them
    assert found == pytest.approx(reference.trim_mean(fine, 0.25))


def test_the_area_under_a_line_is_its_middle():
    assert stats.area_under_curve([2, 4, 8, 16], [1.0, 2.0, 3.0, 4.0]) == pytest.approx(2.5)
    assert stats.area_under_curve([16, 2, 4, 8], [4.0, 1.0, 2.0, 3.0]) == pytest.approx(2.5)
    assert stats.area_under_curve([1, 16], [0.5, 0.5]) == 0.5
    unequal = stats.area_under_curve([1, 2, 16], [0.0, 1.0, 1.0])  # 0.5 over one doubling, 1 over three
    assert unequal == pytest.approx(3.5 / 4)


@pytest.mark.parametrize("bad", [[1], [1, 1], [0, 2], [-1, 2]])
def test_what_is_no_range_of_budgets(bad):
    with pytest.raises(ValueError, match="different numbers above 0"):
        stats.area_under_curve(bad, [0.5] * len(bad))


def test_fisher_and_mcnemar_by_hand():
    assert stats.fisher_p((3, 3), (0, 3)) == pytest.approx(0.1)  # 2 / C(6, 3)
    assert stats.fisher_p((0, 8), (0, 8)) == 1.0
    right, other = np.array([1, 1, 1, 1, 1, 0, 1]), np.array([0, 0, 0, 0, 0, 0, 1])
    assert stats.mcnemar_p(right, other) == pytest.approx(2 / 2**5)
    assert stats.mcnemar_p(right, right) == 1.0
