"""Looks: the levels against a published table and a simulation, the words against their definitions."""

import numpy as np
import pytest
from scipy.stats import norm, t, ttest_1samp

from analysis.stats import looks

LOOKS = (6, 9, 12, 16, 20)


def test_one_look_is_the_plain_test():
    assert looks.levels((12,), 0.05) == pytest.approx((0.05,), abs=1e-9)


def test_the_boundaries_are_those_of_the_published_table():
    """Two-sided, alpha = .05, five equal steps, each side spending 2 − 2 Φ(z / √t) of .025 (Reboussin et al. 2000)."""
    times = [0.2, 0.4, 0.6, 0.8, 1.0]
    spent = [4 * norm.cdf(norm.ppf(0.05 / 4) / time**0.5) for time in times]
    assert looks.boundaries(times, spent) == pytest.approx([4.8769, 3.3569, 2.6803, 2.2898, 2.0310], abs=6e-4)


def spent(alpha):
    return [2 * norm.cdf(norm.ppf(alpha / 2) / (n / 20) ** 0.5) for n in LOOKS]


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 6])
def test_the_boundaries_spend_what_they_should(alpha):
    """Sums of normal scores: the share that has crossed by each look is what was to be spent by then."""
    steps = np.random.default_rng(1).standard_normal((200_000, 20))
    z = np.stack([steps[:, :n].sum(1) / n**0.5 for n in LOOKS], axis=1)
    reached = abs(z) >= looks.boundaries([n / 20 for n in LOOKS], spent(alpha))
    crossed = np.maximum.accumulate(reached, axis=1).mean(0)
    assert crossed == pytest.approx(spent(alpha), abs=4 * (alpha / 200_000) ** 0.5)


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 6])
def test_t_tests_at_all_looks_together_err_with_alpha(alpha):
    values = np.random.default_rng(2).standard_normal((100_000, 20))
    levels = looks.levels(LOOKS, alpha)
    parts = (values[:, :n] for n in LOOKS)
    p = [2 * t.sf(abs(x.mean(1)) / x.std(1, ddof=1) * x.shape[1] ** 0.5, x.shape[1] - 1) for x in parts]
    crossed = np.mean(np.any(np.stack(p, axis=1) <= np.array(levels), axis=1))
    assert crossed == pytest.approx(alpha, abs=4 * (1.5 * alpha / 100_000) ** 0.5)
    assert list(levels) == sorted(levels)
    assert levels[-1] < alpha


def draws(mean, spread, n, seed=0):
    x = np.random.default_rng(seed).standard_normal(n)
    return mean + spread * (x - x.mean()) / x.std(ddof=1)


@pytest.mark.parametrize(
    ("mean", "n", "word"),
    [
        (2.0, 9, "better"),
        (-2.0, 9, "worse"),
        (0.5, 9, "go on"),
        (0.02, 16, "hopeless"),
        (0.4, 20, "undecided"),
    ],
)
def test_a_look_says_one_word(mean, n, word):
    d = draws(mean, 1.0, n)
    found = looks.judge(d, LOOKS, 0.05, margin=0.3)
    assert found.word == word
    assert found.difference == pytest.approx(mean)
    assert found.p == pytest.approx(ttest_1samp(d, 0).pvalue)
    assert found.level == looks.levels(LOOKS, 0.05)[LOOKS.index(n)]


def test_equivalent_is_the_interval_at_the_level_of_the_look_within_the_margin():
    d = draws(0.1, 0.1, 9)
    found = looks.judge(d, LOOKS, 0.05, margin=0.5)
    assert found.word == "within the margin"
    _, high = ttest_1samp(d, 0).confidence_interval(1 - found.level)
    assert looks.judge(d, LOOKS, 0.05, high + 1e-6).word == "within the margin"
    assert looks.judge(d, LOOKS, 0.05, high - 1e-6).word != "within the margin"


def test_the_conditional_power_is_the_share_of_continuations_that_cross():
    now = draws(0.35, 1.0, 12)
    for margin in (0.2, 0.6):
        found = looks.judge(now, LOOKS, 0.05, margin)
        more = np.random.default_rng(1).normal(max(margin, 0.35), 1.0, (100_000, 8))
        z = norm.isf(found.p / 2) * (12 / 20) ** 0.5 + more.sum(1) / 20**0.5
        proven = np.mean(z >= norm.isf(looks.levels(LOOKS, 0.05)[-1] / 2))
        assert found.chance == pytest.approx(proven, abs=0.006)


def test_a_claim_that_may_still_turn_out_equivalent_is_not_hopeless():
    d = draws(0.0, 1.0, 16)
    assert looks.judge(d, LOOKS, 0.05, margin=0.4).word == "hopeless"
    found = looks.judge(d, LOOKS, 0.05, margin=0.55)
    more = np.random.default_rng(1).normal(0.0, 1.0, (100_000, 4))
    z = (d.sum() + more.sum(1)) / 20**0.5
    room = 0.55 * 20**0.5 - norm.isf(looks.levels(LOOKS, 0.05)[-1] / 2)
    assert found.chance == pytest.approx(np.mean(abs(z) <= room), abs=0.006)
    assert found.word == "go on"


def test_differences_without_spread_are_decided_by_their_value():
    assert looks.judge(np.full(6, 0.2), LOOKS, 0.05, 0.1).word == "better"
    assert looks.judge(np.zeros(6), LOOKS, 0.05, 0.1).word == "within the margin"
    assert looks.judge(np.full(6, 0.1), LOOKS, 0.05, 0.2).word == "within the margin", (
        "a real difference within the margin"
    )


def test_a_number_of_seeds_that_is_no_look_is_refused():
    with pytest.raises(ValueError, match=r"as many values as one of the looks \[6, 9, 12, 16, 20\] \(got 7\)"):
        looks.judge(np.ones(7), LOOKS, 0.05, 0.1)
