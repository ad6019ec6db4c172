from copy import deepcopy

import pytest
import torch
from torch import nn

import adarank
from adarank import SettingError


@pytest.fixture
def trained(net):
    adapters = adarank.adapt(net, rank=4, targets="all-linear")
    with torch.no_grad():
        for adapter in adapters.values():
            adapter.lam.copy_(torch.randn(4))
            adapter.mask[::2] = False
    return net.eval()


def test_merged_logits_equal_the_adapters_and_unmerge_brings_them_back(trained):
    x = torch.randn(5, 8)
    before, plain = trained(x), deepcopy(trained)
    weights = {n: p.clone() for n, p in trained.state_dict().items()}
    adarank.merge(trained)
    torch.testing.assert_close(trained(x), before, rtol=1e-5, atol=1e-6)
    assert not any(".base" in key or key.endswith(".Q") for key in trained.state_dict())
    assert all(type(m) is nn.Linear for n, m in trained.named_modules() if n.endswith(("up", "down")))
    with pytest.raises(SettingError, match=r"no adapters to bypass; .* adarank\.unmerge first"):
        adarank.disabled(trained).__enter__()
    adarank.unmerge(trained)
    torch.testing.assert_close(trained(x), before, rtol=1e-5, atol=1e-6)
    assert trained.state_dict().keys() == weights.keys()
    for name, tensor in trained.state_dict().items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-5, atol=1e-6)
    assert adarank.ranks(trained) == adarank.ranks(plain)


def test_a_merged_model_s_state_dict_loads_into_the_plain_model(trained):
    from tests.conftest import Net

    x = torch.randn(5, 8)
    adarank.merge(trained)
    fresh = Net()
    fresh.load_state_dict(trained.state_dict())
    torch.testing.assert_close(fresh(x), trained(x))


def test_a_copy_of_a_merged_model_unmerges_by_itself(trained):
    x = torch.randn(5, 8)
    before = trained(x)
    adarank.merge(trained)
    copy = deepcopy(trained)
    adarank.unmerge(copy)
    torch.testing.assert_close(copy(x), before, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(trained(x), before, rtol=1e-5, atol=1e-6)


def test_a_half_precision_base_is_merged_with_one_rounding(net):
    net = net.to(torch.bfloat16)
    adapters = adarank.adapt(net, rank=4)
    adapter = adapters["layers.0.up"]
    with torch.no_grad():
        adapter.lam.copy_(torch.randn(4))
    expected = (adapter.base.weight.float() + adapter.delta()).to(torch.bfloat16)
    adarank.merge(net)
    assert torch.equal(net.get_submodule("layers.0.up").weight, expected)


def test_disabled_is_the_base_inside_the_with_only(trained):
    x = torch.randn(5, 8)
    adapted = trained(x)
    base = trained.embed(x)
    for layer in trained.layers:
        base = base + layer.down.base(torch.tanh(layer.up.base(base)))
    with adarank.disabled(trained):
        torch.testing.assert_close(trained(x), trained.head(base))
    assert torch.equal(trained(x), adapted)


def test_merging_what_has_no_adapters_is_refused(net):
    with pytest.raises(SettingError, match="no adapters to merge"):
        adarank.merge(net)
    with pytest.raises(SettingError, match="nothing to unmerge"):
        adarank.unmerge(net)
