from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import adarank
from adarank import SettingError
from adarank.harness import quantize
from adarank.harness.config.spec import TrainConfig
from adarank.harness.device import base_mib
from adarank.harness.models import tiny
from adarank.harness.quantize import nf4
from adarank.harness.run import prepare
from adarank.harness.run.checkpoint import trained_tensors
from adarank.pieces import needs_of
from tests.experiments.test_run import inside, summaries
from tests.representatives import representatives

CPU = torch.device("cpu")
# Appendix E of QLoRA: the quantiles of a normal distribution, scaled to [−1, 1], with an exact zero.
NF4 = [-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0]
NF4 += [0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]


def quantized(arch="bert", seed=0, precision="fp32", **settings):
    torch.manual_seed(seed)
    model = tiny(arch, width=64, layers=1).build(2).model
    nf4(model, CPU, precision, **settings)
    return model


def inputs(rows=6):
    ids = torch.randint(4, 200, (rows, 9), generator=torch.Generator().manual_seed(1))
    ids[:, -1] = 3
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def four_bit(model):
    return {n: m for n, m in model.named_modules() if type(m).__name__ == "Linear4bit"}


@pytest.mark.parametrize(("arch", "count"), [("bert", 6), ("gpt2", 4), ("t5", 14), ("llama", 7)])
def test_the_linears_of_the_blocks_are_quantised_and_nothing_else(arch, count):
    plain = tiny(arch, width=64, layers=1).build(2).model
    before = {n: type(m) for n, m in plain.named_modules()}
    model = quantized(arch)
    layers = four_bit(model)
    assert len(layers) == count
    assert not any(n.endswith("wo") for n in layers)  # T5 reads its dtype
    assert {n: type(m) for n, m in model.named_modules() if n not in layers} == {
        n: kind for n, kind in before.items() if n not in layers
    }
    assert all(n.startswith(model.base_model_prefix + ".") for n in layers)


def test_a_weight_becomes_its_block_s_largest_times_the_nearest_nf4_value():
    torch.manual_seed(0)
    plain = tiny("bert", width=64, layers=1).build(2).model
    model = quantized(double_quantization=False)
    name = "bert.encoder.layer.0.intermediate.dense"
    W = plain.get_submodule(name).weight.detach().reshape(-1, 64)
    absmax = W.abs().amax(1, keepdim=True)
    table = torch.tensor(NF4)
    nearest = table[(W / absmax).unsqueeze(-1).sub(table).abs().argmin(-1)] * absmax
    layer = model.get_submodule(name)
    found = adarank.adapters.layers.LINEAR_4BIT.matrix(layer)
    torch.testing.assert_close(found, nearest.view(found.shape), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.bias, plain.get_submodule(name).bias)


def test_gpt2_s_transposed_weight_is_quantised_the_right_way_round():
    torch.manual_seed(0)
    plain, model = tiny("gpt2", width=64, layers=1).build(2).model, quantized("gpt2")
    a, b = (m.eval()(**inputs()).logits for m in (plain, model))
    assert 0 < (a - b).norm() / a.norm() < 0.3
    for name, layer in four_bit(model).items():
        W = plain.get_submodule(name).weight.detach().t()
        assert (adarank.adapters.layers.LINEAR_4BIT.matrix(layer) - W).norm() / W.norm() < 0.12, name


@pytest.mark.parametrize(
    ("precision", "compute_dtype", "expected"),
    [("fp32", "auto", torch.float32), ("bf16", "auto", torch.bfloat16), ("bf16", "fp32", torch.float32)],
)
def test_the_compute_dtype_follows_the_precision(precision, compute_dtype, expected):
    model = quantized(precision=precision, compute_dtype=compute_dtype)
    assert {m.compute_dtype for m in four_bit(model).values()} == {expected}


def test_what_the_harness_supplies_is_declared():
    assert needs_of(nf4) == {"model", "device", "precision"}


def test_without_bitsandbytes_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(quantize, "find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"quantization=nf4: bitsandbytes is not installed; pip install 'adarank"):
        nf4(nn.Linear(2, 2), CPU, "fp32")


@pytest.mark.filterwarnings("ignore:merging into a 4-bit base")
@pytest.mark.parametrize("compaction", ["off", "final"])
@pytest.mark.parametrize("arch", representatives(["bert", "gpt2", "t5", "llama"], 2))
def test_adalora_over_nf4_end_to_end(arch, compaction, tmp_path):
    model, labels = quantized(arch), torch.arange(6) % 2
    head = {"bert": "classifier", "t5": "classification_head"}.get(arch, "score")
    adapters = adarank.adapt(model, rank=3, train=[head])
    n = len(adapters)
    controller = adarank.RankController(
        adapters,
        score=adarank.scores.adalora(),
        schedule=adarank.schedules.cubic(initial=3 * n, final=2 * n - 1, t_i=2, t_f=4, total=16, interval=2),
        penalty=adarank.penalties.orthogonality(),
        compaction=compaction,
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    controller.attach(optimizer)

    @torch.no_grad()
    def loss_now():
        return F.cross_entropy(model.eval()(**inputs()).logits, labels).item()

    before = loss_now()
    for step in range(16):
        if step == 1:  # an evaluation in the middle, after which gradients must pass as before
            loss_now()
        F.cross_entropy(model.train()(**inputs()).logits, labels).backward()
        if step == 1:
            assert all(a.P.grad.isfinite().all() and a.lam.grad.any() for a in adapters.values())
        controller.after_backward()
        optimizer.step()
        optimizer.zero_grad()
    assert sum(adarank.ranks(model).values()) == 2 * n - 1
    assert loss_now() < before

    with torch.no_grad():
        expected = model(**inputs()).logits
        adarank.save_adapter(model, tmp_path)
        fresh = quantized(arch)
        adarank.load_adapter(fresh, tmp_path)
        torch.testing.assert_close(fresh.eval()(**inputs()).logits, expected, rtol=1e-4, atol=1e-5)
        adarank.merge(model)
        assert not four_bit(model)
        torch.testing.assert_close(model(**inputs()).logits, expected, rtol=1e-3, atol=1e-4)
        adarank.unmerge(model)
        torch.testing.assert_close(model(**inputs()).logits, expected, rtol=1e-4, atol=1e-5)


def test_what_training_changes_is_kept_and_restored_without_the_quantisation():
    model = quantized()
    adarank.adapt(model, rank=2, train=["classifier"])
    state = {name: tensor.clone() for name, tensor in trained_tensors(model).items()}
    assert not any("quant" in key or "absmax" in key or ".base." in key for key in state)
    assert {key.rpartition(".")[2] for key in state if "layer.0" in key} == {"Q", "lam", "P", "mask"}
    expected = model.eval()(**inputs()).logits
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    assert not torch.allclose(model(**inputs()).logits, expected)
    model.load_state_dict(state, strict=False)
    torch.testing.assert_close(model(**inputs()).logits, expected)


@pytest.mark.parametrize("double", [True, False])
def test_the_base_s_memory_is_counted_to_the_byte(double):
    model = quantized(double_quantization=double)
    plain = tiny("bert", width=64, layers=1).build(2).model
    weights = sum(p.numel() for p in plain.parameters())
    inside = [plain.get_submodule(n).weight.numel() for n in four_bit(model)]
    blocks = sum(inside) // 64
    held = 4 * (weights - sum(inside)) + sum(inside) // 2
    if double:  # 8 bits a block, one fp32 scale for each 256 of them in every layer, and an offset a layer
        held += blocks + 4 * sum(-(-n // 64 // 256) for n in inside) + 4 * len(inside)
    else:
        held += 4 * blocks
    found = base_mib(model)
    assert found["fp32"] == 4 * weights / 2**20
    assert found["bf16"] == 2 * weights / 2**20
    tables = found["held"] * 2**20 - held  # the quantisation tables: 16 and 256 values, a copy a layer or one for all
    assert tables in {
        4 * 16 * k + 4 * 256 * j for k in (1, len(inside)) for j in ((1, len(inside)) if double else (0,))
    }
    adarank.adapt(model, rank=2)
    assert base_mib(model) == found
    counts = adarank.trainable_parameters(model)
    assert counts["total"] - counts["adapter"] == weights


def test_8_bit_optimisers_where_they_do_not_run(monkeypatch):
    with pytest.raises(
        SettingError, match=r"must be adamw or adamw_8bit on cpu \(got paged_adamw_8bit, which only runs on cuda\)$"
    ):
        prepare.check_optimizer("paged_adamw_8bit", CPU)
    with pytest.raises(SettingError, match=r"must be adamw on mps \(got adamw_8bit, which only runs on cuda or cpu\)$"):
        prepare.check_optimizer("adamw_8bit", torch.device("mps"))
    prepare.check_optimizer("adamw_8bit", CPU)
    prepare.check_optimizer("adamw", torch.device("mps"))
    monkeypatch.setattr(prepare, "find_spec", lambda name: None)
    with pytest.raises(SettingError, match="bitsandbytes is not installed"):
        prepare.check_optimizer("adamw_8bit", torch.device("cuda"))


def test_8_bit_adamw_goes_adamw_s_way_within_its_8_bits():
    """Factors of 4096 and more entries; bitsandbytes keeps smaller ones' averages in fp32."""
    ends, states = [], []
    for name in ("adamw", "adamw_8bit"):
        torch.manual_seed(0)
        model = nn.ModuleDict({"inner": nn.Linear(1024, 64)})
        adapters = adarank.adapt(model, adapter="lora", rank=8, targets="inner")
        optimizer = prepare.make_optimizer(model, adapters, TrainConfig(lr=1e-2, optimizer=name))
        Q, before, target = adapters["inner"].Q, adapters["inner"].Q.detach().clone(), torch.randn(8, 1024)
        for _ in range(30):
            (Q - target).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(Q.detach() - before)
        states.append(
            {t.dtype for t in optimizer.state[Q].values() if isinstance(t, torch.Tensor) and t.numel() > 4096}
        )
    assert (ends[0] - ends[1]).norm() < 0.1 * ends[0].norm()
    assert states == [{torch.float32}, {torch.uint8}]


@pytest.mark.parametrize(("name", "paged"), [("adamw_8bit", False), ("paged_adamw_8bit", True)])
def test_8_bit_optimisers_are_bitsandbytes_own_with_our_groups(name, paged):
    model = tiny("bert", width=32, layers=1).build(2).model
    adapters = adarank.adapt(model, rank=2, train=["classifier"])
    optimizer = prepare.make_optimizer(
        model, adapters, TrainConfig(lr=1e-3, weight_decay=0.1, loraplus_lr_ratio=2.0, optimizer=name)
    )
    assert type(optimizer).__module__.startswith("bitsandbytes")
    assert optimizer.is_paged is paged
    assert optimizer.args.optim_bits == 8
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
    assert {(g["lr"], g["weight_decay"]) for g in optimizer.param_groups} == {(2e-3, 0.1), (1e-3, 0.1), (1e-3, 0.0)}


def test_a_run_over_nf4_from_the_command_line(tmp_path):
    inside("method=qlora", "tiny=true", f"out={tmp_path}")
    (summary,) = summaries(tmp_path).values()
    assert (summary["status"], summary["dtype"]["base"]) == ("finished", "nf4")
    assert summary["memory"]["base_mib"]["held"] < 0.75 * summary["memory"]["base_mib"]["fp32"]


@pytest.mark.slow
def test_runs_over_nf4_from_the_command_line(tmp_path):
    inside("method=qlora", "tiny=true", f"out={tmp_path}")
    inside("method=qlora", "train.optimizer=adamw_8bit", "tiny=true", f"out={tmp_path / 'bits'}")
    inside("method=lora", "quantization=nf4", "tiny=true", f"out={tmp_path}")
    done = inside("method=adalora", "quantization=nf4", "compaction=final", "tiny=true", f"out={tmp_path}")
    assert "adalora-nf4-r8-all-s0" in done.stdout
    found = summaries(tmp_path)
    assert sorted(name.partition("-")[0] for name in found) == ["adalora", "lora", "qlora"]
    assert {s["status"] for s in found.values()} == {"finished"}
    by = {name.partition("-")[0]: (name.split("-")[1], s) for name, s in found.items()}
    assert by["qlora"][0] == by["lora"][0]  # the same settings, by whatever name
    assert by["qlora"][1]["metric"] == by["lora"][1]["metric"]
    assert by["qlora"][1]["parameters"] == by["lora"][1]["parameters"]
    (eight,) = summaries(tmp_path / "bits").values()
    assert eight["status"] == "finished"
    memory = by["adalora"][1]["memory"]["base_mib"]
    assert memory["fp32"] == 2 * memory["bf16"]
    assert memory["held"] < 0.75 * memory["fp32"]  # much of the tiny model lies outside its blocks


@pytest.mark.parametrize("method", ["full"])
def test_methods_that_train_the_base_refuse_4_bits(method, tmp_path):
    says = inside(f"method={method}", "quantization=nf4", "tiny=true", f"out={tmp_path}", status=2).stderr
    assert f"quantization cannot be combined with method={method}: 4-bit weights cannot train" in says
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("setting", ["compaction=final", "pruned_triplets=frozen"])
def test_8_bit_states_are_neither_compacted_nor_grown(setting, tmp_path):
    settings = ["method=adalora", setting, "train.optimizer=adamw_8bit", "tiny=true", f"out={tmp_path}"]
    says = inside(*settings, status=2).stderr
    assert f"{setting} cannot be combined with train.optimizer=adamw_8bit" in says


def test_the_controller_refuses_to_grow_over_8_bit_states():
    """Code 0 of an 8-bit state stands for its lowest value, so that zeroing it would be wrong."""
    model = nn.ModuleDict({"inner": nn.Linear(1024, 64)})
    adapters = adarank.adapt(model, rank=8, targets="inner")
    controller = adarank.RankController(
        adapters,
        score=adarank.scores.adalora(),
        schedule=adarank.schedules.cubic(initial=8, final=4, t_i=1, t_f=1, total=8, interval=1),
        pruned_triplets="frozen",
    )
    optimizer = prepare.make_optimizer(model, adapters, TrainConfig(lr=1e-2, optimizer="adamw_8bit"))
    controller.attach(optimizer)
    x = torch.randn(4, 1024)

    def steps():
        for _ in range(8):
            model["inner"](x).square().sum().backward()
            controller.after_backward()
            optimizer.step()
            optimizer.zero_grad()

    with pytest.raises(SettingError, match=r"growth needs .* AdamW8bit, whose state 'qmap1'"):
        steps()


def test_a_controller_s_state_is_restored_from_an_8_bit_optimiser_s():
    """bitsandbytes' load_state_dict calls none of torch's hooks."""

    def made():
        torch.manual_seed(0)
        model = nn.ModuleDict({"inner": nn.Linear(1024, 64)})
        adapters = adarank.adapt(model, rank=8, targets="inner")
        controller = adarank.RankController(
            adapters,
            score=adarank.scores.adalora(),
            schedule=adarank.schedules.cubic(initial=8, final=4, t_i=1, t_f=2, total=12, interval=1),
        )
        optimizer = prepare.make_optimizer(model, adapters, TrainConfig(lr=1e-2, optimizer="adamw_8bit"))
        return model, controller.attach(optimizer), optimizer

    def steps(model, controller, optimizer, which):
        for t in which:
            x = torch.randn(4, 1024, generator=torch.Generator().manual_seed(t))
            model["inner"](x).square().sum().backward()
            controller.after_backward()
            optimizer.step()
            optimizer.zero_grad()

    whole = made()
    steps(*whole, range(12))
    first, second = made(), made()
    steps(*first, range(6))
    second[2].load_state_dict(deepcopy(first[2].state_dict()))
    second[0].load_state_dict(first[0].state_dict())
    assert second[1].step == 6
    steps(*second, range(6, 12))
    assert torch.equal(second[1].bank.mask, whole[1].bank.mask)
    assert torch.equal(second[1].bank.weight, whole[1].bank.weight)
