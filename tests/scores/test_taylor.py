"""The signed score against the loss itself: finite differences of L where one triplet is scaled down."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import adarank
from adarank.bank import Bank
from adarank.scores import sensitivity, taylor
from tests.conftest import Net


def trained(kind):
    """A net with random factors, the loss of one batch as a function, and its bank after a backward pass."""
    torch.manual_seed(0)
    net = Net().double()
    adapters = adarank.adapt(net, kind, rank=3)
    for adapter in adapters.values():
        for p in adapter.parameters(recurse=False):
            p.data.normal_(0.0, 0.5)
    x, y = torch.randn(32, 8, dtype=torch.float64), torch.randint(3, (32,))

    def loss():
        return F.cross_entropy(net(x), y)

    bank = Bank(adapters)
    loss().backward()
    bank.sync_views()
    return adapters, bank, loss


def scored(score, bank):
    buffers = score.init(bank)
    score.observe(buffers, bank)
    return score.score(buffers, bank)


@pytest.mark.parametrize("kind", ["svd", "lora"])
def test_it_is_the_slope_of_the_loss_along_the_removal_of_each_triplet(kind):
    adapters, bank, loss = trained(kind)
    found = scored(taylor(0.0), bank)
    slopes, h = [], 1e-5
    with torch.no_grad():
        for adapter in adapters.values():
            for i in range(adapter.rank):
                kept = adapter.P[i].clone()
                adapter.P[i] = kept * (1 - h)
                less = loss().item()
                adapter.P[i] = kept * (1 + h)
                slopes.append((less - loss().item()) / (2 * h))
                adapter.P[i] = kept
    np.testing.assert_allclose(found.numpy(), slopes, rtol=1e-6, atol=1e-9)
    assert (found > 0).any()
    assert (found < 0).any()


def test_a_harmful_triplet_ranks_last_where_sensitivity_ranks_it_first():
    _, bank, _ = trained("svd")
    bank.weight.fill_(1.0)
    bank.grad.zero_()
    bank.lam_grad.copy_(torch.linspace(-0.5, 2.0, bank.triplets))  # the last one's λ should shrink the most
    assert scored(taylor(0.0), bank).argmin() == bank.triplets - 1
    assert scored(sensitivity(), bank).argmax() == bank.triplets - 1


def test_it_is_averaged_from_zero():
    _, bank, _ = trained("svd")
    score, expected = taylor(0.6), torch.zeros(bank.triplets, dtype=torch.float64)
    buffers = score.init(bank)
    for _ in range(4):
        bank.weight.normal_()
        bank.grad.normal_()
        score.observe(buffers, bank)
        expected = 0.6 * expected + 0.4 * -(bank.lam * bank.lam_grad)
    torch.testing.assert_close(score.score(buffers, bank), expected, rtol=1e-12, atol=1e-14)
