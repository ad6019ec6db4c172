"""Exported adapters, loaded by PEFT itself in a separate process onto a freshly saved base: the same logits."""

import copy
import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import adarank
from adarank import SettingError
from adarank.harness.data.task_types import TASK_TYPES
from adarank.harness.models import tiny
from tests.conftest import Net
from tests.integrations.models import vit
from tests.mixtures import FAMILIES, mixture, rows
from tests.representatives import representatives

OTHER_TASKS = {"answers": ("bert", "extract"), "summaries": ("bart", "seq2seq")}
ARCHITECTURES = ("bert", "deberta_v2", "gpt2", "llama", "t5", "vit", "roberta", "distilbert")


def built(arch):
    torch.manual_seed(0)
    if arch == "vit":
        return vit(), {"pixel_values": torch.randn(3, 3, 16, 16)}
    if arch in FAMILIES:
        return mixture(arch), {"input_ids": rows()}
    ids = torch.randint(4, 200, (3, 9))
    ids[:, -1] = 3  # the end token, by which encoder-decoders pool
    arch, kind = {**OTHER_TASKS, "texts": ("gpt2", "generate")}.get(arch, (arch, "classify"))
    return tiny(arch, width=32, layers=2).build(3 if kind == "classify" else 2, TASK_TYPES[kind]).model, {
        "input_ids": ids
    }


def head(model):
    return [n for n, c in model.named_children() if c is not model.base_model and any(True for _ in c.parameters())]


def logits(model, inputs):
    out = model(**inputs)
    return out.logits if "logits" in out else torch.stack([out.start_logits, out.end_logits])


@torch.no_grad()
def disturb(model, adapters, pruned=True):
    """As if trained: other factors, uneven ranks with 0 among them, another head."""
    for i, adapter in enumerate(adapters.values()):
        for parameter in (getattr(adapter, part) for part in ("Q", "P", "lam", *adapter.parametrisation.extra)):
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
        if pruned:
            adapter.mask[: i % (adapter.rank + 1)] = False
    inside = {id(p) for a in adapters.values() for p in a.parameters()}
    for parameter in model.parameters():
        if parameter.requires_grad and id(parameter) not in inside:
            parameter.add_(0.2 * torch.randn_like(parameter))


TARGETS = {"rank": 3, "train": [], "targets": "experts"}
EXPERTS = [(f"experts_{family}", family, TARGETS, {}) for family in FAMILIES]
EXPERTS += [
    ("experts_dropout_q_proj", "Qwen3Moe", {**TARGETS, "targets": ["experts", "q_proj"], "dropout": 0.1}, {}),
    ("experts_pissa", "GptOss", {**TARGETS, "init": "pissa"}, {}),
    ("experts_uniform", "Mixtral", TARGETS, {"uniform_rank": True}),
]


DEFAULT = ("bert", "gpt2", "uniform_pissa", "adadora", f"experts_{next(iter(FAMILIES))}")


def cases():
    for arch in ARCHITECTURES:
        yield arch, arch, {"adapter": "svd", "rank": 3}, {}
    yield "answers", "answers", {"rank": 3}, {}
    yield "summaries", "summaries", {"rank": 3, "train": []}, {}
    yield "lora", "bert", {"adapter": "lora", "rank": 3, "alpha": 5.0}, {}
    yield "rslora", "llama", {"adapter": "lora", "rank": 4, "alpha": 5.0, "rslora": True}, {}
    for init in ("pissa", "olora"):
        yield init, "bert", {"adapter": "svd" if init == "pissa" else "lora", "rank": 3, "init": init}, {}
    yield "pissa_gpt2", "gpt2", {"adapter": "lora", "rank": 3, "init": "pissa"}, {}
    yield "embedding", "bert", {"rank": 3, "targets": ["word_embeddings", "query"]}, {}
    yield "convolution", "vit", {"rank": 3, "targets": ["projection", "q_proj"]}, {}
    yield "uniform", "llama", {"rank": 3, "train": []}, {"uniform_rank": True}
    yield "uniform_pissa", "bert", {"rank": 3, "init": "pissa", "train": []}, {"uniform_rank": True}
    yield "tied_head", "texts", {"rank": 3, "train": ["lm_head"]}, {}
    yield "tied_embedding", "summaries", {"rank": 3, "train": ["shared"]}, {}
    yield "adadora", "bert", {"adapter": "svd_dora", "rank": 3, "targets": ["word_embeddings", "query", "value"]}, {}
    yield "dora_gpt2", "gpt2", {"adapter": "dora", "rank": 3, "init": "pissa"}, {}
    yield "dora_vit", "vit", {"adapter": "dora", "rank": 3, "targets": ["projection", "q_proj"]}, {}
    yield "dora_uniform", "llama", {"adapter": "svd_dora", "rank": 3, "train": []}, {"uniform_rank": True}
    yield "no_head", "bert", {"rank": 3, "train": []}, {}
    yield from EXPERTS


@pytest.fixture(scope="module")
def exported(run_side, tmp_path_factory, request):
    folder, found = tmp_path_factory.mktemp("exported"), {}
    every = "slow" in request.config.option.markexpr.replace("not slow", "")
    for name, arch, options, export in cases():
        if name not in DEFAULT and not every:
            continue
        model, inputs = built(arch)
        model.eval()
        (folder / name).mkdir()
        model.save_pretrained(folder / name / "base")
        (folder / name / "class.txt").write_text(type(model).__name__)
        save_file(inputs, folder / name / "inputs.safetensors")
        with torch.no_grad():
            before = logits(model, inputs)
            adapters = adarank.adapt(model, **{"train": head(model), **options})
            disturb(model, adapters)
            after = logits(model, inputs)
        adarank.to_peft(model, folder / name / "adapter", **export)
        found[name] = (adarank.ranks(model), before, after)
    run_side("load", folder)
    return folder, found


@pytest.mark.filterwarnings("ignore:no adapter can wrap", "ignore:the targets leave out")
@pytest.mark.parametrize("name", representatives([case[0] for case in cases()], DEFAULT))
def test_peft_computes_the_same_logits(exported, name):
    folder, found = exported
    ranks, before, after = found[name]
    there = load_file(folder / name / "logits.safetensors")["logits"]
    size = after.abs().max()
    assert (after - before).abs().max() > 1e-2 * size  # or nothing would be shown
    assert (there - after).abs().max() <= 1e-5 * size
    assert 0 in ranks.values() or len(ranks) < 4
    config = json.loads((folder / name / "adapter" / "adapter_config.json").read_text())
    if "experts" in name:
        assert (there - after).abs().max() <= 1e-6
    elif "dora" in name:
        assert config["use_dora"]
        assert config["target_modules"] == list(ranks)
    elif "pissa" not in name and "olora" not in name:
        assert config["target_modules"] == [n for n, r in ranks.items() if r]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "roberta", "llama"])
def test_a_classifier_s_head_goes_where_peft_looks_for_it(exported, name):
    folder, _ = exported
    config = json.loads((folder / name / "adapter" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["score" if name == "llama" else "classifier"]
    assert (folder / name / "kind.txt").read_text() == "PeftModelForSequenceClassification"


@pytest.mark.slow
def test_answers_and_summaries_go_to_peft_s_own_classes(exported):
    folder, _ = exported
    found = {name: (folder / name / "kind.txt").read_text() for name in OTHER_TASKS}
    assert found == {"answers": "PeftModelForQuestionAnswering", "summaries": "PeftModelForSeq2SeqLM"}
    configs = [json.loads((folder / name / "adapter" / "adapter_config.json").read_text()) for name in OTHER_TASKS]
    assert [config["modules_to_save"] for config in configs] == [["qa_outputs"], None]


@pytest.mark.slow
def test_a_changed_base_costs_at_most_twice_the_rank_and_an_unchanged_adapter_nothing(exported, tmp_path):
    folder, found = exported
    tensors = load_file(folder / "pissa" / "adapter" / "adapter_model.safetensors")
    ranks = {key: len(t) for key, t in tensors.items() if key.endswith("lora_A.weight")}
    assert len(ranks) == len(found["pissa"][0])  # a module whose triplets are all pruned still takes ΔW₀ back
    assert set(ranks.values()) <= {3, 4, 5, 6}
    model, _ = built("bert")
    adarank.adapt(model, rank=3, init="pissa")
    with pytest.raises(SettingError, match="every module's rank is 0"):
        adarank.to_peft(model, tmp_path)


@pytest.mark.slow
def test_uniform_rank_is_one_rank_without_patterns(exported):
    folder, found = exported
    config = json.loads((folder / "uniform" / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"], config["modules_to_save"]) == (3, 3, {}, None)
    tensors = load_file(folder / "uniform" / "adapter" / "adapter_model.safetensors")
    assert {t.shape[0] for key, t in tensors.items() if "lora_A" in key} == {3}
    assert len(set(found["uniform"][0].values())) == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:no adapter can wrap")
def test_a_stack_of_experts_is_a_target_parameter_of_its_largest_rank(exported, tmp_path):
    folder, found = exported
    config = json.loads((folder / "experts_Mixtral" / "adapter" / "adapter_config.json").read_text())
    stacks = [f"model.layers.{i}.mlp.experts.{part}" for i in (0, 1) for part in ("gate_up_proj", "down_proj")]
    assert (config["target_modules"], config["target_parameters"]) == ([], stacks)
    assert len(set(found["experts_Mixtral"][0].values())) == 4

    model = mixture("Mixtral")
    adapters = adarank.adapt(model, **TARGETS)
    disturb(model, adapters, pruned=False)
    for name, adapter in adapters.items():  # nothing left of one stack, at most 2 triplets of another
        adapter.mask[: 3 if stacks[0] in name else 1 if stacks[1] in name else 0] = False
    adarank.to_peft(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["target_parameters"] == stacks[1:]
    assert config["rank_pattern"] == {stacks[1].replace(".", r"\."): 2}
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    shapes = {key.removeprefix("base_model.model.model.layers."): tuple(t.shape) for key, t in tensors.items()}
    assert shapes == {
        "0.mlp.experts.lora_A.weight": (4 * 2, 24),
        "0.mlp.experts.lora_B.weight": (32, 2 * 4),
        "1.mlp.experts.base_layer.lora_A.weight": (4 * 3, 32),
        "1.mlp.experts.base_layer.lora_B.weight": (48, 3 * 4),
        "1.mlp.experts.lora_A.weight": (4 * 3, 24),
        "1.mlp.experts.lora_B.weight": (32, 3 * 4),
    }


class Dotless(nn.Module):
    """Two modules whose names a pattern with unescaped dots would confuse."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict({"a": nn.ModuleDict({"b": nn.Linear(8, 8)}), "a_b": nn.Linear(8, 8)})

    def forward(self, x):
        return self.layers["a_b"](self.layers["a"]["b"](x))


def test_pattern_keys_are_escaped(tmp_path):
    model = Dotless()
    adapters = adarank.adapt(model, rank={"layers.a.b": 2, "layers.a_b": 3}, targets=["b", "a_b"])
    disturb(model, adapters, pruned=False)
    adarank.to_peft(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["rank_pattern"] == config["alpha_pattern"] == {r"layers\.a_b": 3}


def test_a_pattern_is_for_one_module_even_if_its_name_is_the_ending_of_another(tmp_path):
    """PEFT gave block.proj the rank of proj, because it compares keys with the endings of names."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"proj": nn.Linear(6, 6), "block": nn.ModuleDict({"proj": nn.Linear(6, 6)})})
    model["last"] = nn.Linear(6, 6)
    base = copy.deepcopy(model)
    ranks = {"proj": 3, "block.proj": 2, "last": 2}
    adapters = adarank.adapt(model, "lora", rank=ranks, targets=list(ranks))
    disturb(model, adapters, pruned=False)
    adarank.to_peft(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["rank_pattern"] == config["alpha_pattern"] == {"^proj": 3}
    assert {n: a.rank for n, a in adarank.from_peft(base, tmp_path).items()} == ranks


def refused(model, folder, **options):
    with pytest.raises(SettingError) as error:
        adarank.to_peft(model, folder / "out", **options)
    assert not (folder / "out").exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_a_lora_folder_cannot_hold_is_refused(net, tmp_path):
    plain = copy.deepcopy(net)
    adarank.bottlenecks(plain, ["down"], 2)
    assert "bottleneck adapter cannot be exported to PEFT" in refused(plain, tmp_path)
    biases = copy.deepcopy(net)
    adarank.bitfit(biases, train=["head"])
    assert "no low-rank adapter to export" in refused(biases, tmp_path)
    disturb(net, adarank.adapt(net, rank=2, train=["head"]), pruned=False)
    assert "head.weight was trained as a whole; use adarank.merge" in refused(net, tmp_path, uniform_rank=True)
    net.embed.bias.requires_grad_(True)
    assert "of embed only embed.bias was trained; use adarank.merge" in refused(net, tmp_path)
    net.embed.bias.requires_grad_(False)
    adarank.merge(net)
    assert "call adarank.unmerge first" in refused(net, tmp_path)


def test_names_that_peft_would_mix_up_are_refused(tmp_path):
    net = Net()
    net.pre_head = nn.Linear(12, 12)
    disturb(net, adarank.adapt(net, rank=2, train=["head"]), pruned=False)
    assert "PEFT would confuse pre_head with head" in refused(net, tmp_path)
    model, _ = built("distilbert")
    disturb(model, adarank.adapt(model, rank=2, train=["classifier"]), pruned=False)
    assert "PEFT would confuse pre_classifier with classifier" in refused(model, tmp_path)


def test_an_adapter_that_peft_would_take_for_part_of_the_head_is_refused(tmp_path):
    model = nn.ModuleDict({"block": nn.ModuleDict({"head": nn.ModuleDict({"up": nn.Linear(8, 8)})})})
    model["head"] = nn.Linear(8, 2)
    adapters = adarank.adapt(model, rank=2, targets=["up"])
    model["head"].requires_grad_(True)
    disturb(model, adapters, pruned=False)
    assert "PEFT would ignore the adapter of block.head.up, because head was trained" in refused(model, tmp_path)


def test_a_dilated_convolution_is_refused(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, dilation=2))
    disturb(model, adarank.adapt(model, rank=2, targets=["0"]), pruned=False)
    assert "dilation=[2, 2]" in refused(model, tmp_path)


def test_an_exported_causal_lm_says_what_it_is(tmp_path):
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50, bos_token_id=0, eos_token_id=0)
    model = transformers.GPT2LMHeadModel(config)
    model.config._name_or_path = "someone/base"
    disturb(model, adarank.adapt(model, rank=2, dropout=0.1), pruned=False)
    adarank.to_peft(model, tmp_path)
    found = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (found["task_type"], found["fan_in_fan_out"]) == ("CAUSAL_LM", True)
    assert (found["base_model_name_or_path"], found["lora_dropout"]) == ("someone/base", 0.1)
    assert found["inference_mode"] is True
