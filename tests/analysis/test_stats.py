import numpy as np
import pytest
from scipy import stats as reference

from analysis import stats

DRAWS = np.random.default_rng(3).normal(0.01, 0.02, size=12)


@pytest.mark.parametrize("n", [2, 3, 5, 12])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_mean_interval_is_the_t_interval(n, level):
    mean, half_width = stats.mean_interval(DRAWS[:n], level)
    low, high = reference.t.interval(level, n - 1, loc=DRAWS[:n].mean(), scale=reference.sem(DRAWS[:n]))
    assert (mean - half_width, mean + half_width) == pytest.approx((low, high))


def test_one_value_has_no_interval_and_none_has_no_mean():
    assert stats.mean_interval([0.5]) == (0.5, None)
    with pytest.raises(ValueError, match="no values"):
        stats.mean_interval([])


@pytest.mark.parametrize("n", [2, 5, 8, 12])
def test_sign_flip_is_the_exact_paired_permutation_test(n):
    expected = reference.permutation_test(
        (DRAWS[:n], np.zeros(n)), lambda x, y: np.sum(x - y), permutation_type="samples", n_resamples=np.inf
    )
    assert stats.sign_flip_p(DRAWS[:n]) == pytest.approx(expected.pvalue)


def test_sign_flip_at_the_edges():
    assert stats.sign_flip_p([]) == 1.0
    assert stats.sign_flip_p([0.0, 0.0, 0.0]) == 1.0
    for n in (1, 3, 6, 10):  # one sign throughout reaches the smallest p there is
        assert stats.sign_flip_p(np.full(n, 0.1)) == pytest.approx(stats.smallest_p(n))
    assert [stats.smallest_p(n) for n in (0, 1, 3, 5, 6)] == [1.0, 1.0, 0.25, 0.0625, 0.03125]


def test_many_pairs_are_sampled_close_to_the_exact_value():
    d = np.random.default_rng(0).normal(0.4, 1.0, size=20)
    exact = stats.sign_flip_p(d)
    padded = np.concatenate([d, np.zeros(5)])  # zeros change nothing, but there are too many pairs to enumerate
    assert stats.sign_flip_p(padded) == pytest.approx(exact, abs=0.005)
    assert stats.sign_flip_p(padded) == stats.sign_flip_p(padded)


@pytest.mark.parametrize("margin", [0.005, 0.02, 0.04])
def test_tost_is_the_larger_of_two_one_sided_t_tests(margin):
    below = reference.ttest_1samp(DRAWS, -margin, alternative="greater").pvalue
    above = reference.ttest_1samp(DRAWS, margin, alternative="less").pvalue
    assert stats.tost_p(DRAWS, margin) == pytest.approx(max(below, above))


def test_tost_at_the_edges():
    assert stats.tost_p([0.0], 0.005) == 1.0
    assert stats.tost_p([0.0] * 6, 0.005) == 0.0
    assert stats.tost_p([0.1] * 6, 0.005) == 1.0


def test_holm_by_hand():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert stats.holm([]).size == 0
