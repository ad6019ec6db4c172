from collections import Counter
from itertools import product

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


@pytest.mark.parametrize("n", [2, 5, 8, 12])
def test_sign_flip_is_the_exact_paired_permutation_test(n):
    expected = reference.permutation_test(
        (DRAWS[:n], np.zeros(n)), lambda x, y: np.sum(x - y), permutation_type="samples", n_resamples=np.inf
    )
    assert stats.sign_flip_p(DRAWS[:n], rng()) == pytest.approx(expected.pvalue)


@given(st.lists(pairs, min_size=1, max_size=2))
def test_pairs_are_flipped_within_their_task(columns):
    """Written out: every pattern of signs, each task's mean, their mean."""
    size = max(map(len, columns))
    d = np.array([[*column, *[np.nan] * (size - len(column))] for column in columns]).T
    observed = abs(np.mean([np.mean(column) for column in columns]))
    hits = total = 0
    for signs in product((-1, 1), repeat=sum(map(len, columns))):
        left, means = list(signs), []
        for column in columns:
            means.append(np.mean([left.pop() * value for value in column]))
        hits += abs(np.mean(means)) >= observed - 1e-9
        total += 1
    assert stats.sign_flip_p(d, rng()) == pytest.approx(hits / total)


def test_sign_flip_at_the_edges():
    assert stats.sign_flip_p([], rng()) == 1.0
    assert stats.sign_flip_p([np.nan], rng()) == 1.0
    assert stats.sign_flip_p([0.0, 0.0, 0.0], rng()) == 1.0
    for n in (1, 3, 6, 10):  # one sign throughout attains the smallest p there is
        assert stats.sign_flip_p(np.full(n, 0.1), rng()) == pytest.approx(stats.smallest_p(n))
        assert stats.wilcoxon_p(np.full(n, 0.1), rng()) == pytest.approx(stats.smallest_p(n))
    assert [stats.smallest_p(n) for n in (0, 1, 3, 5, 6)] == [1.0, 1.0, 0.25, 0.0625, 0.03125]


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
    clear = stats.sign_flip_p(np.ones(40), rng())
    assert clear == stats.smallest_p(40) == 1 / (1 + SAMPLES)  # never 0


@pytest.mark.parametrize("n", [3, 6, 12])
def test_wilcoxon_is_scipy_s_exact_test(n):
    assert stats.wilcoxon_p(DRAWS[:n], rng()) == pytest.approx(reference.wilcoxon(DRAWS[:n], method="exact").pvalue)


def test_wilcoxon_drops_zeros_and_shares_the_ranks_of_ties():
    d = np.array([0.0, 1.0, 1.0, -1.0, 2.0, 2.0, 3.0, 3.0, 0.0])
    method = reference.PermutationMethod(n_resamples=np.inf)
    assert stats.wilcoxon_p(d, rng()) == pytest.approx(reference.wilcoxon(d, method=method).pvalue)


@given(pairs)
@settings(max_examples=40, deadline=None)
def test_p_ignores_order_direction_and_scale_and_stays_above_the_attainable(d):
    for test in (stats.sign_flip_p, stats.wilcoxon_p):
        p = test(d, rng())
        assert stats.smallest_p(len(d)) - 1e-12 <= p <= 1.0
        assert test(d[::-1], rng()) == pytest.approx(p)
        assert test(-3.0 * np.array(d), rng()) == pytest.approx(p)


def test_p_is_uniform_where_nothing_differs():
    found = [stats.sign_flip_p(d, rng()) for d in np.random.default_rng(2).normal(size=(600, 8))]
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.02)


def test_holm_by_hand():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert stats.holm([]).size == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_between_the_p_itself_and_bonferroni_and_keeps_the_order(p):
    adjusted = stats.holm(p)
    assert np.all(adjusted >= np.array(p) - 1e-15)
    assert np.all(adjusted <= np.minimum(1.0, len(p) * np.array(p)) + 1e-15)
    assert np.all(np.diff(adjusted[np.argsort(p)]) >= 0)


def test_what_six_pairs_can_attain_depends_on_the_company():
    least = stats.smallest_p(6)
    assert stats.attainable([0.9], [least]) == pytest.approx([least])
    assert stats.attainable([0.9, 0.9], [least, least]) == pytest.approx([2 * least, 2 * least])
    # what the others found counts, not what they could have found
    assert stats.attainable([0.9, 0.9], [least, 0.002]) == pytest.approx([2 * least, 0.004])
    # beside a comparison that ten pairs decided, six pairs need no more correction
    assert stats.attainable([0.9, 0.002], [least, 0.002]) == pytest.approx([least, 0.004])


@given(st.lists(st.integers(1, 10), min_size=1, max_size=5), st.integers(0, 1000))
def test_nothing_is_below_what_it_could_attain(sizes, seed):
    generator = np.random.default_rng(seed)
    p = np.array([stats.sign_flip_p(generator.normal(size=n), generator) for n in sizes])
    assert np.all(stats.attainable(p, [stats.smallest_p(n) for n in sizes]) <= stats.holm(p) + 1e-12)
