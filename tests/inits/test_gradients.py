from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import adarank
from adarank import SettingError
from adarank.inits.gradients import weight_gradients
from tests.inits.conftest import Classifier, some_batches

NAMES = ["net.layers.0.up", "net.layers.2.down"]


def test_the_mean_gradient_of_the_batches():
    model = Classifier(torch.float64)
    batches = some_batches(5, dtype=torch.float64)
    found = weight_gradients(model, NAMES, batches, 3, "gora")
    model.eval()
    sum(model(**batch).loss for batch in batches[:3]).div(3).backward()
    for name in NAMES:
        torch.testing.assert_close(found[name], model.get_submodule(name).weight.grad)


def test_one_gradient_at_a_time():
    """While the backward pass runs no other weight, target or not, holds a gradient."""
    model = Classifier()
    held = []
    for name in NAMES:
        model.get_submodule(name).register_full_backward_hook(
            lambda *_: held.append([n for n, p in model.named_parameters() if p.grad is not None])
        )
    weight_gradients(model, NAMES, some_batches(2), 2, "gora")
    assert len(held) == 4
    assert all(not names for names in held)


class Mixed(nn.Module):
    """An embedding, a convolution over the sequence and GPT-2's linear."""

    def __init__(self):
        super().__init__()
        pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
        self.embed = nn.Embedding(11, 6)
        self.conv = nn.Conv2d(1, 4, 3)
        self.turned = pytorch_utils.Conv1D(5, 4)

    def forward(self, ids):
        x = self.conv(self.embed(ids).unsqueeze(1)).mean((2, 3))
        return {"loss": self.turned(x).square().sum()}


def test_every_layer_s_gradient_is_a_matrix_of_d_out_by_d_in():
    torch.manual_seed(0)
    model, ids = Mixed(), torch.randint(11, (3, 5))
    found = weight_gradients(model, ["embed", "conv", "turned"], [(ids,)], 1, "gora")
    model(ids)["loss"].backward()
    torch.testing.assert_close(found["embed"], model.embed.weight.grad.t())
    torch.testing.assert_close(found["conv"], model.conv.weight.grad.reshape(4, 9))
    torch.testing.assert_close(found["turned"], model.turned.weight.grad.t())


def test_batches_without_a_loss_and_quantised_weights_are_refused():
    model = Classifier()
    with pytest.raises(SettingError, match=r"init=gora needs gradients: .* has no loss"):
        weight_gradients(model, NAMES, [{"x": torch.randn(3, 8)}], 1, "gora")
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    model.net.layers[0].up.weight = nn.Parameter(torch.zeros(20, 12, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(SettingError, match=r"init=lora_ga needs the gradient of net\.layers\.0\.up's weight"):
        weight_gradients(model, NAMES, some_batches(1), 1, "lora_ga")


class Skips(Classifier):
    """The loss comes from the first block."""

    def forward(self, x, labels):
        return SimpleNamespace(loss=F.cross_entropy(self.net.head(self.net.layers[0](self.net.embed(x))), labels))


def test_a_layer_that_the_loss_does_not_reach_has_gradient_zero():
    found = weight_gradients(Skips(), NAMES, some_batches(1), 1, "gora")
    assert found["net.layers.0.up"].any()
    assert not found["net.layers.2.down"].any()


@pytest.mark.parametrize("init", ["pissa", "olora", "lora_ga", "gora"])
@pytest.mark.parametrize("kind", ["svd", "lora"])
def test_every_kind_of_layer_starts(init, kind):
    """The function is kept, but for GoRA's, whose loss falls."""
    torch.manual_seed(0)
    model, ids = Mixed(), torch.randint(11, (3, 5))
    before = model(ids)["loss"]
    adapters = adarank.adapt(model, kind, 2, ["embed", "conv", "turned"], init=init, batches=[(ids,)])
    after = model(ids)["loss"]
    if init == "gora":
        assert after < before
    else:
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    assert all(adapter.delta().norm() > 0 for adapter in adapters.values())
