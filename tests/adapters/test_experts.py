"""Stacked experts: an adapter for each expert's matrix, against dense W + ΔW in the model's own forward pass."""

import copy
import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

import adarank
from adarank import SettingError
from adarank.adapters.experts import Experts, layer_at
from adarank.adapters.layers import stack_names
from adarank.adapters.lowrank import adapters_of
from tests.mixtures import EXPERTS, FAMILIES, disturb, mixture, rows, stacks_of

PARTS = ("gate_up_proj", "down_proj")
QUIET = pytest.mark.filterwarnings("ignore:no adapter can wrap .*(gate|router)")
pytestmark = QUIET


@torch.no_grad()
def logits(model):
    return model(input_ids=rows()).logits


def close(found, expected, tolerance=1e-6):
    assert (found - expected).abs().max() <= tolerance * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_expert_has_an_adapter_and_the_model_computes_the_same(family):
    model = mixture(family)
    expected = {}
    for implementation in ("eager", "batched_mm", "grouped_mm"):
        model.set_experts_implementation(implementation)
        expected[implementation] = logits(model)
    adapters = adarank.adapt(model, rank=3, targets="experts")
    names = [f"model.layers.{i}.mlp.experts.{p}.{e}" for i in (0, 1) for p in PARTS for e in range(EXPERTS[family])]
    assert list(adapters) == list(adapters_of(model)) == names
    assert all(model.get_submodule(name) is adapter for name, adapter in adapters.items())
    assert {(a.in_features, a.out_features) for n, a in adapters.items() if "gate_up" in n} == {
        (32, 2 * (16 if family == "Qwen3Moe" else 24))
    }
    for implementation, before in expected.items():
        model.set_experts_implementation(implementation)
        for training in (False, True):
            close(logits(model.train(training)), before)


def dense(experts, leaves, scale, inputs):
    """The plain module's own forward pass with W + ΔW of every expert, through which autograd runs."""
    changed = {}
    for part in PARTS:
        deltas = [scale * (P.t() * lam) @ Q for Q, lam, P in leaves[part]]
        stacked = torch.stack([delta.t() if experts.is_transposed else delta for delta in deltas])
        changed[part] = getattr(experts, part).detach() + stacked
    return torch.func.functional_call(experts, changed, inputs)


@pytest.mark.parametrize("kind", ["svd", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_dense_weights(family, kind):
    model = mixture(family, dtype=torch.float64)
    model.set_experts_implementation("eager")  # grouped_mm has no float64 on CPUs
    (name, plain), *_ = stacks_of(model).items()
    adapters = adarank.adapt(model, kind, rank=3, alpha=5.0, targets="experts")
    disturb(adapters, pruned=False)
    wrapped, count = model.get_submodule(name), plain.num_experts
    torch.manual_seed(3)
    x = torch.randn(11, 32, dtype=torch.float64, requires_grad=True)
    chosen = torch.stack([torch.randperm(count - 1)[:2] for _ in range(11)])  # the last expert idles
    weights = torch.rand(11, 2, dtype=torch.float64, requires_grad=True)
    out = wrapped.train()(x, chosen, weights)
    mix = torch.randn_like(out)
    (out * mix).sum().backward()
    own = {part: [adapters[f"{name}.{part}.{e}"] for e in range(count)] for part in PARTS}
    leaves = {
        part: [[t.detach().clone().requires_grad_() for t in (a.Q, a.lam, a.P)] for a in own[part]] for part in PARTS
    }
    x2, weights2 = (t.detach().clone().requires_grad_() for t in (x, weights))
    expected = dense(plain, leaves, 5 / 3, (x2, chosen, weights2))
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    (expected * mix).sum().backward()
    for found, reference in ((x, x2), (weights, weights2)):
        torch.testing.assert_close(found.grad, reference.grad, rtol=1e-11, atol=1e-11)
    for part in PARTS:
        for adapter, (Q, lam, P) in zip(own[part], leaves[part], strict=True):
            torch.testing.assert_close(adapter.Q.grad, Q.grad, rtol=1e-11, atol=1e-11)
            torch.testing.assert_close(adapter.P.grad, P.grad, rtol=1e-11, atol=1e-11)
            if kind == "svd":
                torch.testing.assert_close(adapter.lam.grad, lam.grad, rtol=1e-11, atol=1e-11)
        assert not own[part][-1].Q.grad.any()
    assert all(p.grad is None for p in plain.parameters())


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_grouped_products_are_those_of_the_loop(family, masked):
    """With ranks 0 to 3, an expert that idles, in training and in evaluation."""
    model = mixture(family)
    adapters = adarank.adapt(model, rank=3, targets="experts")
    disturb(adapters)
    adarank.compact(model)
    for adapter in adapters.values():
        adapter.masked = masked
        if adapter.rank == 2:
            adapter.mask[0] = False
    name = next(iter(stacks_of(model)))
    wrapped, count = model.get_submodule(name), EXPERTS[family]
    torch.manual_seed(3)
    x = torch.randn(11, 32, requires_grad=True)
    chosen = torch.stack([torch.randperm(count - 1)[:2] for _ in range(11)])
    weights = torch.rand(11, 2)
    mix, found = torch.randn(11, 32), {}
    leaves = {"x": x, **{n: p for n, p in wrapped.named_parameters() if p.requires_grad and p.numel()}}
    for training in (True, False):
        for implementation in ("eager", "grouped_mm"):
            model.set_experts_implementation(implementation)
            wrapped.train(training)
            assert wrapped._is_groupable(x) == (implementation == "grouped_mm")
            out = wrapped(x, chosen, weights)
            gradients = torch.autograd.grad((out * mix).sum(), list(leaves.values()))
            found[implementation] = dict(zip(("out", *leaves), (out, *gradients), strict=True))
        for part, tensor in found["eager"].items():
            torch.testing.assert_close(found["grouped_mm"][part], tensor, rtol=1e-5, atol=1e-5)


def test_what_grouped_products_cannot_serve_goes_through_the_loop():
    model = mixture("Mixtral")
    model.set_experts_implementation("grouped_mm")
    adapters = adarank.adapt(model, rank=3, targets="experts")
    wrapped, x = next(m for m in model.modules() if isinstance(m, Experts)), torch.randn(3, 32)
    first = next(iter(adapters.values()))
    assert wrapped._is_groupable(x)
    assert not wrapped._is_groupable(x.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert wrapped._is_groupable(x)
    with adarank.disabled(model):
        assert not wrapped._is_groupable(x)
    for attribute, value in (("masked", True), ("scale", 3.0), ("watch", print)):
        before = getattr(first, attribute)
        setattr(first, attribute, value)
        assert not wrapped.train()._is_groupable(x)
        setattr(first, attribute, before)
    assert wrapped._is_groupable(x)


def trained(family, compaction="final", steps=12, **options):
    """A mixture trained with AdaLoRA from 3 triplets per module to a mean of 1.5."""
    model = mixture(family).train()
    adapters = adarank.adapt(model, rank=3, targets="experts", **options)
    n = len(adapters)
    controller = adarank.RankController(
        adapters,
        score=adarank.scores.adalora(),
        schedule=adarank.schedules.cubic(initial=3 * n, final=3 * n // 2, t_i=2, t_f=6, total=steps, interval=2),
        penalty=adarank.penalties.orthogonality(),
        compaction=compaction,
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    controller.attach(optimizer)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=rows(4, 16), labels=rows(4, 16)).loss
        loss.backward()
        controller.after_backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return model.eval(), losses


@pytest.mark.parametrize("family", FAMILIES)
def test_the_budget_is_exact_and_moves_between_experts(family, tmp_path):
    model, losses = trained(family)
    ranks = adarank.ranks(model)
    assert sum(ranks.values()) == 3 * len(ranks) // 2 == sum(a.rank for a in adapters_of(model).values())
    in_one_stack = [r for name, r in ranks.items() if name.startswith("model.layers.0.mlp.experts.gate_up_proj.")]
    assert len(set(in_one_stack)) > 1
    assert losses[-1] < 0.98 * losses[0]
    after = logits(model)
    adarank.save_adapter(model, tmp_path)
    fresh = mixture(family)
    adarank.load_adapter(fresh, tmp_path, strict=True)
    assert adarank.ranks(fresh) == ranks
    close(logits(fresh), after)


@pytest.mark.parametrize("init", ["default", "pissa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_merged_unmerged_disabled_copied_saved(family, init, tmp_path):
    model, plain = mixture(family), mixture(family)
    before = logits(plain)
    adapters = adarank.adapt(model, rank=3, targets=["experts", "q_proj"], init=init)
    close(logits(model), before)
    disturb(adapters, pruned=init == "default")
    after = logits(model)
    assert (after - before).abs().max() > 1e-2
    with adarank.disabled(model):
        close(logits(model), before)
    adarank.save_adapter(model, tmp_path)
    fresh = mixture(family)
    adarank.load_adapter(fresh, tmp_path, strict=True)
    close(logits(fresh), after, 2e-6)
    with pytest.warns(UserWarning, match="trained on another checkpoint"):
        adarank.load_adapter(mixture(family, seed=5), tmp_path)

    adarank.merge(model)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    close(logits(model), after, 2e-6)
    for each in (model, copy.deepcopy(model)):
        adarank.unmerge(each)
        assert list(adapters_of(each)) == list(adapters)
        close(logits(each), after, 2e-6)
        owners = {id(a.base.owner) for n, a in adapters_of(each).items() if "experts" in n}
        assert owners == {id(e.base) for e in each.modules() if isinstance(e, Experts)}


def test_a_stack_that_was_replaced_after_the_merge_is_noticed():
    model = mixture("Mixtral")
    adarank.adapt(model, rank=2, targets="experts")
    adarank.merge(model)
    model.model.layers[1].mlp.experts = copy.deepcopy(model.model.layers[1].mlp.experts)
    with pytest.raises(SettingError, match=r"layers\.1\.mlp\.experts\.gate_up_proj\.0 was replaced after the merge"):
        adarank.unmerge(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_save_pretrained_keeps_an_adapted_model_s_names_and_a_merged_one_has_the_published_ones(family, tmp_path):
    mixture(family).save_pretrained(tmp_path / "base")
    published = load_file(tmp_path / "base" / "model.safetensors").keys()
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    disturb(adarank.adapt(model, rank=2, targets="experts"))
    after = logits(model)
    model.save_pretrained(tmp_path / "adapted")  # as the Trainer's checkpoints do
    saved = load_file(tmp_path / "adapted" / "model.safetensors")
    assert saved.keys() == model.state_dict().keys()
    other = mixture(family, seed=5)
    adarank.adapt(other, rank=2, targets="experts")
    other.load_state_dict(saved)
    close(logits(other), after)
    adarank.merge(model)
    model.save_pretrained(tmp_path / "merged")
    assert load_file(tmp_path / "merged" / "model.safetensors").keys() == published
    close(logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), after)


@pytest.mark.parametrize("with_base", [True, False])
def test_a_state_dict_restores_an_init_that_changed_the_stack(with_base):
    model = mixture("GptOss")
    disturb(adarank.adapt(model, rank=2, targets="experts", init="pissa"))
    state = model.state_dict()
    if not with_base:
        state = {name: tensor for name, tensor in state.items() if ".base." not in name}
    other = mixture("GptOss")
    adarank.adapt(other, rank=2, targets="experts", init="default" if not with_base else "olora")
    other.load_state_dict(state, strict=with_base)
    close(logits(other), logits(model))


@pytest.mark.filterwarnings("ignore:the targets leave out")
def test_some_experts_alone_by_their_whole_names():
    """As ranks_from does with a map that gives rank 0 to the others."""
    model, names = mixture("Qwen3Moe"), [f"model.layers.1.mlp.experts.down_proj.{e}" for e in (2, 5)]
    before = logits(model)
    adapters = adarank.adapt(model, rank=dict(zip(names, (1, 3), strict=True)), targets=names)
    assert list(adapters) == names
    close(logits(model), before)
    disturb(adapters, pruned=False)
    after = logits(model)
    assert (after - before).abs().max() > 1e-2
    adarank.merge(model)
    close(logits(model), after)


def test_reach_and_counts():
    model = mixture("GptOss")
    matrices = sum(
        p.numel() for n, p in model.named_parameters() if p.ndim > 1 and not n.endswith("proj_bias")
    )  # a stack's biases are one vector per expert
    stacks = sum(
        p.numel() for n, p in model.named_parameters() if n.endswith(("experts.gate_up_proj", "experts.down_proj"))
    )
    total = sum(p.numel() for p in model.parameters())
    adarank.adapt(model, rank=2, targets="experts")
    reached = adarank.reach(model)
    assert reached.share == stacks / matrices
    assert reached.missed == [f"model.layers.{i}.mlp.router.weight" for i in (0, 1)]
    factors = 2 * 4 * 2 * ((32 + 48 + 1) + (24 + 32 + 1))
    counts = adarank.trainable_parameters(model)
    assert (counts["adapter"], counts["frozen"]) == (factors, total)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable")
def test_dropout_and_gradient_checkpointing_work():
    model = mixture("Mixtral").train()
    disturb(adarank.adapt(model, rank=2, targets="experts", dropout=0.5))
    assert (logits(model) - logits(model)).abs().max() > 1e-3
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    model(input_ids=rows(), labels=rows()).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def llama4():
    sizes = {**FAMILIES["Mixtral"], "vocab_size": 97, "hidden_size": 32, "intermediate_size": 24, "head_dim": 8}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    return transformers.Llama4ForCausalLM(transformers.Llama4TextConfig(**sizes, intermediate_size_mlp=24))


def quantised(dtype):
    def build():
        model = mixture("Mixtral")
        model.model.layers[0].mlp.experts.down_proj.data = torch.zeros(4, 32, 24).to(dtype)
        return model

    return build


def replaced(**attributes):
    def build():
        model = mixture("Mixtral")
        model.model.layers[1].mlp.experts.__dict__.update(attributes)
        return model

    return build


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (llama4, {}, r"targets='experts' adapts experts that are stacked .*; the model has Llama4TextExperts$"),
        (lambda: nn.ModuleDict({"a": nn.Linear(4, 4)}), {}, r"targets='experts' .*; the model has none$"),
        (lambda: mixture("Mixtral"), {"init": "eva", "batches": []}, r"init=eva measures .* such as default, pissa or olora$"),
        (lambda: mixture("Mixtral"), {"targets": "gate_up_proj"}, "targets='gate_up_proj' matches no module"),
        (lambda: mixture("Mixtral"), {"targets": r".*gate_up_proj\.\d"}, r"matches only experts that are stacked in one tensor; use targets='experts'"),
        (lambda: mixture("Mixtral"), {"train": ["mlp"]}, "matches only .*, which train trains as a whole"),
        (lambda: mixture("Mixtral"), {"rank": 25}, r"rank must be a whole number from 1 to 24 \(got 25\), because .*down_proj\.0 is 24"),
        (lambda: mixture("Mixtral").model.layers[0].mlp.experts, {}, "the model is itself an MixtralExperts"),
        (quantised(torch.float8_e4m3fn), {}, r"down_proj\.0 cannot be adapted: its weight is stored as torch.float8_e4m3fn"),
        (replaced(forward=lambda *_: None), {}, "the forward of its experts was replaced"),
        (replaced(_is_expert_parallel=True), {}, "expert parallelism"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_in_a_sentence(build, options, message):
    model = build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(SettingError, match=message):
        adarank.adapt(model, **{"targets": "experts", "rank": 2, **options})
    assert model.state_dict().keys() == before.keys()


def decorated():
    """(the name of a class with the decorator, its module) of every family of the installed Transformers."""
    for file in sorted((Path(transformers.__file__).parent / "models").glob("*/modeling_*.py")):
        for found in re.findall(r"^@use_experts_implementation[^\n]*\nclass (\w+)", file.read_text(), re.MULTILINE):
            yield found, f"transformers.models.{file.parent.name}.{file.stem}"


def built(cls, module):
    """One small plain module of stacked experts in float64, of any of its family's configs; None where none fits."""
    annotation = inspect.signature(cls.__init__.__wrapped__).parameters["config"].annotation
    named = [annotation] if inspect.isclass(annotation) and annotation is not inspect.Parameter.empty else []
    sizes = dict.fromkeys(("hidden_size", "moe_latent_size"), 16)
    sizes |= dict.fromkeys(("intermediate_size", "moe_intermediate_size", "expert_ffn_hidden_size"), 12)
    sizes |= dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4)
    for config_class in [*named, *(v for k, v in vars(module).items() if k.endswith("Config"))]:
        try:
            config = config_class()
            config.__dict__.update({name: size for name, size in sizes.items() if hasattr(config, name)})
            config._experts_implementation = "eager"
            return cls(config).double()
        except (AttributeError, TypeError, KeyError):
            continue
    return None


@pytest.mark.slow
def test_every_decorated_class_computes_what_the_wrapper_does():
    """Two of them compute in float32 inside. The wrapper follows the decorator's contract, not each class's own
    loop."""
    tried = 0
    for name, where in decorated():
        module = importlib.import_module(where)
        plain = built(getattr(module, name), module)
        if plain is None:
            continue
        torch.manual_seed(0)
        for parameter in plain.parameters():
            nn.init.normal_(parameter, std=0.3)
        parts = stack_names(plain)
        matrix = getattr(plain, parts[0])[0]
        x = torch.randn(7, matrix.shape[0 if plain.is_transposed else 1], dtype=torch.float64)
        weights, chosen = torch.rand(7, plain.num_experts, dtype=torch.float64).topk(2)
        expected = plain(x, chosen, weights)
        found = Experts(plain)(x, chosen, weights)
        assert (found - expected).abs().max() <= 1e-6 * expected.abs().max(), name
        tried += 1
    assert tried >= 55


def test_layer_at_finds_what_a_name_stands_for_before_and_after():
    model = mixture("Mixtral")
    name = "model.layers.0.mlp.experts.down_proj.3"
    weight = layer_at(model, name).weight
    assert torch.equal(weight, model.model.layers[0].mlp.experts.down_proj[3])
    adarank.adapt(model, rank=2, targets="experts")
    assert layer_at(model, name).weight.data_ptr() == weight.data_ptr()
    assert layer_at(model, "lm_head") is model.lm_head
    for missing in ("model.layers.0.mlp.experts.down_proj.4", "model.layers.0.mlp.experts.other.0", "no.where.0"):
        with pytest.raises(AttributeError):
            layer_at(model, missing)
