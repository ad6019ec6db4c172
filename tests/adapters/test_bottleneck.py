"""Bottlenecks against their equations written out in NumPy, loop by loop."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import adarank
from adarank import SettingError
from adarank.adapters.bottleneck import Bottleneck, bottlenecks_of, features_of


def activation(name, v):
    if name == "relu":
        return max(v, 0.0)
    return v / (1 + math.exp(-v)) if name == "silu" else v * 0.5 * (1 + math.erf(v / math.sqrt(2)))


def change(module, h):
    """f(h) of one row, number by number."""
    down, b, up, c = (p.detach().double().numpy() for p in module.parameters(recurse=False))
    hidden = [
        activation(module.activation, sum(down[i, j] * h[j] for j in range(len(h))) + b[i]) for i in range(len(down))
    ]
    return np.array([sum(up[j, i] * hidden[i] for i in range(len(hidden))) + c[j] for j in range(len(h))])


def normalised(norm, z):
    centred = z - z.mean()
    unit = centred / math.sqrt((centred**2).mean() + norm.eps)
    return unit * norm.weight.detach().double().numpy() + norm.bias.detach().double().numpy()


def filled(base, width, name):
    module = Bottleneck(base, width, name)
    with torch.no_grad():
        for parameter in module.parameters(recurse=False):
            parameter.normal_()
    return module.double()


@pytest.mark.parametrize("name", ["gelu", "relu", "silu"])
def test_behind_a_projection_it_adds_to_the_output(name):
    torch.manual_seed(0)
    module = filled(nn.Linear(7, 5), 3, name)
    x = torch.randn(2, 4, 7, dtype=torch.float64)
    y = x.numpy() @ module.base.weight.detach().numpy().T + module.base.bias.detach().numpy()
    expected = np.array([[row + change(module, row) for row in rows] for rows in y])
    np.testing.assert_allclose(module(x).detach().numpy(), expected, rtol=1e-10)


def test_around_a_layer_norm_it_reads_the_normalised_sum_and_adds_before_it():
    torch.manual_seed(0)
    norm = nn.LayerNorm(5)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    module = filled(norm, 3, "relu")
    z = torch.randn(6, 5, dtype=torch.float64)
    expected = [normalised(norm, row + change(module, normalised(norm, row))) for row in z.numpy()]
    np.testing.assert_allclose(module(z).detach().numpy(), np.array(expected), rtol=1e-10)


def test_gpt_2_s_transposed_linear():
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    module = filled(Conv1D(5, 7), 2, "gelu")
    x = torch.randn(3, 7, dtype=torch.float64)
    y = x.numpy() @ module.base.weight.detach().numpy() + module.base.bias.detach().numpy()
    np.testing.assert_allclose(module(x).detach().numpy(), [r + change(module, r) for r in y], rtol=1e-10)


def test_what_it_can_follow():
    assert features_of(nn.Linear(3, 4)) == features_of(nn.LayerNorm(4)) == 4
    others = nn.Embedding(3, 4), nn.Conv2d(1, 4, 3), nn.LayerNorm((2, 4)), nn.ReLU()
    assert [features_of(other) for other in others] == [None] * 4


def test_gradients_reach_all_four_parameters_and_no_more(net):
    added = adarank.bottlenecks(net, places=["down"], activation="silu")
    for module in added.values():
        nn.init.normal_(module.up)
    net(torch.randn(4, 8)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for module in added.values() for p in module.parameters(recurse=False))
    assert {n for n, p in net.named_parameters() if p.grad is not None} == {
        f"{name}.{part}" for name in added for part in ("down", "down_bias", "up", "up_bias")
    }


@pytest.mark.usefixtures("safe_bf16")
def test_a_half_precision_base_keeps_its_dtype_and_the_bottleneck_trains_in_fp32(net):
    added = adarank.bottlenecks(net.to(torch.bfloat16), places=["down"])
    assert {p.dtype for module in added.values() for p in module.parameters(recurse=False)} == {torch.float32}
    x = torch.randn(4, 8, dtype=torch.bfloat16)
    net(x).float().sum().backward()
    assert net(x).dtype == torch.bfloat16
    assert added["layers.0.down"].up.grad.dtype == torch.float32


def test_disabled_is_the_base_inside_the_with_only(net):
    x, net = torch.randn(4, 8), net.eval()
    base = net(x)
    for module in adarank.bottlenecks(net, places=["down"]).values():
        nn.init.normal_(module.up)
    changed = net(x)
    assert not torch.allclose(changed, base)
    with adarank.disabled(net):
        assert torch.equal(net(x), base)
    assert torch.equal(net(x), changed)


def test_it_has_no_merge_and_no_ranks(net):
    adarank.bottlenecks(net, places=["down"])
    with pytest.raises(SettingError, match="bottleneck adapters cannot be merged"):
        adarank.merge(net)
    assert len(bottlenecks_of(net)) == 3
    assert adarank.ranks(net) == {}


@pytest.mark.parametrize("base", [nn.Linear(7, 5), nn.LayerNorm(5)])
def test_an_empty_batch_is_as_for_the_plain_layer(base):
    module = filled(base, 3, "gelu")
    width = 7 if isinstance(base, nn.Linear) else 5
    found = module(torch.randn(0, 4, width, dtype=torch.float64))
    assert found.shape == (0, 4, 5)
    found.sum().backward()
    assert not module.up.grad.any()
