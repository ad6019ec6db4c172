"""Where bottlenecks go in real architectures, and how wide they are."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import adarank
from adarank import SettingError
from adarank.adapters.bottleneck import norms_of, width_like_lora
from adarank.targets import resolve_places
from tests.conftest import Net

D, F, LAYERS = 32, 64, 2
SIZES = {
    "bert": {"hidden_size": D, "intermediate_size": F, "num_hidden_layers": LAYERS, "num_attention_heads": 2},
    "distilbert": {"dim": D, "hidden_dim": F, "n_layers": LAYERS, "n_heads": 2},
    "gpt2": {"n_embd": D, "n_inner": F, "n_layer": LAYERS, "n_head": 2},
    "t5": {"d_model": D, "d_ff": F, "num_layers": LAYERS, "num_heads": 2, "d_kv": 16},
    "llama": {"num_key_value_heads": 2},
    "vit": {"image_size": 8, "patch_size": 4, "num_channels": 1},
}
ARCHITECTURES = ("bert", "roberta", "electra", "deberta-v2", "distilbert", "gpt2", "llama", "t5", "vit")
# LoRA's d_in + d_out over the linears of one block, by hand: q, k, v, o of 32 → 32 and the FFN's 32 → 64, 64 → 32
PLAIN = 4 * 64 + 2 * 96
LINEARS = {
    **dict.fromkeys(ARCHITECTURES, LAYERS * PLAIN),
    "gpt2": LAYERS * ((32 + 96) + 64 + 2 * 96),  # q, k and v in one
    "llama": LAYERS * (4 * 64 + 3 * 96),  # gate, up, down
    "t5": LAYERS * PLAIN + LAYERS * (PLAIN + 4 * 64),  # encoder; decoder with cross-attention
}


def build(architecture):
    import transformers

    sizes = {**SIZES.get(architecture, {})}
    if architecture not in ("distilbert", "gpt2", "t5"):
        sizes |= SIZES["bert"]
    if architecture == "electra":
        sizes["embedding_size"] = D
    if architecture != "vit":
        sizes["vocab_size"] = 50
    config = transformers.AutoConfig.for_model(architecture, **sizes, pad_token_id=0)
    torch.manual_seed(0)
    return transformers.AutoModel.from_config(config).eval()


def inputs(architecture):
    if architecture == "vit":
        return {"pixel_values": torch.randn(2, 1, 8, 8)}
    ids = torch.randint(1, 50, (2, 5))
    return {"input_ids": ids, **({"decoder_input_ids": ids} if architecture == "t5" else {})}


def places(architecture, method):
    return resolve_places(architecture, method)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("method", ["houlsby", "pfeiffer"])
def test_places_counts_and_start(architecture, method):
    """One or two in a block, the function kept, parameters counted by hand, within half a unit of LoRA's."""
    model, given_inputs = build(architecture), inputs(architecture)
    with torch.no_grad():
        before = model(**given_inputs).last_hidden_state
    total = sum(p.numel() for p in model.parameters())
    added = adarank.bottlenecks(model, places(architecture, method), rank=4)
    blocks = 2 * LAYERS if architecture == "t5" else LAYERS
    n = blocks * (2 if method == "houlsby" else 1)
    assert len(added) == n, list(added)
    with torch.no_grad():
        assert torch.equal(model(**given_inputs).last_hidden_state, before)

    budget = 4 * LINEARS[architecture]
    width = round((budget - n * D) / (n * (2 * D + 1)))
    counts = adarank.trainable_parameters(model)
    assert counts["adapter"] == counts["kept"] == counts["trainable"] == n * (2 * width * D + width + D)
    assert abs(counts["adapter"] - budget) <= n * (2 * D + 1) / 2
    assert counts["total"] == total + counts["adapter"]

    for module in added.values():
        nn.init.normal_(module.up)
    model(**given_inputs).last_hidden_state.square().sum().backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for m in added.values() for p in m.parameters(recurse=False)
    )
    assert not torch.allclose(model(**given_inputs).last_hidden_state, before)


def test_houlsby_and_pfeiffer_in_a_bert_block_written_out():
    """arXiv 1902.00751, fig. 2, and AdapterHub's pre_forward for original_ln_before and residual_before_ln."""
    x = torch.randn(2, 5, D)

    def f(module, h, act):
        hidden = act(h @ module.down.T + module.down_bias)
        return hidden @ module.up.T + module.up_bias

    for method, act in (("houlsby", nn.functional.gelu), ("pfeiffer", torch.relu)):
        model = build("bert")
        adarank.bottlenecks(model, places("bert", method), activation="gelu" if method == "houlsby" else "relu")
        for p in (p for p in model.parameters() if p.requires_grad):
            nn.init.normal_(p, std=0.3)
        block = model.encoder.layer[0]
        heads = block.attention.self(x)[0]
        attention, output = block.attention.output, block.output
        if method == "houlsby":
            h = attention.dense.base(heads)
            a = attention.LayerNorm(h + f(attention.dense, h, act) + x)
            h = output.dense.base(block.intermediate(a))
            expected = output.LayerNorm(h + f(output.dense, h, act) + a)
        else:
            norm = output.LayerNorm.base
            a = attention.LayerNorm(attention.dense(heads) + x)
            h = output.dense(block.intermediate(a))
            expected = norm(h + f(output.LayerNorm, norm(h + a), act) + a)
        found = block(x)
        torch.testing.assert_close(found[0] if isinstance(found, tuple) else found, expected, rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(rank=st.integers(1, 12), targets=st.sampled_from([["up"], ["down"], "all-linear"]), norms=st.integers(0, 200))
def test_the_width_is_the_nearest_there_is(rank, targets, norms):
    model, names = Net(), ["layers.0.down", "layers.2.down", "layers.1.up"]
    width = width_like_lora(model, names, rank, targets, norms)
    d = {"layers.0.down": 12, "layers.2.down": 12, "layers.1.up": 20}
    budget = rank * 32 * {"up": 3, "down": 3, "all": 6}["all" if targets == "all-linear" else targets[0]]

    def gap(m):
        return abs(sum(2 * m * n + m + n for n in d.values()) + norms - budget)

    assert width >= 1
    assert gap(width) == min(gap(m) for m in range(1, 200))


def test_deberta_v3_base_s_widths_beside_adalora_s_table_7():
    """Rank 8 on all linears of 12 blocks of 768: there 32 and 64 for 1.2 M parameters, here a little above for 1.33
    M."""
    linears = nn.ModuleList(
        nn.ModuleList([nn.Linear(768, 768, device="meta") for _ in range(4)])
        + nn.ModuleList([nn.Linear(768, 3072, device="meta"), nn.Linear(3072, 768, device="meta")])
        for _ in range(12)
    )
    model = nn.ModuleDict({"layer": linears})
    houlsby = [f"layer.{i}.{j}" for i in range(12) for j in (3, 5)]
    assert width_like_lora(model, houlsby, 8, "all-linear") == 35
    assert width_like_lora(model, houlsby[1::2], 8, "all-linear") == 71


def test_norms_train_within_the_budget():
    model = build("bert")
    added = adarank.bottlenecks(model, places("bert", "houlsby"), rank=4, norms=True)
    counts = adarank.trainable_parameters(model)
    assert (
        counts["other"] == (1 + 2 * LAYERS) * 2 * D == sum(p.numel() for n in norms_of(model) for p in n.parameters())
    )
    assert abs(counts["trainable"] - 4 * LINEARS["bert"]) <= len(added) * (2 * D + 1) / 2
    assert all(p.requires_grad for norm in norms_of(model) for p in norm.parameters())
    assert len(norms_of(build("llama"))) == 2 * LAYERS + 1


def test_the_head_trains_and_modes_are_kept(net):
    net.eval()
    added = adarank.bottlenecks(net, r"layers\.\d\.down", train=["head"])
    assert not any(module.training for module in added.values())
    assert {n for n, p in net.named_parameters() if p.requires_grad and n.startswith("head")} == {
        "head.weight",
        "head.bias",
    }
    std = torch.cat([m.down.detach().flatten() for m in added.values()]).std().item()
    assert math.isclose(std, 0.02, rel_tol=0.2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"places": ["dwon"]}, "places='dwon' matches no projection or LayerNorm; similar names: down"),
        ({"places": []}, r"places must name at least one module \(got \[\]\)"),
        ({"places": "("}, r"places='\(' is neither a name nor a regular expression"),
        ({"places": ["down"], "rank": 0}, r"^rank must be a whole number of at least 1 \(got 0\)$"),
        ({"places": ["down"], "rank": True}, r"\(got True\)"),
        ({"places": ["down"], "activation": "sin"}, r"activation must be one of gelu, relu, silu \(got 'sin'\)"),
        ({"places": ["down"], "targets": ["nowhere"]}, "targets='nowhere' matches no module"),
        ({"places": ["down"], "train": ["haed"]}, "train='haed' matches no module; similar names: head"),
    ],
)
def test_bad_arguments_are_refused_and_change_nothing(net, arguments, says):
    before = {n: (type(m), m) for n, m in net.named_modules()}
    with pytest.raises(SettingError, match=says):
        adarank.bottlenecks(net, **arguments)
    assert {n: (type(m), m) for n, m in net.named_modules()} == before
    assert all(p.requires_grad for p in net.parameters())


def test_adapters_of_one_kind_a_model(net):
    adarank.bottlenecks(net, ["down"])
    for again in (lambda: adarank.bottlenecks(net, ["up"]), lambda: adarank.adapt(net), lambda: adarank.bitfit(net)):
        with pytest.raises(SettingError, match="the model already has adapters"):
            again()


def test_places_pass_by_name_and_unknown_architectures_say_what_to_do():
    assert resolve_places("mamba", ["out_proj"]) == ["out_proj"]
    with pytest.raises(SettingError, match=r"places=houlsby is not defined for the architecture mamba"):
        resolve_places("mamba", "houlsby")
