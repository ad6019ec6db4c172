"""GoRA against its equations in NumPy (float64), and the laws of its shares."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import adarank
from adarank import SettingError
from adarank.inits import gora
from adarank.inits.gora import Found, share
from tests.inits.conftest import Classifier, some_batches

R, ALPHA = 4, 6.0
S = ALPHA / R


def gradients(model, batches):
    model.eval()
    model.zero_grad()
    sum(model(**b).loss for b in batches).div(len(batches)).backward()
    names = [n for n, m in model.named_modules() if n.endswith(("up", "down"))]
    return {
        n: (model.get_submodule(n).weight.detach().numpy().copy(), model.get_submodule(n).weight.grad.numpy().copy())
        for n in names
    }


def build():
    torch.manual_seed(0)
    return Classifier(torch.float64)


@pytest.mark.parametrize("kind", ["svd", "lora"])
@pytest.mark.parametrize("step", [0.05, 0.3])
def test_the_start_is_a_step_of_descent_in_the_row_space_of_A(kind, step):
    batches = some_batches(5, dtype=torch.float64)
    known = gradients(build(), batches[:3])
    adapters = adarank.adapt(build(), kind, R, alpha=ALPHA, init=gora(steps=3, step=step), batches=batches)
    for name, adapter in adapters.items():
        W, G = known[name]
        A = adapter.Q.detach().numpy()
        expected = -step * math.sqrt(A.shape[1] / len(A)) * G @ np.linalg.pinv(A) @ A
        np.testing.assert_allclose(adapter.delta().detach().numpy(), expected, rtol=1e-8, atol=1e-12)
        assert np.array_equal(adapter.base.weight.numpy(), W)  # the base is left alone
        if kind == "lora":
            bound = 1 / math.sqrt(A.shape[1])
            assert np.abs(A).max() <= bound
            assert np.abs(A).max() > 0.8 * bound
        else:
            np.testing.assert_allclose(adapter.Q.detach().norm(dim=1), 1)
            np.testing.assert_allclose(adapter.P.detach().norm(dim=1), 1)


def test_the_first_step_lowers_the_loss_and_has_about_the_norm_asked_for():
    """The sign is the paper's; a step up, as in the authors' code since August 2025, would raise it."""
    batches = some_batches(6, rows=200, dtype=torch.float64)
    model = build()
    plain = sum(build().eval()(**b).loss.item() for b in batches)
    known = gradients(build(), batches)
    adapters = adarank.adapt(model, "lora", R, init=gora(steps=6, step=0.05, least=1, most=1), batches=batches)
    model.eval()
    assert sum(model(**b).loss.item() for b in batches) < plain - 1e-4
    ratios = [a.delta().detach().norm().item() / np.linalg.norm(known[n][1]) for n, a in adapters.items()]
    assert 0.5 < np.mean(ratios) / 0.05 < 1.5


def test_ranks_follow_the_paper_s_formula():
    """[B·A_i / √(m + n)] with B = Σ r·√(m + n), but that the total is kept: within one of it where nothing is
    clipped."""
    batches = some_batches(4, dtype=torch.float64)
    known = gradients(build(), batches)
    importance = {n: np.abs(W * G).mean() for n, (W, G) in known.items()}
    budget = sum(R * math.sqrt(sum(W.shape)) for W, _ in known.values())
    paper = {
        n: budget * importance[n] / sum(importance.values()) / math.sqrt(sum(W.shape)) for n, (W, _) in known.items()
    }
    adapters = adarank.adapt(build(), rank=R, init=gora(steps=4, least=0.0, most=100.0), batches=batches)
    assert sum(a.rank for a in adapters.values()) == R * len(paper)
    assert len({a.rank for a in adapters.values()}) > 2
    limit = {n: min(W.shape) for n, (W, _) in known.items()}
    assert all(paper[n] < limit[n] for n in paper)
    for name, adapter in adapters.items():
        assert abs(adapter.rank - paper[name]) < 1


def test_the_released_scripts_shares_and_scale():
    """Their `get_allocated_rank` and `_get_scaling` with the flags of their six scripts, written out: [B·I/ΣI] // (d_in
    + d_out) with B = Σ r·(d_in + d_out), from r/2 to 4r; s = α/√r_i. ΔW₀ does not depend on the scale."""
    batches = some_batches(4, dtype=torch.float64)
    known = gradients(build(), batches)
    importance = {n: np.abs(W * G).mean() for n, (W, G) in known.items()}
    budget = sum(R * sum(W.shape) for W, _ in known.values())
    expected = {}
    for n, (W, _) in known.items():
        smooth = round(budget * importance[n] / sum(importance.values()))
        expected[n] = min(max(smooth // sum(W.shape), R // 2), 4 * R, *W.shape)
    init = gora(steps=4, shares="script", own_scale=True)
    adapters = adarank.adapt(build(), "lora", R, alpha=ALPHA, rslora=True, init=init, batches=batches)
    assert {n: a.rank for n, a in adapters.items()} == expected
    assert len(set(expected.values())) > 2
    for name, adapter in adapters.items():
        assert adapter.scale == pytest.approx(ALPHA / math.sqrt(adapter.rank))
        G, A = known[name][1], adapter.Q.detach().numpy()
        descent = -0.05 * math.sqrt(A.shape[1] / len(A)) * G @ np.linalg.pinv(A) @ A
        np.testing.assert_allclose(adapter.delta().detach().numpy(), descent, rtol=1e-8, atol=1e-12)


def test_the_scripts_shares_are_rounded_down():
    found = {name: Found(torch.zeros(5, 5), share) for name, share in {"a": 0.30, "b": 0.32, "c": 0.38}.items()}
    asked = dict.fromkeys(found, 5)
    assert gora(shares="script").ranks(found, asked) == {"a": 4, "b": 4, "c": 5}  # 4.5, 4.8 and 5.7
    assert sum(gora().ranks(found, asked).values()) == 15


def test_ranks_lie_between_least_and_most():
    batches = some_batches(4)
    for least, most in ((0.5, 1.5), (1.0, 1.0), (0.75, 4.0)):
        adapters = adarank.adapt(build().float(), rank=R, init=gora(steps=4, least=least, most=most), batches=batches)
        ranks = [a.rank for a in adapters.values()]
        assert sum(ranks) == R * len(ranks)
        assert min(ranks) >= math.ceil(least * R)
        assert max(ranks) <= math.floor(most * R)


numbers = st.floats(0, 1e6, allow_nan=False)


@settings(max_examples=200, deadline=None)
@given(st.data(), st.lists(numbers, min_size=1, max_size=12))
def test_shares_keep_the_total_and_the_bounds(data, weights):
    n = len(weights)
    low = data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))
    high = [a + b for a, b in zip(low, data.draw(st.lists(st.integers(0, 9), min_size=n, max_size=n)), strict=True)]
    total = data.draw(st.integers(sum(low), sum(high)))
    got = share(weights, low, high, total)
    assert sum(got) == total
    assert all(a <= x <= b for a, x, b in zip(low, got, high, strict=True))
    for i in range(n):  # a weightier module of the same bounds has no less, but for the one that rounding gives
        for j in range(n):
            if weights[i] > weights[j] and (low[i], high[i]) == (low[j], high[j]):
                assert got[i] >= got[j] - 1


def test_shares_by_hand():
    assert share([1, 2, 5], [0, 0, 0], [99, 99, 99], 16) == [2, 4, 10]
    assert share([1, 1, 1], [0, 0, 0], [9, 9, 9], 5) == [2, 2, 1]  # the first of equals first
    assert share([0, 0], [1, 1], [9, 9], 6) == [3, 3]
    assert share([0, 1, 9], [1, 1, 1], [4, 4, 4], 9) == [1, 4, 4]


def test_a_module_without_gradient_gets_the_least_rank_and_can_learn():
    init = gora(least=0.0)
    found = {"a": Found(torch.zeros(6, 5), 0.0), "b": Found(torch.randn(6, 5), 0.3)}
    assert init.ranks(found, {"a": 2, "b": 2}) == {"a": 0, "b": 4}
    assert gora(least=0.5).ranks(found, {"a": 2, "b": 2}) == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    "bad", [{"step": -0.1}, {"least": 1.5}, {"most": 0.5}, {"least": -1.0}, {"step": float("nan")}]
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(
        SettingError, match=rf"^init\..*{next(iter(bad))}.* must .*\(got .*{next(iter(bad.values()))}.*\)$"
    ):
        gora(**bad)


def test_bad_shares_and_a_scale_without_alpha_are_refused():
    with pytest.raises(SettingError, match=r"^init\.shares must be one of paper, script \(got 'sqrt'\)$"):
        gora(shares="sqrt")
    with pytest.raises(SettingError, match=r"^init\.own_scale=true needs alpha"):
        adarank.adapt(build(), init=gora(own_scale=True), batches=some_batches(1))


def test_no_number_of_batches_is_refused():
    with pytest.raises(SettingError, match=r"^init\.steps must be a whole number of at least 1 \(got 0\)$"):
        adarank.adapt(build(), init=gora(steps=0), batches=some_batches(1))
