"""The model under the adapters: wrappers around it, buffers that training changes, and the fingerprint of its
weights."""

import warnings

import pytest
import torch
from torch import nn
from torch.distributed import HashStore, destroy_process_group, init_process_group
from torch.nn.parallel import DistributedDataParallel

import adarank
from adarank.adapters.base import differs_from, fingerprint
from adarank.adapters.bottleneck import bottlenecks
from adarank.errors import SettingError


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2))


def images(seed):
    return 3 + 2 * torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def ddp():
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield DistributedDataParallel
    destroy_process_group()


def compiled(model):
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize("wrap", [compiled, nn.DataParallel, lambda m: compiled(nn.DataParallel(m))])
def test_a_wrapper_is_no_part_of_a_name(wrap, tmp_path):
    model = net()
    adapters = adarank.adapt(wrap(model), rank=2, targets=["4"], train=["1"])
    assert list(adapters) == ["4"]
    nn.init.ones_(adapters["4"].lam)
    outside = wrap(model)
    assert adarank.ranks(outside) == {"4": 2}
    assert adarank.trainable_parameters(outside) == adarank.trainable_parameters(model)
    assert adarank.reach(outside) == adarank.reach(model)
    adarank.save_adapter(outside, tmp_path)
    assert list(adarank.load_adapter(wrap(net()), tmp_path)) == ["4"]
    x, expected = images(0), model.eval()(images(0))
    with adarank.disabled(outside):
        assert torch.equal(outside(x), net().eval()(x))
    adarank.merge(outside)
    assert torch.allclose(model(x), expected, atol=1e-5)
    adarank.unmerge(outside)
    assert adarank.ranks(model) == {"4": 2}
    adarank.to_peft(outside, tmp_path / "peft")
    assert list(adarank.from_peft(wrap(net()), tmp_path / "peft")) == ["4"]
    adapters["4"].mask[0] = False
    assert adarank.compact(outside) == {"4": 1}


@pytest.mark.parametrize(
    "change",
    [
        lambda m, folder: adarank.adapt(m, rank=2, targets=["0"]),
        lambda m, folder: bottlenecks(m, ["4"], rank=2, targets=["4"]),
        lambda m, folder: adarank.load_adapter(m, folder),
        lambda m, folder: adarank.from_peft(m, folder / "peft"),
        lambda m, folder: adarank.merge(m),
        lambda m, folder: adarank.unmerge(m),
        lambda m, folder: adarank.compact(m),
        lambda m, folder: adarank.compress(m, 1),
    ],
)
def test_what_ddp_would_not_notice_is_refused(change, ddp, tmp_path):
    model = net()
    nn.init.ones_(adarank.adapt(model, rank=2, targets=["4"])["4"].lam)
    adarank.save_adapter(model, tmp_path)
    adarank.to_peft(model, tmp_path / "peft")
    before = [name for name, _ in model.named_modules()]
    wrapped = ddp(model)
    with pytest.raises(SettingError, match="wrapped in DistributedDataParallel, which keeps the Parameters"):
        change(wrapped, tmp_path)
    assert [name for name, _ in model.named_modules()] == before
    assert adarank.ranks(wrapped) == {"4": 2}


def test_a_wrapper_inside_is_refused():
    model = net()
    model[0] = compiled(model[0])
    with pytest.raises(SettingError, match=r"^0 is wrapped in OptimizedModule, .*; use its method compile\(\)$"):
        adarank.adapt(model, rank=2, targets=["4"])
    model = net()
    model[0].compile(backend="eager")
    assert list(adarank.adapt(model, rank=2, targets=["4"])) == ["4"]


def test_fsdp_1_is_refused():
    FullyShardedDataParallel = type("FullyShardedDataParallel", (nn.Module,), {})
    with pytest.raises(SettingError, match=r"use torch.distributed.fsdp.fully_shard"):
        adarank.ranks(FullyShardedDataParallel())


def trained_net(**options):
    model = net()
    adarank.adapt(model, rank=4, targets=["0"], **options)
    for seed in range(9):
        model(images(seed))  # its running mean and variance follow the new data
    return model.eval()


@pytest.mark.parametrize("options", [{}, {"train": ["4", "1"]}, {"adapter": "lora", "init": "pissa"}])
def test_statistics_that_training_changed_are_saved(options, tmp_path):
    model = trained_net(**options)
    adarank.save_adapter(model, tmp_path)
    other = net()
    adarank.load_adapter(other, tmp_path)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(getattr(other[1], name), getattr(model[1], name))
    assert torch.equal(other.eval()(images(9)), model(images(9)))
    with adarank.disabled(other):
        assert torch.allclose(other(images(9)), net().eval()(images(9)), atol=1e-5)


@pytest.mark.parametrize("kind", ["bottleneck", "bitfit", "head"])
def test_statistics_are_saved_without_triplets(kind, tmp_path):
    from adarank.adapters import bitfit

    model = net()
    if kind == "bottleneck":
        bottlenecks(model, ["4"], rank=2, targets=["4"])
    else:
        getattr(bitfit, kind)(model, train=["4"])
    model(images(0))
    adarank.save_adapter(model, tmp_path)
    other = net()
    adarank.load_adapter(other, tmp_path)
    assert torch.equal(other.eval()(images(9)), model.eval()(images(9)))


def test_without_its_adapters_the_model_is_its_base_statistics_included():
    model = trained_net()
    after = model(images(9))
    with adarank.disabled(model):
        assert torch.equal(model(images(9)), net().eval()(images(9)))
    assert torch.equal(model(images(9)), after)


def test_statistics_of_a_module_that_is_not_trained_are_no_lora_of_peft(tmp_path):
    model = trained_net()
    nn.init.ones_(model[0].lam)
    with pytest.raises(SettingError, match=r"^training changed 1\.running_mean, a buffer .* name the module in train="):
        adarank.to_peft(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_statistics_of_a_trained_module_go_to_peft(tmp_path):
    from peft import PeftModel

    model = trained_net(train=["1", "4"])
    nn.init.ones_(model[0].lam)
    adarank.to_peft(model, tmp_path)
    there = PeftModel.from_pretrained(net(), tmp_path).eval()
    assert torch.allclose(there(images(9)), model(images(9)), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_fingerprint_does_not_depend_on_the_dtype(dtype):
    saved = fingerprint(net().requires_grad_(False))
    assert differs_from(net().to(dtype), saved) is None
    assert differs_from(net(), fingerprint(net().to(dtype).requires_grad_(False))) is None


def test_the_fingerprint_does_not_depend_on_quantisation():
    bitsandbytes = pytest.importorskip("bitsandbytes")

    def quantised(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Embedding(9, 64), nn.Linear(64, 64))
        layer = bitsandbytes.nn.Linear4bit(64, 64, quant_type="nf4")
        layer.load_state_dict(model[1].state_dict())
        return model, nn.Sequential(model[0], layer.to("cpu")).requires_grad_(False)

    (plain, in_4_bits), (other, other_in_4_bits) = quantised(0), quantised(1)
    assert differs_from(in_4_bits, fingerprint(plain.requires_grad_(False))) is None
    assert differs_from(plain, fingerprint(in_4_bits)) is None
    assert differs_from(other, fingerprint(in_4_bits)) == "0.weight"
    assert differs_from(other_in_4_bits, fingerprint(plain)) == "0.weight"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_little_more_training_is_another_checkpoint(dtype):
    other = net()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.02 * parameter.std() * torch.randn_like(parameter)
    assert differs_from(other.to(dtype), fingerprint(net().requires_grad_(False))) == "0.weight"


def test_a_scalar_parameter_is_part_of_the_fingerprint():
    """Such as CLIP's logit_scale."""

    def scaled(value):
        model = nn.ModuleDict({"words": nn.Embedding(3, 2)})
        nn.init.ones_(model["words"].weight)
        model.register_parameter("scale", nn.Parameter(torch.tensor(value)))
        return model.requires_grad_(False)

    assert differs_from(scaled(2.0), fingerprint(scaled(2.0))) is None
    assert differs_from(scaled(3.0), fingerprint(scaled(2.0))) == "scale"


def test_more_tokens_are_the_same_checkpoint():
    few, more = nn.ModuleDict({"words": nn.Embedding(10, 4)}), nn.ModuleDict({"words": nn.Embedding(12, 4)})
    with torch.no_grad():
        more["words"].weight[:10] = few["words"].weight
    assert differs_from(more, fingerprint(few.requires_grad_(False))) is None
    assert differs_from(few, fingerprint(more.requires_grad_(False))) == "words.weight"


@pytest.mark.parametrize("options", [{}, {"adapter": "lora", "init": "pissa"}])
def test_another_checkpoint_is_warned_of_or_refused(options, tmp_path):
    model = net()
    adarank.adapt(model, rank=2, targets=["4"], **options)
    adarank.save_adapter(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adarank.load_adapter(net(), tmp_path, strict=True)
    with pytest.warns(UserWarning, match=r"was trained on another checkpoint: .* different values in 0\.weight"):
        adarank.load_adapter(net(seed=1), tmp_path)
    other = net(seed=1)
    with pytest.raises(SettingError, match=r"different values in 0\.weight; load the base that it was trained on"):
        adarank.load_adapter(other, tmp_path, strict=True)
    assert not adarank.ranks(other)
