import pytest
import torch

import adarank
from adarank.bank import Bank
from adarank.scores import adalora


@pytest.fixture
def bank(net):
    return Bank(adarank.adapt(net.double(), rank=3))


def test_averages_and_scores_follow_the_equations_step_by_step(bank):
    score = adalora(0.8, 0.6)
    buffers = score.init(bank)
    mean = spread = torch.zeros_like(bank.weight)
    for _ in range(5):
        bank.weight.copy_(torch.randn_like(bank.weight))
        bank.grad.copy_(torch.randn_like(bank.weight))
        score.observe(buffers, bank)
        now = (bank.weight * bank.grad).abs()
        mean = 0.8 * mean + 0.2 * now
        spread = 0.6 * spread + 0.4 * (now - mean).abs()
    torch.testing.assert_close(score.score(buffers, bank), bank.triplet_sums(mean * spread))


def test_scores_are_fp32_even_for_a_half_precision_bank(bank):
    bank.weight, bank.grad = bank.weight.half(), torch.full_like(bank.weight, 1e-4).half()
    score = adalora()
    buffers = score.init(bank)
    score.observe(buffers, bank)
    assert all(b.dtype == torch.float32 for b in buffers.values())
    product = buffers["importance"] * buffers["uncertainty"]
    assert (product > 0).float().mean() > 0.95  # in fp16 nearly all of these would be 0
    assert (product.half() > 0).float().mean() < 0.5


@pytest.mark.parametrize("name", ["beta1", "beta2"])
@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_smoothing_factors_outside_the_unit_interval_are_refused(name, value):
    with pytest.raises(adarank.SettingError, match=rf"score\.{name} must be at least 0 and below 1 \(got {value}\)"):
        adalora(**{name: value})
