import math

import torch
from torch import nn

from adarank.adapters.lowrank import LowRank
from adarank.inits import default


def filled(kind, d_in=400, d_out=300, rank=64):
    torch.manual_seed(0)
    adapter = LowRank(nn.Linear(d_in, d_out), kind, rank, 2.0 / rank)
    with torch.no_grad():
        default().fill(adapter, None)
    return adapter


def test_svd_starts_as_adalora_s_code():
    adapter = filled("svd")
    assert not adapter.lam.any()
    for factor in (adapter.P, adapter.Q):
        assert abs(factor.std().item() - 0.02) < 5e-4
        assert abs(factor.mean().item()) < 5e-4


def test_lora_starts_as_lora_s_code():
    adapter = filled("lora")
    assert not adapter.P.any()
    assert torch.equal(adapter.lam, torch.ones(64))
    bound = 1 / math.sqrt(400)
    assert adapter.Q.abs().max() <= bound
    assert abs(adapter.Q.std().item() - bound / math.sqrt(3)) < 5e-4


def test_the_same_seed_gives_the_same_factors():
    assert torch.equal(filled("svd").Q, filled("svd").Q)
