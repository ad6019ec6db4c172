import pytest
import torch
from torch import nn

from adarank.adapters.lowrank import LowRank, to_singular


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


HOOKS = ("forward", "forward_pre", "full_backward", "full_backward_pre")


@pytest.mark.parametrize("kind", HOOKS)
def test_a_hook_on_the_base_is_honoured(kind):
    adapter, x, seen = make(), torch.randn(3, 6, requires_grad=True), []
    expected = adapter(x)
    getattr(adapter.base, f"register_{kind}_hook")(lambda *_: seen.append(1))
    found = adapter(x)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert seen == [1]


def test_a_base_that_trains_gets_its_gradient():
    adapter, x = make(), torch.randn(3, 6)
    for parameter in (adapter.base.weight, adapter.base.bias):
        adapter.base.requires_grad_(False)
        parameter.requires_grad_(True)
        adapter(x).sum().backward()
        assert parameter.grad.abs().sum() > 0


def test_what_is_recorded_is_the_low_rank_path_s_own_input_in_training():
    adapter, x, seen = make(dropout=0.5), torch.randn(3, 6), []
    adapter.watch = lambda owner, given: seen.append((owner, given))
    path = adapter.train()(x) - adapter.base(x)
    adapter.eval()(x)
    ((owner, given),) = seen
    assert owner is adapter
    assert (given == 0).any()
    torch.testing.assert_close(path, given @ adapter.delta().t())


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


@pytest.mark.parametrize("kind", ["svd", "lora"])
def test_the_singular_form_is_that_of_the_active_triplets(kind):
    adapter = make(kind)
    adapter.mask[1] = False
    before = adapter.delta()
    to_singular(adapter)
    adapter.mask.fill_(True)
    torch.testing.assert_close(adapter.delta(), before)
    sizes = adapter.scale * adapter.lam * adapter.Q.norm(dim=1) * adapter.P.norm(dim=1)
    torch.testing.assert_close(sizes, torch.linalg.svdvals(before)[:4])


def test_rank_0_is_the_base():
    adapter, x = LowRank(nn.Linear(6, 5), "svd", 0, 0.0), torch.randn(2, 6)
    assert torch.equal(adapter(x), adapter.base(x))
    assert not adapter(x).requires_grad
