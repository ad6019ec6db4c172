"""PiSSA, OLoRA and LoRA-GA against their equations in NumPy (float64) and against PEFT on the same weights."""

import numpy as np
import pytest
import torch
from torch import nn

import adarank
from adarank import SettingError
from adarank.inits import lora_ga, olora, pissa
from tests.inits.conftest import Classifier, some_batches

R, ALPHA = 3, 6.0
S = ALPHA / R
kinds = pytest.mark.parametrize("kind", ["svd", "lora"])


class One(nn.Module):
    """A single linear, 10 -> 7, in a model."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(2)
        self.q = nn.Linear(10, 7, dtype=dtype)

    def forward(self, x):
        return self.q(x)


def adapted(kind, init, found=None):
    model = One()
    if found is not None:  # a gradient, as if it had been measured
        init = init._replace(measure=lambda *_: {"q": torch.from_numpy(found)})
    return One().q.weight.detach().numpy(), adarank.adapt(model, kind, R, ["q"], ALPHA, init=init, batches=[])["q"]


def parts(adapter):
    """(B A without s, λ, base) as float64."""
    Q, lam, P = (t.detach().numpy() for t in (adapter.Q, adapter.lam, adapter.P))
    return P.T @ np.diag(lam) @ Q, lam, adapter.base.weight.detach().numpy()


def unit_rows(factor):
    return np.allclose(np.linalg.norm(factor.detach().numpy(), axis=1), 1)


def orthonormal(factor):
    rows = factor.detach().numpy()
    return np.allclose(rows @ rows.T, np.eye(len(rows)))


@kinds
@pytest.mark.parametrize("niter", [None, 30])
def test_pissa_is_the_truncated_svd_of_the_weight(kind, niter):
    W, adapter = adapted(kind, pissa(niter))
    U, sigma, Vt = np.linalg.svd(W)
    best = sum(sigma[i] * np.outer(U[:, i], Vt[i]) for i in range(R))
    product, lam, base = parts(adapter)
    np.testing.assert_allclose(S * product, best, atol=1e-8)
    np.testing.assert_allclose(base, W - best, atol=1e-8)
    if kind == "svd":
        np.testing.assert_allclose(lam, sigma[:R] / S, rtol=1e-8)
        assert orthonormal(adapter.Q)
        assert orthonormal(adapter.P)
    else:
        for factor in (adapter.Q, adapter.P):
            np.testing.assert_allclose(factor.detach().norm(dim=1).numpy() ** 2, sigma[:R] / S, rtol=1e-8)


@kinds
def test_olora_is_the_head_of_the_qr_decomposition(kind):
    W, adapter = adapted(kind, olora())
    basis, upper = np.linalg.qr(W)
    head = basis[:, :R] @ upper[:R]
    product, lam, base = parts(adapter)
    np.testing.assert_allclose(product, head, atol=1e-12)
    np.testing.assert_allclose(base, W - S * head, atol=1e-12)
    assert orthonormal(adapter.P)
    if kind == "svd":
        np.testing.assert_allclose(lam, np.linalg.norm(upper[:R], axis=1))
        assert unit_rows(adapter.Q)


@kinds
@pytest.mark.parametrize(
    ("direction", "in_A", "in_B"),
    [("ArB2r", [0, 1, 2], [3, 4, 5]), ("A2rBr", [3, 4, 5], [0, 1, 2]), ("ArBr", [1, 3, 5], [0, 2, 4])],
)
def test_lora_ga_takes_its_directions_from_the_gradient(kind, direction, in_A, in_B):
    G = np.random.default_rng(0).normal(size=(7, 10))
    gamma = 9.0
    W, adapter = adapted(kind, lora_ga(gamma=gamma, direction=direction), G)
    U, _, Vt = np.linalg.svd(G)
    product, lam, base = parts(adapter)
    c = 7**0.25 / gamma**0.5
    for i, (a, b) in enumerate(zip(in_A, in_B, strict=True)):  # up to the sign of singular vectors
        one = lam[i] * np.outer(adapter.P[i].detach(), adapter.Q[i].detach())
        np.testing.assert_allclose(np.abs(one), c**2 * np.abs(np.outer(U[:, b], Vt[a])), atol=1e-10)
    np.testing.assert_allclose(base, W - S * product, atol=1e-12)
    if kind == "svd":
        np.testing.assert_allclose(lam, np.sqrt(7) / gamma)
        assert orthonormal(adapter.P)
        assert orthonormal(adapter.Q)


def peft_layer(init, model=None):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=R, lora_alpha=ALPHA, target_modules=["q"], init_lora_weights=init)
    return peft.get_peft_model(model or One(torch.float32), config).base_model.model.q


@pytest.mark.parametrize(("name", "init"), [("pissa", pissa()), ("olora", olora())])
def test_the_same_start_as_peft_s(name, init):
    theirs = peft_layer(name)
    model = One(torch.float32)
    ours = adarank.adapt(model, "lora", R, ["q"], ALPHA, init=init)["q"]
    A, B = theirs.lora_A["default"].weight, theirs.lora_B["default"].weight
    sign = torch.sign((A * ours.Q).sum(1))  # a singular pair's common sign is arbitrary
    torch.testing.assert_close(ours.Q, A * sign.unsqueeze(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.P.t(), B * sign, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.base.weight, theirs.base_layer.weight, rtol=1e-4, atol=1e-5)


def test_a_svd_start_puts_the_same_function_as_the_lora_start():
    pairs = [adapted(kind, pissa())[1] for kind in ("svd", "lora")]
    torch.testing.assert_close(pairs[0].delta(), pairs[1].delta())


def test_a_weight_of_low_rank_leaves_no_dead_triplet():
    model = One()
    with torch.no_grad():
        model.q.weight.copy_(torch.outer(model.q.weight[:, 0], model.q.weight[0]))
    W = model.q.weight.detach().clone()
    adapter = adarank.adapt(model, "svd", R, ["q"], ALPHA, init="olora")["q"]
    torch.testing.assert_close(adapter.base.weight + adapter.delta(), W)
    model(torch.randn(5, 10, dtype=torch.float64)).square().sum().backward()
    assert (adapter.lam.grad != 0).all()


def test_lora_ga_refuses_a_rank_above_half_the_smaller_side():
    model = Classifier()
    with pytest.raises(
        SettingError, match=r"^rank must be at most 6 for net\.layers\.0\.up \(got 7\), because init=lora_ga"
    ):
        adarank.adapt(model, rank=7, init="lora_ga", batches=some_batches(2))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: pissa(niter=-1), r"^init\.niter must be a whole number of at least 0, .* \(got -1\)$"),
        (lambda: lora_ga(gamma=0.0), r"^init\.gamma must be above 0 \(got 0\.0\)$"),
        (lambda: lora_ga(direction="ArBB"), r"^init\.direction must be one of ArB2r, A2rBr, ArBr \(got 'ArBB'\)$"),
    ],
)
def test_bad_settings_are_refused(make, why):
    with pytest.raises(SettingError, match=why):
        make()
