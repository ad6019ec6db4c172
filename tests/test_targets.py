"""What selects modules: shorthands by architecture, suffixes, blocks."""

import pkgutil
from types import ModuleType

import pytest
import torch

import adarank
from adarank.adapters.layers import CONV1D, LINEAR, layer_of
from adarank.errors import SettingError
from adarank.harness.models import Base, tiny
from adarank.runs.modules import place_of
from adarank.targets import block_linears, find_targets, resolve_targets

SHORT = ("qv", "qkv", "attention", "mlp", "all")


@pytest.mark.parametrize(
    ("architecture", "counts"),
    [
        ("bert", (2, 3, 4, 2, 6)),
        ("roberta", (2, 3, 4, 2, 6)),
        ("distilbert", (2, 3, 4, 2, 6)),
        ("deberta_v2", (2, 3, 4, 2, 6)),
        ("llama", (2, 3, 4, 3, 7)),
        ("t5", (6, 9, 12, 4, 16)),
        ("bart", (6, 9, 12, 4, 16)),
        ("gpt2", (None, 1, 2, 2, 4)),
        ("gpt_neox", (None, 1, 2, 2, 4)),
        ("modernbert", (None, 1, 2, 2, 4)),
    ],
)
def test_shorthands_reach_the_right_modules(architecture, counts):
    base = tiny(architecture, width=32, layers=1)
    for shorthand, count in zip(SHORT, counts, strict=True):
        if count is None:
            with pytest.raises(SettingError, match=r"targets=qv .* q and v lie in one matrix, \w+, .* targets=qkv"):
                resolve_targets(base, shorthand, None)
            continue
        built = base.build(2)
        found = adarank.adapt(built.model, rank=1, targets=resolve_targets(base, shorthand, None))
        assert len(found) == count, (shorthand, list(found))


@pytest.mark.parametrize(
    ("kind", "counts"),
    [("vit", (2, 3, 4, 2, 6)), ("opt", (2, 3, 4, 2, 6)), ("phi", (2, 3, 4, 2, 6)), ("phi3", (None, 1, 2, 2, 4))],
)
def test_shorthands_of_architectures_without_a_tiny_model(kind, counts):
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    sizes |= {"num_key_value_heads": 2, "ffn_dim": 64, "word_embed_proj_dim": 32, "vocab_size": 50, "pad_token_id": 0}
    known = transformers.AutoConfig.for_model(kind)
    config = transformers.AutoConfig.for_model(kind, **{k: v for k, v in sizes.items() if hasattr(known, k)})
    base = Base(kind, "f", kind, lambda _: None)
    for shorthand, count in zip(SHORT, counts, strict=True):
        if count is not None:
            model = transformers.AutoModel.from_config(config)
            found = adarank.adapt(model, rank=1, targets=resolve_targets(base, shorthand, None))
            assert len(found) == count, (shorthand, list(found))
        if shorthand == "all":
            assert list(found) == find_targets(transformers.AutoModel.from_config(config), "all-linear")


@pytest.mark.filterwarnings("ignore:no adapter can wrap")
def test_the_word_experts_reaches_stacked_experts_and_all_linear_names_them():
    base = tiny("mixtral", width=32, layers=1)
    experts = [f"model.layers.0.mlp.experts.{part}_proj.{e}" for part in ("gate_up", "down") for e in range(8)]
    assert list(adarank.adapt(base.build(2).model, rank=1, targets=resolve_targets(base, "experts", None))) == experts
    with pytest.warns(
        UserWarning, match=r"leave out the experts in model\.layers\.0\.mlp\.experts\.gate_up_proj, .*down_proj"
    ):
        assert len(adarank.adapt(base.build(2).model, rank=1, targets="all-linear")) == 4
    mixed = adarank.adapt(base.build(2).model, rank=1, targets=resolve_targets(base, "all", ["experts", "q_proj"]))
    assert list(mixed) == ["model.layers.0.self_attn.q_proj", *experts]


def test_a_map_in_the_yaml_overrules_and_unknown_architectures_say_what_to_do():
    base = Base("x", "f", "bert", lambda _: None, {"qv": ["a", "b"]})
    assert resolve_targets(base, "qv", None) == ["a", "b"]
    assert resolve_targets(base, "qv", ["c"]) == ["c"]
    with pytest.raises(SettingError, match=r"^targets must be one of model\.targets: qv \(got all\)$"):
        resolve_targets(base, "all", None)
    odd = Base("x", "f", "mamba", lambda _: None)
    assert resolve_targets(odd, "all", None) == "all-linear"
    assert resolve_targets(odd, "all", ["in_proj"]) == ["in_proj"]
    with pytest.raises(SettingError, match="is not defined for the architecture mamba"):
        resolve_targets(odd, "qv", None)


@pytest.mark.parametrize("architecture", ["bert", "mpnet", "bart", "t5", "llama", "gpt2", "vit"])
def test_the_linears_of_the_blocks_are_those_whose_names_say_so(architecture):
    """By the modules' types (`block_linears`) as by their names (`place_of`, which reads finished runs' names)."""
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "d_kv": 16}
    sizes |= {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "n_embd": 32, "n_layer": 2, "n_head": 2}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    sizes |= {"num_layers": 2, "num_heads": 2, "d_ff": 64, "vocab_size": 50, "pad_token_id": 0}
    known = transformers.AutoConfig.for_model(architecture)
    config = transformers.AutoConfig.for_model(architecture, **{k: v for k, v in sizes.items() if hasattr(known, k)})
    model = transformers.AutoModel.from_config(config)
    found = block_linears(model)
    linears = [n for n, m in model.named_modules() if layer_of(m) in (LINEAR, CONV1D)]
    assert found == [n for n in linears if place_of(n).block is not None]
    stacks = {place_of(name).stack for name in found}
    assert len(stacks) == (2 if architecture in ("bart", "t5") else 1)
    assert all(isinstance(model.get_submodule(stack), torch.nn.ModuleList) for stack in stacks)


def test_no_module_shares_its_name_with_a_public_function():
    """`import adarank.NAME` would put the module in the function's place."""
    names = {module.name for module in pkgutil.iter_modules(adarank.__path__)}
    assert not names & {name for name in adarank.__all__ if not isinstance(getattr(adarank, name), ModuleType)}
