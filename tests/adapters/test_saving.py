import json
from copy import deepcopy

import pytest
import torch
from torch import nn

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
    loaded = adarank.load_adapter(again, folder)
    torch.testing.assert_close(again(x), model(x))
    assert {(adapter.dropout, adapter.training) for adapter in loaded.values()} == {(0.1, False)}
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
    assert "layers.2.up; similar names here" in refused(shorter, folder)
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
    assert "must have format 1" in refused(base, folder)


def test_an_adapted_or_merged_model_is_told_what_to_do(base, saved):
    model, folder = saved
    assert "already has adapters" in refused(model, folder)
    adarank.merge(model)
    with pytest.raises(SettingError, match=r"adarank\.unmerge first"):
        adarank.save_adapter(model, folder)


def houlsby(model):
    return adarank.bottlenecks(model, ["down"], rank=2, activation="relu", norms=True, train=["head"])


def pfeiffer(model):
    """Around LayerNorms that train, too: their parameters are saved by their names in the base."""
    return adarank.bottlenecks(model, ["norm"], rank=2, norms=True)


def bitfit(model):
    return adarank.bitfit(model, ["head"])


def head(model):
    return adarank.head(model, ["head"])


BASELINES = (houlsby, pfeiffer, bitfit, head)


class Normed(torch.nn.Module):
    """A post-norm block, 12 -> 20 -> 12."""

    def __init__(self, up, down):
        super().__init__()
        self.up, self.down, self.norm = up, down, torch.nn.LayerNorm(12)

    def forward(self, x):
        return self.norm(x + self.down(torch.tanh(self.up(x))))


@pytest.fixture
def normed(net):
    net.layers = torch.nn.ModuleList(Normed(layer.up, layer.down) for layer in net.layers)
    return net.eval()


def trained_baseline(base, method):
    """A copy of `base` made ready, everything that trains changed; and what to train is known by name."""
    model = deepcopy(base)
    method(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape))
    return model.eval()


@pytest.mark.parametrize("method", BASELINES)
def test_a_baseline_reloads_into_a_fresh_base_to_the_same_logits(normed, tmp_path, method):
    base, x = normed, torch.randn(5, 8)
    model = trained_baseline(base, method)
    adarank.save_adapter(model, tmp_path)
    again = deepcopy(base)
    state = torch.get_rng_state()
    loaded = adarank.load_adapter(again, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(again(x), model(x))
    assert not torch.allclose(again(x), base(x))
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    assert len(loaded) == (3 if method in (houlsby, pfeiffer) else 0)
    assert adarank.trainable_parameters(again) == adarank.trainable_parameters(model)
    whole = {p.data_ptr(): p.numel() for p in model.parameters() if p.requires_grad}
    description = json.loads((tmp_path / "adapter.json").read_text())
    assert not any(".base." in name for name in description["trained"])
    assert sum(whole.values()) * 4 < (tmp_path / "adapter.safetensors").stat().st_size < sum(whole.values()) * 4 + 4096


@pytest.mark.parametrize("method", BASELINES)
def test_a_baseline_of_another_base_is_refused(normed, tmp_path, method):
    adarank.save_adapter(trained_baseline(normed, method), tmp_path)
    other = deepcopy(normed)
    if method not in (houlsby, pfeiffer):
        other.head = torch.nn.Linear(12, 4)
        assert "was made for another base: head." in refused(other, tmp_path)
        return
    place = "down" if method is houlsby else "norm"
    del other.layers[2]
    assert f"it adapts layers.2.{place}; similar names here" in refused(other, tmp_path)
    wider = deepcopy(normed)
    wider.layers[1].down, wider.layers[1].norm = torch.nn.Linear(20, 13), torch.nn.LayerNorm(13)
    assert f"the output of layers.1.{place} has 12 features there, 13 here" in refused(wider, tmp_path)


def test_a_damaged_bottleneck_is_refused(normed, tmp_path):
    adarank.save_adapter(trained_baseline(normed, houlsby), tmp_path)
    whole = json.loads((tmp_path / "adapter.json").read_text())

    def written(**changes):
        module = {**whole["modules"]["layers.0.down"], **changes}
        changed = {**whole, "modules": {**whole["modules"], "layers.0.down": module}}
        (tmp_path / "adapter.json").write_text(json.dumps(changed))
        return refused(normed, tmp_path)

    width = whole["modules"]["layers.0.down"]["width"]
    assert f"layers.0.down.down is ({width}, 12) there, ({width + 1}, 12) here" in written(width=width + 1)
    assert "layers.0.down has the activation 'sin'" in written(activation="sin")
    (tmp_path / "adapter.json").write_text(json.dumps({**whole, "kind": "svd"}))
    assert "layers.0.down lacks its in_features" in refused(normed, tmp_path)
    (tmp_path / "adapter.json").write_text(json.dumps({**whole, "kind": "prefix"}))
    assert "kind, dropout, modules or trained is missing or unknown" in refused(normed, tmp_path)
    (tmp_path / "adapter.json").write_text(json.dumps(whole))
    adarank.load_adapter(normed, tmp_path)
    assert "already has adapters" in refused(normed, tmp_path)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_model_with_nothing_adapted_is_not_saved(base, tmp_path, frozen):
    """All of it trains, or none: full fine-tuning is a state dict, not an adapter."""
    base.requires_grad_(not frozen)
    with pytest.raises(SettingError, match="the model has no adapters to save"):
        adarank.save_adapter(base, tmp_path)
    assert not list(tmp_path.iterdir())


class Tied(nn.Module):
    """A language model in miniature, whose output matrix may be its embedding."""

    def __init__(self, ties):
        super().__init__()
        self.embed, self.inner, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9, bias=False)
        if ties:
            self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.inner(self.embed(ids)))


def tied(ties):
    torch.manual_seed(0)
    model = Tied(ties)
    with torch.no_grad():
        model.head.weight.copy_(model.embed.weight)  # the same base, tied or not
    return model


@pytest.mark.parametrize("trains", ["head", "embed"])
def test_a_trained_matrix_that_is_tied_to_another_is_loaded_into_both(tmp_path, trains):
    model, ids = tied(True), torch.arange(9)
    nn.init.normal_(adarank.adapt(model, rank=2, targets=["inner"], train=[trains])["inner"].lam)
    nn.init.normal_(model.embed.weight)
    adarank.save_adapter(model, tmp_path / "ours")
    adarank.to_peft(model, tmp_path / "peft")
    for ties in (True, False):
        for load, folder in ((adarank.load_adapter, "ours"), (adarank.from_peft, "peft")):
            fresh = tied(ties)
            load(fresh, tmp_path / folder)
            assert torch.equal(fresh.head.weight, model.head.weight)
            torch.testing.assert_close(fresh(ids), model(ids))
            assert fresh.head.weight.requires_grad
            assert fresh.embed.weight.requires_grad
    expected = model(ids)
    adarank.merge(model)
    torch.testing.assert_close(model(ids), expected)
    assert model.head.weight is model.embed.weight


@pytest.mark.parametrize("train", [["head"], ["head", "embed"]])
def test_what_was_trained_untied_is_not_loaded_into_a_model_that_ties_it(tmp_path, train):
    model = tied(False)
    nn.init.ones_(adarank.adapt(model, "lora", rank=2, targets=["inner"], train=train)["inner"].P)
    nn.init.normal_(model.head.weight)
    adarank.save_adapter(model, tmp_path / "ours")
    adarank.to_peft(model, tmp_path / "peft")
    for load, folder in ((adarank.load_adapter, "ours"), (adarank.from_peft, "peft")):
        fresh = tied(True)
        before = fresh.head.weight.clone()
        with pytest.raises(SettingError, match=r"was made for another base: it (trained|has two values)"):
            load(fresh, tmp_path / folder)
        assert type(fresh.inner) is nn.Linear
        assert torch.equal(fresh.head.weight, before)


def test_class_names_come_back_into_a_config_with_as_many(tmp_path):
    from tests.integrations.models import bert

    model = bert()
    adarank.adapt(model, rank=2, targets=["query"], train=["classifier"])
    model.config.id2label, model.config.label2id = {0: "no", 1: "yes", 2: "both"}, {"no": 0, "yes": 1, "both": 2}
    adarank.save_adapter(model, tmp_path)
    again = bert()
    adarank.load_adapter(again, tmp_path)
    assert again.config.id2label == {0: "no", 1: "yes", 2: "both"}
    assert again.config.label2id["both"] == 2
