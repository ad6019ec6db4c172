import pytest
import torch
from torch import nn

import adarank
from adarank import SettingError


def trains(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_every_bias_and_the_head_train(net):
    net.layers.append(nn.LayerNorm(12))
    biases = adarank.bitfit(net, train=["head"])
    blocks = {f"layers.{i}.{side}.bias" for i in range(3) for side in ("up", "down")}
    assert set(biases) == blocks | {"embed.bias", "layers.3.bias", "head.bias"}
    assert trains(net) == set(biases) | {"head.weight"}
    counts = adarank.trainable_parameters(net)
    assert counts["other"] == counts["trainable"] == 3 * (20 + 12) + 12 + 12 + 3 + 3 * 12
    assert counts["adapter"] == counts["kept"] == 0


@pytest.mark.parametrize(
    ("architecture", "count"),
    [("bert", 2 * (4 * 32 + 64 + 32 + 2 * 32) + 32 + 32), ("distilbert", 2 * (4 * 32 + 64 + 32 + 2 * 32) + 32)],
)
def test_counts_written_out(architecture, count):
    """A block: q, k, v, o and the FFN's up and down, two LayerNorms; and the embeddings' LayerNorm, BERT's pooler."""
    from tests.adapters.test_insert import build

    model = build(architecture)
    adarank.bitfit(model)
    assert adarank.trainable_parameters(model)["trainable"] == count


def test_the_head_alone(net):
    found = adarank.head(net, train=["head"])
    assert trains(net) == set(found) == {"head.weight", "head.bias"}


def test_refusals_change_nothing(net):
    bare = nn.Sequential(nn.Linear(2, 2, bias=False))
    for model, call, says in (
        (bare, lambda: adarank.bitfit(bare), "Sequential has no bias, so BitFit would train nothing"),
        (net, lambda: adarank.bitfit(net, ["haed"]), "train='haed' matches no module; similar names: head"),
        (net, lambda: adarank.head(net, []), r"there is no head to train: .* \(train=\[\]\)"),
        (net, lambda: adarank.head(net, ["haed"]), "train='haed' matches no module"),
    ):
        with pytest.raises(SettingError, match=says):
            call()
        assert all(p.requires_grad for p in model.parameters())


def test_disabled_cannot_give_the_base_back(net):
    adarank.bitfit(net)
    with torch.no_grad():
        net.embed.bias.add_(1.0)
    with pytest.raises(SettingError, match="no adapters to bypass"), adarank.disabled(net):
        pass
    with pytest.raises(SettingError, match="no adapters to merge"):
        adarank.merge(net)
