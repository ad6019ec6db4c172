from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from analysis import stats

numbers = st.lists(st.integers(0, 4), min_size=3, max_size=9)


@given(numbers, st.integers(0, 100))
def test_spearman_is_scipy_s_ties_included(x, seed):
    y = np.random.default_rng(seed).integers(0, 4, size=len(x))
    found = stats.spearman(x, y)
    if len(set(x)) == 1 or len(set(y.tolist())) == 1:
        assert found is None
    else:
        assert found == pytest.approx(reference.spearmanr(x, y).statistic)


def test_overlap_of_the_top():
    x = [5, 4, 3, 2, 1]
    assert stats.top_overlap(x, x, 2) == 1.0
    assert stats.top_overlap(x, x[::-1], 2) == 0.0
    assert stats.top_overlap(x, [9, 1, 2, 8, 0], 2) == 0.5
    assert stats.top_overlap(x, [0, 0, 0, 0, 0], 2) == pytest.approx(2 / 5)  # ties: as by lot
    for top in (0, 6):
        with pytest.raises(ValueError, match="top must be a whole number from 1 to 5"):
            stats.top_overlap(x, x, top)


def test_unlike_maps_agree_no_more_than_chance_and_like_ones_do():
    generator = np.random.default_rng(0)
    base = generator.integers(0, 12, size=36)
    alike = stats.agreement([base + generator.integers(-1, 2, size=36) for _ in range(3)], generator)
    assert alike.value > 0.8 > alike.high
    unlike = [stats.agreement(generator.integers(0, 12, size=(3, 36)), generator) for _ in range(40)]
    assert np.mean([a.low <= a.value <= a.high for a in unlike]) > 0.8


def test_agreement_is_the_mean_correlation_over_pairs():
    maps = np.random.default_rng(4).integers(0, 12, size=(5, 36))
    pairs = [reference.spearmanr(a, b).statistic for a, b in combinations(maps, 2)]
    assert stats.agreement(maps, np.random.default_rng(0)).value == pytest.approx(np.mean(pairs))


def test_chance_for_two_maps_is_the_permutation_law():
    """Spearman's correlation of n untied ranks has variance 1 / (n - 1) under chance."""
    found = stats.agreement([np.arange(26), np.arange(26)], np.random.default_rng(1), samples=4000)
    assert found.value == pytest.approx(1.0)
    assert (found.low, found.high) == pytest.approx((-1.96 / 5, 1.96 / 5), abs=0.04)


def test_one_map_or_a_constant_one_has_no_agreement():
    generator = np.random.default_rng(0)
    assert stats.agreement([[1, 2, 3]], generator) is None
    assert stats.agreement([[1, 2, 3], [2, 2, 2]], generator) is None
