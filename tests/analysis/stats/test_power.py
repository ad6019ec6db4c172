import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as reference

from analysis import stats

DRAWS = np.random.default_rng(3).normal(0.01, 0.02, size=12)


@pytest.mark.parametrize(("effect", "pairs", "level"), [(1.5, 5, 0.01), (1.0, 8, 0.05), (0.3, 40, 0.05)])
def test_power_is_that_of_simulated_t_tests(effect, pairs, level):
    draws = np.random.default_rng(1).normal(effect, 1.0, size=(20_000, pairs))
    found = np.mean(reference.ttest_1samp(draws, 0.0, axis=1).pvalue < level)
    assert stats.power(effect, pairs, level) == pytest.approx(found, abs=0.01)


def test_pooled_degrees_of_freedom_bring_power():
    """Five comparisons, five seeds, 1.5 SD: about .30 by paired t tests, .69 with seeds as blocks."""
    assert stats.power(1.5, 5, 0.05 / 5) == pytest.approx(0.31, abs=0.01)
    assert stats.power(1.5, 5, 0.05 / 5, freedom=20) == pytest.approx(0.68, abs=0.015)


@given(st.floats(0.05, 4), st.integers(2, 40), st.sampled_from([0.05, 0.01, 0.002]))
@settings(max_examples=50, deadline=None)
def test_power_is_that_of_the_noncentral_t(effect, pairs, level):
    critical, shift = reference.t.ppf(1 - level / 2, pairs - 1), effect * math.sqrt(pairs)
    found = reference.nct.sf(critical, pairs - 1, shift)
    assert stats.power(effect, pairs, level) >= found - 1e-4
    if shift > 3:  # the other tail is below 0.002 there
        assert stats.power(effect, pairs, level) == pytest.approx(found, abs=1e-4)


def test_power_where_scipy_s_noncentral_t_is_nan():
    assert stats.power(2.671875, 7, 0.005) == pytest.approx(0.96433, abs=1e-4)


def test_power_at_the_edges():
    assert stats.power(1.0, 1, 0.05) == 0.0
    assert stats.power(0.0, 8, 0.05) == pytest.approx(0.05, abs=1e-5)
    assert stats.power(50.0, 8, 0.05) == pytest.approx(1.0)


@given(st.floats(0.1, 3), st.integers(2, 40), st.sampled_from([0.05, 0.01, 0.002]))
@settings(max_examples=50, deadline=None)
def test_power_grows_with_effect_pairs_and_level(effect, pairs, level):
    here = stats.power(effect, pairs, level)
    assert 0 <= here <= 1
    assert stats.power(-effect, pairs, level) == pytest.approx(here)
    for more in (stats.power(effect * 1.1, pairs, level), stats.power(effect, pairs + 1, level)):
        assert more >= here - 1e-6
    assert stats.power(effect, pairs, level / 2) <= here + 1e-6


@pytest.mark.parametrize(("difference", "spread"), [(0.005, 0.004), (0.02, 0.05), (1.0, 0.1)])
@pytest.mark.parametrize("columns", [1, 4])
def test_one_pair_fewer_would_not_be_enough(difference, spread, columns):
    needed = stats.pairs_needed(difference, spread, 0.01, columns=columns)
    power = [stats.power(difference / spread, n, 0.01, (n - 1) * columns) for n in (needed - 1, needed)]
    assert power[0] < 0.8 <= power[1]


def test_where_no_number_of_pairs_is_enough():
    assert stats.pairs_needed(0.0, 1.0, 0.05) is None
    assert stats.pairs_needed(0.001, 1.0, 0.05) is None
    assert stats.pairs_needed(0.001, 1.0, 0.05, most=10_000_000) == pytest.approx(7.849e6, rel=0.001)
    assert stats.pairs_needed(0.1, 0.0, 0.05) == 2


@pytest.mark.parametrize("n", [2, 6, 12])
@pytest.mark.parametrize("level", [0.05, 0.01])
def test_the_detectable_difference_is_found_four_times_in_five(n, level):
    found = stats.minimum_detectable(stats.paired(DRAWS[:n]), level)
    error = DRAWS[:n].std(ddof=1) / math.sqrt(n)
    critical = reference.t.ppf(1 - level / 2, n - 1)
    assert reference.nct.sf(critical, n - 1, found / error) == pytest.approx(0.8, abs=1e-4)


def test_where_nothing_can_be_said_of_detection():
    assert stats.minimum_detectable(stats.paired([0.1]), 0.05) is None
    assert stats.minimum_detectable(stats.paired([0.1, 0.1]), 0.05) is None
