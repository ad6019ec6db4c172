"""What selects modules: shorthands by architecture, suffixes, blocks."""

import hashlib
import json
import pkgutil
from types import ModuleType

import pytest
import torch
import transformers
from torch import nn

import adarank
from adarank.adapters.layers import CONV1D, LINEAR, layer_of
from adarank.errors import SettingError
from adarank.harness.data.task_types import TASK_TYPES
from adarank.harness.models import Base, byte_tokenizer, local, tiny
from adarank.runs.modules import place_of
from adarank.targets import (
    _PARTS,
    TARGETS,
    block_linears,
    find_targets,
    projections,
    recognise_targets,
    resolve_targets,
)
from experiments.architectures import architectures
from tests.representatives import representatives

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
def test_shorthands_of_architectures_that_the_table_does_not_name(kind, counts):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    sizes |= {"num_key_value_heads": 2, "ffn_dim": 64, "word_embed_proj_dim": 32, "vocab_size": 50, "pad_token_id": 0}
    known = transformers.AutoConfig.for_model(kind)
    config = transformers.AutoConfig.for_model(kind, **{k: v for k, v in sizes.items() if hasattr(known, k)})

    def skeleton(task_type):
        with torch.device("meta"):
            return transformers.AutoModel.from_config(config)

    base = Base(kind, "f", kind, lambda _: None, skeleton=skeleton)
    for shorthand, count in zip(SHORT, counts, strict=True):
        if count is None:
            with pytest.raises(
                SettingError, match=r"^targets=qv cannot be adapted in the architecture phi3, where q and v"
            ):
                resolve_targets(base, shorthand)
            continue
        model = transformers.AutoModel.from_config(config)
        found = adarank.adapt(model, rank=1, targets=resolve_targets(base, shorthand))
        assert len(found) == count, (shorthand, list(found))
        if shorthand == "all":
            assert list(found) == find_targets(transformers.AutoModel.from_config(config), "all-linear")


def test_the_strings_that_name_runs_never_change():
    """Of every architecture in the table, as they were when the first runs were named."""
    found = {}
    for architecture in _PARTS:
        for shorthand in TARGETS:
            base = Base("x", "f", architecture, lambda _: None)
            try:
                found[f"{architecture} {shorthand}"] = resolve_targets(base, shorthand)
            except SettingError as error:
                found[f"{architecture} {shorthand}"] = str(error)
    assert found["bert qkv"] == r".*\.attention\.self\.query|.*\.attention\.self\.key|.*\.attention\.self\.value"
    digest = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    assert digest == "1e603ed3320e70f8474210be6ef1de3f4173ff92be3a57e78e94ee7ed3723f3f"


def test_the_expression_of_a_recognised_architecture_enters_identities_and_depends_on_no_depth():
    """It names runs, too: whole names in a fixed order, with every number left open."""
    for depth in (2, 3):
        model = on_meta("opt", num_hidden_layers=depth)
        assert recognise_targets(model, "qkv") == "|".join(
            rf"model\.decoder\.layers\.\d+\.self_attn\.{letter}_proj" for letter in "qkv"
        )


def on_meta(kind, **settings):
    config = transformers.AutoConfig.for_model(kind, **settings)
    with torch.device("meta"):
        return getattr(transformers, architectures()[kind][1]).from_config(config)


@pytest.mark.parametrize("architecture", representatives(sorted(_PARTS), ("bert", "gpt2", "t5")))
def test_what_is_recognised_is_what_the_table_says(architecture):
    model = on_meta(architecture)
    for shorthand, wanted in TARGETS.items():
        expressions = [expression for part, expression in _PARTS[architecture].items() if {*part} <= {*wanted}]
        if "mlp" in wanted:
            expressions.append(_PARTS[architecture]["mlp"])
        expected = find_targets(model, "|".join(expressions)) if expressions else []
        if shorthand == "qv" and "qkv" in _PARTS[architecture]:
            continue
        assert find_targets(model, recognise_targets(model, shorthand)) == expected, shorthand


@pytest.mark.parametrize(
    ("kind", "shorthand", "sentence"),
    [
        ("mamba", "qkv", r"cannot be adapted in the architecture mamba, which has no attention; use targets=all, or "
                         r"target_modules=\[…\] with names of its blocks \(mixer\.in_proj, mixer\.x_proj, mixer\.dt_proj, "
                         r"mixer\.out_proj\)$"),
        ("rwkv", "attention", r"cannot be adapted in the architecture rwkv, which has no attention; .*attention\.receptance"),
        ("resnet", "qv", r"cannot be adapted in the architecture resnet, which has no attention; .*\.convolution"),
        ("xlnet", "qkv", r"is not recognised in the architecture xlnet; use targets=all, or target_modules=\[…\] with "
                         r"names of its blocks \(ff\.layer_1, ff\.layer_2\)$"),
        ("squeezebert", "qkv", r"is not recognised in the architecture squeezebert; .*attention\.query"),
        ("mamba", "mlp", r"is not recognised in the architecture mamba"),
        ("deepseek_v2", "qv", r"cannot be adapted in the architecture deepseek_v2, where k and v lie in one matrix, "
                              r"kv_b_proj; use targets=qkv, which adapts that matrix$"),
        ("falcon", "qv", r".*, where q and v lie in one matrix, query_key_value, together with k; use targets=qkv"),
    ],
)  # fmt: skip
def test_what_cannot_be_resolved_is_refused_with_the_names_of_the_blocks(kind, shorthand, sentence):
    with pytest.raises(SettingError, match=f"^targets={shorthand} {sentence}"):
        recognise_targets(on_meta(kind, **{"num_hidden_layers": 2} if kind != "resnet" else {}), shorthand, kind)


class Block(nn.Module):
    """The second block of two lacks what the first has, as in models whose layers share keys and values."""

    def __init__(self, names):
        super().__init__()
        self.attn = Attention(names)
        self.other = nn.ModuleDict({"q_proj": nn.Linear(4, 4), "in_proj": nn.Linear(4, 12)})
        self.mlp = nn.ModuleDict({"up_proj": nn.Linear(4, 8), "down_proj": nn.Linear(8, 4), "router": nn.Linear(4, 2)})


class Attention(nn.Module):
    def __init__(self, names):
        super().__init__()
        for name in names:
            self.add_module(name, nn.Linear(4, 4))


def test_a_class_of_attention_is_recognised_by_any_of_its_modules_and_half_an_attention_is_none():
    first, second = ("q_proj", "k_proj", "v_proj", "g_proj", "pos_key_proj", "out_proj"), ("q_proj", "out_proj")
    model = nn.ModuleDict({"blocks": nn.ModuleList([Block(first), Block(second)]), "q_proj": nn.Linear(4, 4)})
    assert projections(model) == {
        "q": ["blocks.0.attn.q_proj", "blocks.1.attn.q_proj"],
        "k": ["blocks.0.attn.k_proj"],
        "v": ["blocks.0.attn.v_proj"],
        "o": ["blocks.0.attn.out_proj", "blocks.1.attn.out_proj"],
        "mlp": [f"blocks.{i}.mlp.{name}" for i in (0, 1) for name in ("up_proj", "down_proj")],
    }


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


def test_a_saved_model_is_resolved_from_its_config_alone(tmp_path):
    """As for the run's name, before anything is built: the names are those of the model that is built later."""
    config = transformers.AutoConfig.for_model(
        "mpnet", hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=260
    )
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    base = local(str(tmp_path))
    assert {parameter.device.type for parameter in base.skeleton(TASK_TYPES["classify"]).parameters()} == {"meta"}
    for weights in tmp_path.glob("*.safetensors"):
        weights.rename(weights.with_suffix(".moved"))
    found = resolve_targets(base, "qkv", task_type=TASK_TYPES["classify"])
    for weights in tmp_path.glob("*.moved"):
        weights.rename(weights.with_suffix(".safetensors"))
    assert found == "|".join(rf"mpnet\.encoder\.layer\.\d+\.attention\.attn\.{letter}" for letter in "qkv")
    assert len(adarank.adapt(base.build(2).model, rank=1, targets=found)) == 6
