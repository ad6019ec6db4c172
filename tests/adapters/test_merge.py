from copy import deepcopy

import pytest
import torch
import transformers
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


def test_disabled_may_be_nested_and_ends_with_an_error(trained):
    x = torch.randn(5, 8)
    adapted = trained(x)
    with adarank.disabled(trained):
        base = trained(x)
        with adarank.disabled(trained):
            pass
        assert torch.equal(trained(x), base)
    with pytest.raises(ZeroDivisionError), adarank.disabled(trained):
        raise ZeroDivisionError
    assert torch.equal(trained(x), adapted)
    assert not torch.equal(base, adapted)


@pytest.mark.parametrize("training", [True, False])
def test_adapters_come_back_in_the_mode_that_the_model_has_by_then(trained, training):
    adarank.merge(trained.train(not training))
    adarank.unmerge(trained.train(training))
    assert {module.training for module in trained.modules()} == {training}


def test_merging_what_has_no_adapters_is_refused(net):
    with pytest.raises(SettingError, match="no adapters to merge"):
        adarank.merge(net)
    with pytest.raises(SettingError, match="nothing to unmerge"):
        adarank.unmerge(net)


def refuses_to_unmerge(model, says):
    """`unmerge` is refused, and neither what the model computes nor what it consists of has changed."""
    x = torch.randn(5, 8)
    before, modules, ranks = model(x), dict(model.named_modules()), adarank.ranks(model)
    with pytest.raises(SettingError, match=says):
        adarank.unmerge(model)
    assert torch.equal(model(x), before)
    assert dict(model.named_modules()) == modules
    assert adarank.ranks(model) == ranks


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("targets", ["all-linear", "embed"])
def test_newer_adapters_are_not_thrown_away_by_unmerging(trained, tmp_path, copies, targets):
    adarank.merge(trained)
    model = deepcopy(trained) if copies else trained
    newer = adarank.adapt(model, rank=2, targets=targets)
    with torch.no_grad():
        for adapter in newer.values():
            adapter.lam.fill_(3.0)
    refuses_to_unmerge(model, "the model was adapted again after the merge")
    adarank.save_adapter(model, tmp_path)
    x = torch.randn(5, 8)
    expected = model(x)
    adarank.merge(model)
    adarank.unmerge(model)  # the newer merge
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert set(adarank.ranks(model)) == set(newer)


def test_unmerging_after_loading_or_inserting_others_or_replacing_a_module_is_refused(trained, tmp_path):
    adarank.save_adapter(trained, tmp_path)
    adarank.merge(trained)
    with pytest.raises(SettingError, match="no adapters to merge"):
        adarank.merge(trained)
    loaded, inserted, replaced = (deepcopy(trained) for _ in range(3))
    adarank.load_adapter(loaded, tmp_path)
    adarank.bottlenecks(inserted, ["down"], 2)
    replaced.layers[0].up = nn.Linear(12, 20)
    refuses_to_unmerge(loaded, "adapted again after the merge")
    refuses_to_unmerge(inserted, "adapted again after the merge")
    refuses_to_unmerge(replaced, r"layers\.0\.up was replaced after the merge")
    adarank.unmerge(trained)


def test_a_weight_that_is_computed_since_the_merge_is_not_unmerged(trained):
    adarank.merge(trained)
    torch.nn.utils.parametrizations.weight_norm(trained.layers[1].up)
    refuses_to_unmerge(trained, r"the weight of layers\.1\.up cannot be changed by ΔW: its weight is computed")


def small_llama():
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 50}
    config = transformers.LlamaConfig(
        **sizes, num_attention_heads=2, num_key_value_heads=2, bos_token_id=1, eos_token_id=2
    )
    return transformers.LlamaForCausalLM(config)


@pytest.mark.filterwarnings("ignore:merging into a 4-bit base")
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_a_merged_4_bit_model_is_saved_and_loaded_by_transformers(tmp_path, targets):
    torch.manual_seed(0)
    small_llama().save_pretrained(tmp_path / "base")
    four_bit = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(tmp_path / "base", device_map="cpu", quantization_config=four_bit).eval()
    before = deepcopy(model.config.to_dict())
    with torch.no_grad():
        for adapter in adarank.adapt(model, rank=2, targets=targets).values():
            adapter.lam.normal_()
    x = torch.randint(3, 50, (2, 6))
    adapted = model(input_ids=x).logits
    adarank.merge(model)
    expected = model(input_ids=x).logits
    assert (expected - adapted).abs().max() < 1e-4
    copy = deepcopy(model)
    for saved in (model, copy):
        saved.save_pretrained(tmp_path / "merged")
        again = load(tmp_path / "merged", device_map="cpu").eval()
        kinds = [(type(a), type(b)) for a, b in zip(again.modules(), model.modules(), strict=True)]
        assert all(a is b for a, b in kinds)
        assert torch.equal(again(input_ids=x).logits, expected)
        assert hasattr(saved.config, "quantization_config") == (targets != "all-linear")
    assert getattr(model, "is_quantized", False) == (targets != "all-linear")
    for merged in (model, copy):
        adarank.unmerge(merged)
        torch.testing.assert_close(merged(input_ids=x).logits, adapted)
        assert merged.config.to_dict() == before
        assert merged.is_quantized
        assert merged.hf_quantizer is not None
