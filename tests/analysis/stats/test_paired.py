from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as reference

from analysis import stats
from analysis.stats.paired import EXACT_PAIRS, SAMPLES

DRAWS = np.random.default_rng(3).normal(0.01, 0.02, size=12)
pairs = st.lists(st.integers(-5, 5), min_size=1, max_size=7)


def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("n", [2, 3, 5, 12])
@pytest.mark.parametrize("level", [0.05, 0.05 / 15])
def test_interval_and_p_are_those_of_the_paired_t_test(n, level):
    found = reference.ttest_1samp(DRAWS[:n], 0.0)
    estimate = stats.paired(DRAWS[:n])
    assert stats.p_value(estimate) == pytest.approx(found.pvalue)
    assert stats.interval(estimate, level) == pytest.approx(found.confidence_interval(1 - level))
    assert (estimate.pairs, estimate.freedom) == (n, n - 1)


@given(st.lists(st.floats(-1, 1).map(lambda v: round(v, 3)), min_size=2, max_size=8), st.floats(0.001, 0.5))
@settings(deadline=None)
def test_the_interval_excludes_0_exactly_where_p_is_below_the_level(d, level):
    estimate = stats.paired(d)
    low, high = stats.interval(estimate, level)
    if abs(stats.p_value(estimate) - level) > 1e-9:
        assert (low > 0 or high < 0) == (stats.p_value(estimate) < level)


def test_too_few_pairs_and_no_spread():
    for few in ([], [np.nan], [0.3]):
        assert stats.interval(stats.paired(few), 0.05) is None
        assert stats.p_value(stats.paired(few)) == 1.0
    assert stats.paired([np.nan, 0.3]).mean == 0.3
    assert stats.interval(stats.paired([0.1] * 5), 0.05) == (pytest.approx(0.1), pytest.approx(0.1))
    assert stats.p_value(stats.paired([0.1] * 5)) == 0.0
    assert stats.p_value(stats.paired([0.0] * 5)) == 1.0


def test_pooled_spread_is_that_of_the_two_way_analysis_of_variance():
    """Against least squares with a column for every seed and every method."""
    scores = np.random.default_rng(1).normal(size=(5, 4)) + np.arange(5)[:, None]
    seeds, methods = np.indices(scores.shape)
    design = np.hstack([np.eye(5)[seeds.ravel()], np.eye(4)[methods.ravel()]])
    fitted = design @ np.linalg.lstsq(design, scores.ravel(), rcond=None)[0]
    residual = float(((scores.ravel() - fitted) ** 2).sum()) / 12
    assert stats.block_spread(scores) == (pytest.approx(np.sqrt(2 * residual)), 12)


def test_two_methods_pooled_are_the_paired_test():
    scores = np.random.default_rng(2).normal(size=(6, 2))
    spread, freedom = stats.block_spread(scores)
    estimate = stats.paired(scores[:, 1] - scores[:, 0])
    assert (spread, freedom) == (pytest.approx(estimate.spread), estimate.freedom)


@pytest.mark.parametrize("bad", [[[1.0, 2.0]], [[1.0], [2.0]], [[1.0, np.nan], [1.0, 2.0]], [1.0, 2.0]])
def test_a_spread_cannot_be_pooled_over_gaps(bad):
    with pytest.raises(ValueError, match="2 seeds and 2 methods"):
        stats.block_spread(bad)


@pytest.mark.parametrize("n", [2, 5, 8, 12])
def test_sign_flip_is_the_exact_paired_permutation_test(n):
    expected = reference.permutation_test(
        (DRAWS[:n], np.zeros(n)), lambda x, y: np.sum(x - y), permutation_type="samples", n_resamples=np.inf
    )
    assert stats.sign_flip_p(DRAWS[:n], rng()) == pytest.approx(expected.pvalue)


def test_sign_flip_at_the_edges():
    assert stats.sign_flip_p([], rng()) == 1.0
    assert stats.sign_flip_p([np.nan], rng()) == 1.0
    assert stats.sign_flip_p([0.0, 0.0, 0.0], rng()) == 1.0
    for n in (1, 3, 6, 10):  # one sign throughout attains the smallest p there is
        assert stats.sign_flip_p(np.full(n, 0.1), rng()) == pytest.approx(2 / 2**n)


@pytest.mark.parametrize("n", [13, 20, 25, EXACT_PAIRS])
def test_many_pairs_are_still_exact(n):
    """Whole numbers, whose sums are counted one pair at a time."""
    d = np.random.default_rng(n).integers(-9, 14, size=n)
    ways = Counter({0: 1})
    for value in d.tolist():
        ways = Counter({s: ways[s - value] + ways[s + value] for s in {t + v for t in ways for v in (value, -value)}})
    reached = sum(count for total, count in ways.items() if abs(total) >= abs(d.sum()))
    assert stats.sign_flip_p(d, rng()) == pytest.approx(reached / 2**n, rel=1e-12)


def test_many_pairs_are_sampled_close_to_the_exact_value():
    d = np.random.default_rng(0).normal(0.4, 1.0, size=EXACT_PAIRS)
    exact = stats.sign_flip_p(d, rng())
    padded = np.concatenate([d, np.zeros(5)])  # zeros change nothing, but there are too many pairs to enumerate
    assert stats.sign_flip_p(padded, rng()) == pytest.approx(exact, abs=0.005)
    assert stats.sign_flip_p(padded, rng()) == stats.sign_flip_p(padded, rng())
    assert stats.sign_flip_p(np.ones(40), rng()) == 1 / (1 + SAMPLES)  # never 0


@given(pairs)
@settings(max_examples=40, deadline=None)
def test_p_ignores_order_direction_and_scale_and_stays_above_the_attainable(d):
    p = stats.sign_flip_p(d, rng())
    assert min(1.0, 2 / 2 ** len(d)) - 1e-12 <= p <= 1.0
    assert stats.sign_flip_p(d[::-1], rng()) == pytest.approx(p)
    assert stats.sign_flip_p(-3.0 * np.array(d), rng()) == pytest.approx(p)


def test_p_is_uniform_where_nothing_differs():
    found = [stats.sign_flip_p(d, rng()) for d in np.random.default_rng(2).normal(size=(600, 8))]
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.02)
