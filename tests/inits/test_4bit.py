"""A 4-bit base: EVA only listens and works; an init that needs its gradient or changes its weight is refused."""

import pytest
import torch
from torch import nn

import adarank
from adarank import SettingError
from adarank.adapters.lowrank import adapters_of


@pytest.fixture
def quantised():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    for i, plain in enumerate(model):
        layer = bitsandbytes.nn.Linear4bit(64, 64, quant_type="nf4", compute_dtype=torch.float32)
        layer.load_state_dict(plain.state_dict())
        model[i] = layer.to("cpu")
    return model.requires_grad_(False)


def test_eva_keeps_the_function_of_a_4_bit_base(quantised):
    x = torch.randn(50, 64)
    expected = quantised(x)
    adapters = adarank.adapt(quantised, rank=3, init=adarank.inits.eva(tau=0.0), batches=[(x,), (x,)])
    torch.testing.assert_close(quantised(x), expected)
    _, _, directions = torch.linalg.svd(x - x.mean(0))
    adapter = adapters["0"]
    cosine = (adapter.Q * directions[: adapter.rank]).sum(1).abs()
    torch.testing.assert_close(cosine, torch.ones_like(cosine), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("init", ["pissa", "olora", "milora", "corda", "lora_ga", "gora", "lora_one"])
def test_the_others_are_refused_and_nothing_changes(quantised, init):
    with pytest.raises(SettingError, match=rf"init={init} .*(4-bit|quantised)") as error:
        adarank.adapt(quantised, rank=3, init=init, batches=[(torch.randn(5, 64),)])
    assert "\n" not in str(error.value)
    assert not adapters_of(quantised)
