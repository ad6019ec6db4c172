import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from adarank.errors import SettingError
from adarank.harness.data.metrics import higher_is_better
from adarank.harness.data.metrics import labels as metrics


@st.composite
def classified(draw):
    """logits [rows, classes] without ties, labels [rows]."""
    rows, width = draw(st.integers(1, 30)), draw(st.integers(2, 4))
    predicted = draw(arrays(np.int64, rows, elements=st.integers(0, width - 1)))
    labels = draw(arrays(np.int64, rows, elements=st.integers(0, width - 1)))
    return np.eye(width)[predicted] * 3 - 1, predicted, labels


@st.composite
def regressed(draw):
    rows = draw(st.integers(2, 30))
    values = st.integers(-50, 50).map(lambda i: i / 4)
    return draw(arrays(np.float64, rows, elements=values)), draw(arrays(np.float64, rows, elements=values))


def confusion(predicted, labels, width):
    table = np.zeros((width, width))
    for p, y in zip(predicted, labels, strict=True):
        table[y, p] += 1
    return table


def slow_f1(predicted, labels, positive):
    hit = sum(p == y == positive for p, y in zip(predicted, labels, strict=True))
    total = sum(predicted == positive) + sum(labels == positive)
    return 2 * hit / total if total else 0.0


def slow_matthews(predicted, labels, width):
    """Gorodkin's R_K from the confusion table."""
    c = confusion(predicted, labels, width)
    n, right, t, p = c.sum(), np.trace(c), c.sum(1), c.sum(0)
    below = math.sqrt((n**2 - p @ p) * (n**2 - t @ t))
    return (right * n - t @ p) / below if below else 0.0


def slow_pearson(x, y):
    x, y = x - x.mean(), y - y.mean()
    below = math.sqrt((x @ x) * (y @ y))
    return (x @ y) / below if below else 0.0


def slow_ranks(x):
    return np.array([sum(x < v) + (sum(x == v) + 1) / 2 for v in x])


@settings(max_examples=60, deadline=None)
@given(classified())
def test_classification_agrees_with_the_formulas(case):
    logits, predicted, labels = case
    width = logits.shape[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = metrics.compute(("accuracy", "f1", "matthews"), logits, labels)
    assert found["accuracy"] == pytest.approx(np.mean(predicted == labels))
    present = [1] if width == 2 else sorted({*predicted, *labels})
    assert found["f1"] == pytest.approx(np.mean([slow_f1(predicted, labels, c) for c in present]))
    assert found["matthews"] == pytest.approx(slow_matthews(predicted, labels, width), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(regressed())
def test_regression_agrees_with_the_formulas(case):
    predicted, targets = case
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = metrics.compute(("pearson", "spearman", "pearson_spearman"), predicted[:, None], targets)
    r, rho = slow_pearson(predicted, targets), slow_pearson(slow_ranks(predicted), slow_ranks(targets))
    assert found["pearson"] == pytest.approx(r, abs=1e-9)
    assert found["spearman"] == pytest.approx(rho, abs=1e-9)
    assert found["pearson_spearman"] == pytest.approx((r + rho) / 2, abs=1e-9)
    assert metrics.compute(("pearson",), predicted, targets)["pearson"] == found["pearson"]


@settings(max_examples=30, deadline=None)
@given(regressed(), st.floats(0.1, 10), st.floats(-5, 5))
def test_correlations_ignore_scale_and_shift(case, scale, shift):
    predicted, targets = case
    names = ("pearson", "spearman")
    moved = metrics.compute(names, predicted * scale + shift, targets)
    assert moved == pytest.approx(metrics.compute(names, predicted, targets), abs=1e-6)


@pytest.mark.parametrize("constant", [np.full(5, 0.1), np.full(5, 1e6) + np.arange(5) * 1e-10])
def test_constant_predictions_correlate_0_without_a_warning(constant):
    names = metrics.fitting(regression=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = metrics.compute(names, constant, np.array([1.0, 5, 2, 4, 3]))
        assert metrics.compute(names, np.array([1.0]), np.array([2.0])) == dict.fromkeys(names, 0.0)
        assert metrics.compute(("matthews",), np.tile([1.0, 0.0], (4, 1)), np.zeros(4, int)) == {"matthews": 0.0}
    assert found == dict.fromkeys(names, 0.0)


def test_f1_of_two_classes_is_of_class_1_and_of_three_the_mean():
    labels = np.array([1, 1, 0, 0])
    logits = np.eye(2)[[1, 0, 0, 0]]
    assert metrics.compute(("f1",), logits, labels)["f1"] == pytest.approx(2 / 3)
    assert metrics.compute(("f1",), np.eye(3)[[1, 0, 0, 0]], labels)["f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)


@pytest.mark.parametrize("name", metrics.known())
def test_logits_that_are_no_numbers_give_no_number(name):
    logits = np.ones((3, 2)) if name in metrics.fitting(regression=False) else np.ones((3, 1))
    logits[1, 0] = np.nan
    assert math.isnan(metrics.compute((name,), logits, np.array([0, 1, 0]))[name])


@pytest.mark.parametrize("name", metrics.known())
def test_a_shape_that_does_not_fit_is_refused(name):
    logits = np.ones((3, 1)) if name in metrics.fitting(regression=False) else np.ones((3, 2))
    with pytest.raises(ValueError, match=f"{name} needs"):
        metrics.compute((name,), logits, np.array([0, 1, 0]))
    with pytest.raises(ValueError, match=r"same number of rows, at least 1 \(got 2 and 3\)"):
        metrics.compute((name,), logits[:2], np.array([0, 1, 0]))


def test_names():
    assert metrics.known() == ("accuracy", "f1", "matthews", "pearson", "spearman", "pearson_spearman")
    assert all(higher_is_better(name) for name in metrics.known())
    assert not higher_is_better("loss")
    for call in (metrics.require_known, lambda name: metrics.compute((name,), np.ones((1, 2)), np.ones(1))):
        with pytest.raises(SettingError, match=r"task\.metric must be one of accuracy, .* \(got acuracy\)"):
            call("acuracy")


@given(classified(), st.sampled_from(["accuracy", "f1", "matthews"]))
def test_the_majority_is_what_a_constant_prediction_of_the_most_frequent_class_scores(case, name):
    logits, _, labels = case
    width = logits.shape[1]
    most = max(range(width), key=lambda c: (sum(labels == c), -c))
    constant = np.full(len(labels), most)
    if name == "accuracy":
        expected = np.mean(labels == most)
    elif name == "matthews":
        expected = 0.0
    elif width == 2:
        expected = slow_f1(constant, labels, 1)
    else:
        expected = np.mean([slow_f1(constant, labels, c) for c in sorted({*labels, most})])
    assert metrics.majority(name, labels, width) == pytest.approx(expected)
