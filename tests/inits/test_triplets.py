"""MiLoRA, CorDA and LoRA-One against their equations in NumPy (float64), and CorDA against PEFT."""

import dataclasses
import math
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import adarank
from adarank import SettingError
from adarank.inits import corda, lora_one, milora
from tests.inits.conftest import Classifier, some_batches
from tests.inits.test_weights import ALPHA, One, R, S, adapted, orthonormal, parts, unit_rows

kinds = pytest.mark.parametrize("kind", ["svd", "lora"])


@kinds
def test_milora_is_the_end_of_the_svd_of_the_weight(kind):
    W, adapter = adapted(kind, milora())
    U, sigma, Vt = np.linalg.svd(W)
    least = sum(sigma[i] * np.outer(U[:, i], Vt[i]) for i in range(7 - R, 7))
    product, lam, base = parts(adapter)
    np.testing.assert_allclose(S * product, least, atol=1e-12)
    np.testing.assert_allclose(base, W - least, atol=1e-12)
    assert np.linalg.matrix_rank(base) == 7 - R
    if kind == "svd":
        np.testing.assert_allclose(lam, sigma[7 - R :] / S)
        assert orthonormal(adapter.Q)
        assert orthonormal(adapter.P)
    else:
        for factor in (adapter.Q, adapter.P):
            np.testing.assert_allclose(factor.detach().norm(dim=1).numpy() ** 2, sigma[7 - R :] / S)


@kinds
@pytest.mark.parametrize("gamma", [128.0, 9.0])
def test_lora_one_is_the_best_low_rank_step_of_descent(kind, gamma):
    G = np.random.default_rng(0).normal(size=(7, 10))
    W, adapter = adapted(kind, lora_one(gamma=gamma), G)
    U, sigma, Vt = np.linalg.svd(G)
    best = sum(sigma[i] * np.outer(U[:, i], Vt[i]) for i in range(R))
    product, lam, base = parts(adapter)
    np.testing.assert_allclose(product, -best / (sigma[0] * gamma), atol=1e-12)
    assert np.array_equal(base, W)  # not subtracted
    if kind == "svd":
        np.testing.assert_allclose(lam, sigma[:R] / (sigma[0] * gamma))
    else:
        lengths = np.sqrt(sigma[:R] / (sigma[0] * gamma))
        for factor in (adapter.Q, adapter.P):
            np.testing.assert_allclose(factor.detach().norm(dim=1), lengths)


def test_lora_one_lowers_the_loss():
    """A step up, with the sign lost, would raise it."""
    batches = some_batches(3, rows=200, dtype=torch.float64)
    losses = []
    for gamma in (1e9, 128.0):
        torch.manual_seed(0)
        model = Classifier(torch.float64)
        adarank.adapt(model, "lora", 2, init=lora_one(steps=3, gamma=gamma), batches=batches)
        losses.append(sum(model.eval()(**batch).loss.item() for batch in batches))
    assert losses[1] < losses[0]


def test_lora_one_of_a_gradient_of_0_starts_at_0():
    _, adapter = adapted("lora", lora_one(), np.zeros((7, 10)))
    assert not adapter.delta().any()


def covariance(batches):
    """The authors' rule for one layer: every batch divided by |its largest entry|; the mean over batches."""
    total = 0.0
    for x in batches:
        largest = max(value for row in x for value in row)
        scaled = np.array([[value / abs(largest) for value in row] for row in x])
        total = total + sum(np.outer(row, row) for row in scaled)
    return total / len(batches)


@kinds
@pytest.mark.parametrize("mode", ["ipm", "kpm"])
def test_corda_is_the_svd_of_the_weight_times_the_covariance(kind, mode):
    generator = np.random.default_rng(1)
    batches = [generator.normal(size=(30, 10)) * np.linspace(0.2, 3, 10) for _ in range(3)]
    model = One()
    W = model.q.weight.detach().numpy().copy()
    given = [(torch.from_numpy(x),) for x in batches]
    adapter = adarank.adapt(model, kind, R, ["q"], ALPHA, init=corda(2, mode), batches=given)["q"]
    C = covariance(batches[:2])
    C += 0.01 * np.trace(C) / 10 * np.eye(10)
    U, sigma, Vt = np.linalg.svd(W @ C)
    chosen = range(R) if mode == "ipm" else range(7 - R, 7)
    taken = sum(sigma[i] * np.outer(U[:, i], Vt[i] @ np.linalg.inv(C)) for i in chosen)
    product, _, base = parts(adapter)
    np.testing.assert_allclose(S * product, taken, atol=1e-9)
    np.testing.assert_allclose(base, W - taken, atol=1e-9)
    assert orthonormal(adapter.P) or kind == "lora"
    if kind == "svd":
        assert unit_rows(adapter.Q)
    else:
        lengths = [math.sqrt(sigma[i] / S) for i in chosen]
        np.testing.assert_allclose(adapter.P.detach().norm(dim=1), lengths)


class Ids(torch.nn.Module):
    """A language model's signature around one linear."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.embed = torch.nn.Embedding(20, 10).double()
        self.q = torch.nn.Linear(10, 7).double()

    def forward(self, input_ids, attention_mask=None, labels=None):
        return self.q(self.embed(input_ids))


def test_corda_leaves_out_padding_but_not_the_prompt():
    model = Ids()
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    labels = torch.tensor([[-100, -100, 3, 4], [-100, 6, -100, -100]])
    found = corda().measure(model, {"q": 2}, [{"input_ids": ids, "attention_mask": mask, "labels": labels}])
    rows = model.embed(torch.tensor([1, 2, 3, 4, 5, 6])).detach().numpy()
    np.testing.assert_allclose(found["q"], covariance([rows]), rtol=1e-10)


@pytest.mark.parametrize("mode", ["ipm", "kpm"])
def test_the_same_start_as_peft_s_corda(mode, monkeypatch):
    peft = pytest.importorskip("peft")
    if find_spec("attr") is None:  # of which PEFT's file uses nothing but the decorator
        monkeypatch.setitem(sys.modules, "attr", SimpleNamespace(dataclass=dataclasses.dataclass))
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    torch.manual_seed(0)
    batches = [torch.randn(50, 10) for _ in range(4)]
    theirs = One(torch.float32)
    config = peft.LoraConfig(
        r=R,
        lora_alpha=ALPHA,
        target_modules=["q"],
        init_lora_weights="corda",
        corda_config=CordaConfig(corda_method=mode),
    )
    preprocess_corda(theirs, config, run_model=lambda: [theirs(x) for x in batches])
    layer = peft.get_peft_model(theirs, config).base_model.model.q
    model = One(torch.float32)
    ours = adarank.adapt(model, "lora", R, ["q"], ALPHA, init=corda(4, mode), batches=[(x,) for x in batches])["q"]
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    sign = torch.sign((A * ours.Q).sum(1))  # a singular pair's common sign is arbitrary
    torch.testing.assert_close(ours.Q, A * sign.unsqueeze(1), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours.P.t(), B * sign, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours.base.weight, layer.base_layer.weight, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("error")
def test_corda_of_inputs_that_are_0_is_the_svd_of_the_weight():
    model = One()
    adapter = adarank.adapt(model, "lora", R, ["q"], ALPHA, init=corda(), batches=[(torch.zeros(3, 10).double(),)])["q"]
    U, sigma, Vt = np.linalg.svd(One().q.weight.detach().numpy())
    best = sum(sigma[i] * np.outer(U[:, i], Vt[i]) for i in range(R))
    np.testing.assert_allclose(adapter.delta().detach().numpy(), best, atol=1e-10)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: corda(mode="both"), r"^init\.mode must be one of ipm, kpm \(got 'both'\)$"),
        (lambda: lora_one(gamma=0), r"^init\.gamma must be above 0 \(got 0\)$"),
        (
            lambda: adarank.adapt(One(), rank=2, init=corda(), batches=[(torch.full((3, 10), torch.nan).double(),)]),
            r"^init=corda: the inputs of q contain numbers that are not finite$",
        ),
    ],
)
def test_bad_settings_are_refused(make, why):
    with pytest.raises(SettingError, match=why):
        make()
