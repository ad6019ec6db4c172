import json
from copy import deepcopy

import pytest
import torch

import adarank
from adarank import SettingError


@pytest.fixture
def base(net):
    return net.eval()


@pytest.fixture
def saved(base, tmp_path):
    """(adapted model, folder) with a different rank in every module, one of them 0, and a changed head."""
    model = deepcopy(base)
    adapters = adarank.adapt(model, rank=4, dropout=0.1, train=["head"])
    with torch.no_grad():
        for i, adapter in enumerate(adapters.values()):
            adapter.lam.copy_(torch.randn(4))
            adapter.mask[: min(i, 4)] = False
        model.head.bias.add_(1.0)
    adarank.save_adapter(model.eval(), tmp_path / "adapter")
    return model, tmp_path / "adapter"


@pytest.mark.parametrize("kind", ["svd", "lora"])
def test_a_saved_adapter_reloads_to_the_same_logits(base, tmp_path, kind):
    model, x = deepcopy(base), torch.randn(5, 8)
    adapters = adarank.adapt(model, kind, rank=3, alpha=5.0, train=["head"])
    with torch.no_grad():
        for adapter in adapters.values():
            adapter.P.copy_(torch.randn(adapter.P.shape))
    adarank.save_adapter(model, tmp_path)
    again = deepcopy(base)
    adarank.load_adapter(again, tmp_path)
    assert torch.equal(again(x), model.eval()(x))
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }


def test_pruned_triplets_are_left_out_and_rank_0_survives(base, saved):
    model, folder = saved
    again, x = deepcopy(base), torch.randn(5, 8)
    adarank.load_adapter(again, folder)
    torch.testing.assert_close(again(x), model(x))
    assert list(adarank.ranks(again).values()) == [4, 3, 2, 1, 0, 0]
    assert adarank.ranks(again) == adarank.ranks(model)
    assert sorted(p.name for p in folder.iterdir()) == ["adapter.json", "adapter.safetensors"]


def refused(model, folder) -> str:
    before = {n: p.clone() for n, p in model.state_dict().items()}
    trainable = [p.requires_grad for p in model.parameters()]
    with pytest.raises(SettingError) as error:
        adarank.load_adapter(model, folder)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == trainable
    assert "\n" not in str(error.value)
    return str(error.value)


def test_another_base_is_refused_with_the_differing_shapes(base, saved):
    _, folder = saved
    base.layers[1].up = torch.nn.Linear(12, 21)
    assert "layers.1.up is 12 → 20 there, 12 → 21 here" in refused(base, folder)


def test_a_missing_module_and_another_head_are_refused(base, saved):
    _, folder = saved
    shorter = deepcopy(base)
    del shorter.layers[2]
    assert "layers.2.up, near names here" in refused(shorter, folder)
    base.head = torch.nn.Linear(12, 4)
    assert "head.weight is (3, 12) there, (4, 12) here" in refused(base, folder)


def test_damaged_and_missing_files_are_refused(base, saved, tmp_path):
    _, folder = saved
    assert "holds no adapter.json" in refused(base, tmp_path / "nowhere")
    whole = (folder / "adapter.safetensors").read_bytes()
    (folder / "adapter.safetensors").write_bytes(whole[: len(whole) // 2])
    assert "is damaged" in refused(base, folder)
    (folder / "adapter.safetensors").write_bytes(whole)
    description = json.loads((folder / "adapter.json").read_text())
    del description["modules"]["layers.0.up"]
    (folder / "adapter.json").write_text(json.dumps(description))
    assert "its two files disagree about layers.0.up" in refused(base, folder)
    (folder / "adapter.json").write_text("{")
    assert "is damaged" in refused(base, folder)
    (folder / "adapter.json").write_text(json.dumps({**description, "format": 99}))
    assert "not of format 1" in refused(base, folder)


def test_an_adapted_or_merged_model_is_told_what_to_do(base, saved):
    model, folder = saved
    assert "already has adapters" in refused(model, folder)
    adarank.merge(model)
    with pytest.raises(SettingError, match=r"adarank\.unmerge first"):
        adarank.save_adapter(model, folder)
