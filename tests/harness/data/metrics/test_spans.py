"""SQuAD's measures against cases worked out by hand from the official definition."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adarank.harness.data.metrics.spans import best_over_references, exact_match, f1, normalised, with_best_threshold


def test_normalised():
    assert normalised(" The  U.S.-based   theory, an Answer!") == "usbased theory answer"
    assert normalised("a the an") == ""


@pytest.mark.parametrize(
    ("given", "wanted", "exact", "overlap"),
    [
        ("The cat sat.", "cat sat", 1, 1.0),
        ("the big cat", "cat sat", 0, 2 * (1 / 2) * (1 / 2) / (1 / 2 + 1 / 2)),  # "big cat": precision 1/2, recall 1/2
        ("cat cat dog", "cat", 0, 2 * (1 / 3) * 1 / (1 / 3 + 1)),  # a word counts as often as both have it
        ("cat", "dog", 0, 0.0),
        ("", "", 1, 1.0),
        ("", "dog", 0, 0.0),
        ("dog", "", 0, 0.0),
    ],
)
def test_of_one_pair(given, wanted, exact, overlap):
    assert exact_match(given, wanted) == exact
    assert f1(given, wanted) == pytest.approx(overlap)


def test_the_best_of_the_acceptable_answers_counts_and_none_means_the_empty_text():
    assert best_over_references(f1, ["cat sat", "", "x", ""], [["dog", "a cat"], [], [], ["the"]]) == [
        pytest.approx(2 / 3),
        1,
        0,
        1,
    ]


def every_threshold(scores, answerable, no_answer):
    """All thresholds one after the other, each answer kept where its value is at most that."""
    best = 0.0
    for threshold in (-1e9, *no_answer):
        total = sum(
            (s if value <= threshold else float(not has))
            for s, has, value in zip(scores, answerable, no_answer, strict=True)
        )
        best = max(best, total / len(scores))
    return best


cases = st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.25, 1.0])), min_size=1, max_size=7)


@given(cases, st.randoms(use_true_random=False))
def test_the_best_threshold_is_the_best_of_all(rows, random):
    answerable, scores = [has for has, _ in rows], [score if has else 0.0 for has, score in rows]
    no_answer = random.sample(range(100), len(rows))  # no ties
    expected = every_threshold(scores, answerable, no_answer)
    assert with_best_threshold(scores, answerable, no_answer) == pytest.approx(expected)


def test_the_best_threshold_by_hand():
    """Two answerable, one not; the model doubts the second most."""
    for order in itertools.permutations(range(3)):
        scores, answerable, doubt = ([[1.0, 0.5, 0.0], [True, True, False], [-3, 2, 1]][k] for k in range(3))
        rows = [[values[i] for i in order] for values in (scores, answerable, doubt)]
        assert with_best_threshold(*rows) == pytest.approx((1.0 + 1) / 3)  # the first kept, the others taken back
