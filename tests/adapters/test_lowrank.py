import pytest
import torch
from torch import nn

from adarank.adapters.lowrank import LowRank


def make(kind="svd", rank=4, dropout=0.0, dtype=torch.float32):
    torch.manual_seed(0)
    adapter = LowRank(nn.Linear(6, 5, dtype=dtype), kind, rank, scale=2.0, dropout=dropout)
    with torch.no_grad():
        for factor in (adapter.Q, adapter.lam, adapter.P):
            factor.copy_(torch.randn(factor.shape))
    return adapter


@pytest.mark.parametrize("kind", ["svd", "lora"])
def test_it_computes_w_plus_delta(kind):
    adapter, x = make(kind), torch.randn(3, 6)
    expected = x @ (adapter.base.weight + adapter.delta()).t() + adapter.base.bias
    torch.testing.assert_close(adapter(x), expected)
    adapter.fused = False
    torch.testing.assert_close(adapter(x), expected)


def test_delta_is_the_triplets_sum_written_out():
    adapter = make()
    adapter.mask[1] = False
    total = sum(
        adapter.scale * adapter.lam[i] * torch.outer(adapter.P[i], adapter.Q[i]) for i in range(4) if adapter.mask[i]
    )
    torch.testing.assert_close(adapter.delta(), total)


def test_training_uses_lam_and_evaluation_the_masked_lam():
    adapter, x = make(), torch.randn(3, 6)
    before = adapter(x)
    adapter.mask[2] = False
    torch.testing.assert_close(adapter.train()(x), before)
    masked = x @ (adapter.base.weight + adapter.delta()).t() + adapter.base.bias
    torch.testing.assert_close(adapter.eval()(x), masked)
    assert not torch.allclose(masked, before)


def test_lora_has_a_constant_lam():
    assert [n for n, _ in make("lora").named_parameters() if not n.startswith("base")] == ["Q", "P"]
    assert make("lora").triplet_cost == 11
    assert make("svd").triplet_cost == 12


def test_a_hook_on_the_base_is_honoured():
    adapter, x, seen = make(), torch.randn(3, 6), []
    expected = adapter(x)
    adapter.base.register_forward_hook(lambda *_: seen.append(1))
    torch.testing.assert_close(adapter(x), expected)
    assert seen == [1]


def test_dropout_acts_on_the_low_rank_path_only_and_in_training_only():
    adapter, x = make(dropout=0.5), torch.ones(400, 6)
    base = adapter.base(x)
    delta = adapter.train()(x) - base
    exact = adapter.eval()(x) - base
    assert delta.std(0).min() > 0
    torch.testing.assert_close(delta.mean(0), exact.mean(0), atol=0.4, rtol=0.3)
    assert torch.equal(adapter(x), adapter(x))


def test_the_reference_path_drops_the_same_inputs():
    adapter, x = make(dropout=0.5), torch.randn(7, 6)
    found = []
    for fused in (True, False):
        adapter.fused = fused
        torch.manual_seed(3)
        found.append(adapter.train()(x))
    torch.testing.assert_close(*found)


@pytest.mark.usefixtures("safe_bf16")
def test_factors_are_at_least_fp32():
    assert make(dtype=torch.bfloat16).Q.dtype == torch.float32
    assert make(dtype=torch.float64).Q.dtype == torch.float64
    x = torch.randn(3, 6, dtype=torch.bfloat16)
    assert make(dtype=torch.bfloat16)(x).dtype == torch.bfloat16


def test_rank_0_is_the_base():
    adapter, x = LowRank(nn.Linear(6, 5), "svd", 0, 0.0), torch.randn(2, 6)
    assert torch.equal(adapter(x), adapter.base(x))
    assert not adapter(x).requires_grad
