"""Scores that average something of weights and gradients, against loops over the adapters' own tensors."""

import numpy as np
import pytest
import torch

import adarank
from adarank.bank import Bank
from adarank.scores import adalora, fisher, sensitivity, smoothed_sensitivity, taylor


def seen(adapters, bank, draw):
    """New weights and gradients, as {(part, module): (w, g)} in NumPy."""
    bank.weight.copy_(torch.from_numpy(draw.normal(size=bank.weight.numel())))
    bank.grad.copy_(torch.from_numpy(draw.normal(size=bank.weight.numel())))
    bank.sync_views()
    found = {}
    for m, adapter in enumerate(adapters.values()):
        for part in ("Q", "lam", "P"):
            w = getattr(adapter, part)
            g = w.grad if w.grad is not None else bank.unflatten(bank.grad)[part, m]  # LoRA's λ has none
            found[part, m] = (w.detach().numpy().copy(), g.numpy().copy())
    return found


def summed_up(average, modules, rank):
    """Eq. 7, triplet by triplet."""
    return [
        average["lam", m][i]
        + sum(average["Q", m][i]) / len(average["Q", m][i])
        + sum(average["P", m][i]) / len(average["P", m][i])
        for m in range(modules)
        for i in range(rank)
    ]


VALUES = {
    "smoothed_sensitivity": (smoothed_sensitivity(0.7), 0.7, lambda w, g: np.abs(w * g)),
    "sensitivity": (sensitivity(), 0.0, lambda w, g: np.abs(w * g)),
    "fisher": (fisher(0.6), 0.6, lambda w, g: g**2),
    "weighted fisher": (fisher(0.6, weighted=True), 0.6, lambda w, g: w**2 * g**2),
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("kind", ["svd", "lora"])
def test_the_score_is_the_equation_written_out(net, name, kind):
    score, beta, value = VALUES[name]
    adapters = adarank.adapt(net.double(), kind, rank=3)
    bank, draw = Bank(adapters), np.random.default_rng(0)
    bank.sync_views()
    buffers = score.init(bank)
    average = None
    for _ in range(4):
        now = {entry: value(w, g) for entry, (w, g) in seen(adapters, bank, draw).items()}
        average = average or {entry: np.zeros_like(v) for entry, v in now.items()}
        average = {entry: beta * average[entry] + (1 - beta) * now[entry] for entry in now}
        score.observe(buffers, bank)
    expected = torch.tensor(summed_up(average, len(adapters), 3), dtype=torch.float64)
    torch.testing.assert_close(score.score(buffers, bank), expected, rtol=1e-12, atol=1e-14)


def test_raw_sensitivity_forgets_every_step_but_the_last(net):
    bank = Bank(adarank.adapt(net, rank=2))
    found = []
    for past in (1.0, 1e6):
        score = sensitivity()
        buffers = score.init(bank)
        for value in (past, 2.0):
            bank.weight.fill_(1.0)
            bank.grad.fill_(value)
            score.observe(buffers, bank)
        found.append(score.score(buffers, bank))
    assert torch.equal(*found)
    torch.testing.assert_close(found[0], torch.full_like(found[0], 6.0))  # 2 of λ, 2 of Q's mean, 2 of P's


def test_smoothed_sensitivity_is_adalora_s_importance(net):
    bank = Bank(adarank.adapt(net.double(), rank=3))
    ours, theirs = smoothed_sensitivity(0.8), adalora(0.8, 0.5)
    a, b = ours.init(bank), theirs.init(bank)
    for _ in range(5):
        bank.weight.normal_()
        bank.grad.normal_()
        ours.observe(a, bank)
        theirs.observe(b, bank)
    torch.testing.assert_close(ours.score(a, bank), bank.triplet_sums(b["importance"]))


def test_small_half_precision_gradients_are_squared_in_fp32(net):
    net = net.half()
    bank = Bank(adarank.adapt(net, rank=2))
    net.half()
    bank.allocate()
    bank.grad.fill_(1e-4)
    score = fisher(0.0)
    buffers = score.init(bank)
    score.observe(buffers, bank)
    assert (bank.grad.square() == 0).all()  # what half precision would make of it
    torch.testing.assert_close(score.score(buffers, bank), torch.full((bank.triplets,), 3e-8), rtol=1e-2, atol=0)


@pytest.mark.parametrize("make", [smoothed_sensitivity, fisher, taylor])
@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_smoothing_factors_outside_the_unit_interval_are_refused(make, value):
    with pytest.raises(adarank.SettingError, match=rf"score\.beta must be at least 0 and below 1 \(got {value}\)"):
        make(value)
