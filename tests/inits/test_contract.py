"""A contract over every init in conf/init."""

import json
from copy import deepcopy

import pytest
import torch
from omegaconf import OmegaConf

import adarank
from adarank import SettingError
from adarank.harness.config.spec import Piece
from adarank.harness.config.validate import conf_folder
from tests.experiments.test_run import inside
from tests.inits.conftest import Classifier, some_batches
from tests.representatives import representatives

NAMES = sorted(p.stem for p in (conf_folder() / "init").glob("*.yaml") if p.stem != "none")
# 2502.12171 and 2502.01235 start a descent step further, 2510.01938 at λ = 1; the base stays
MOVES = {"gora", "lora_one", "orthonormal"}
# all need a λ that learns; the refusals are tested in tests/methods
REFUSES = {("gate", "lora"), ("kaiming", "lora"), ("orthonormal", "lora")}
every = pytest.mark.parametrize("name", NAMES)
kinds = pytest.mark.parametrize("kind", ["svd", "lora"])


def init_of(name):
    node = OmegaConf.to_container(OmegaConf.load(conf_folder() / "init" / f"{name}.yaml"))
    return Piece("init", node.pop("_target_"), node)()


def adapted(name, kind="svd", rank=4, seed=0, dtype=torch.float32, **how):
    if (name, kind) in REFUSES:
        pytest.skip(f"init={name} refuses adapter={kind}")
    torch.manual_seed(0)
    model = Classifier(dtype)
    torch.manual_seed(seed)
    adapters = adarank.adapt(model, kind, rank=rank, init=init_of(name), batches=some_batches(6, dtype=dtype), **how)
    return model, adapters


def test_the_yaml_files_and_the_functions_are_the_same():
    assert sorted(adarank.inits.__all__) == NAMES


@every
def test_its_name_is_its_file_s(name):
    assert init_of(name).name == name


@every
@kinds
def test_every_factor_is_finite_and_can_learn(name, kind):
    model, adapters = adapted(name, kind)
    model.eval()
    model(**some_batches(1)[0]).loss.backward()
    for adapter in adapters.values():
        for part in (adapter.Q, adapter.lam, adapter.P):
            assert part.isfinite().all()
        if adapter.rank:
            reached = sum(p.grad.abs().sum() for p in adapter.parameters() if p.grad is not None)
            assert reached > 0


@every
@kinds
@pytest.mark.parametrize("how", [{}, {"alpha": 3.0}, {"alpha": 3.0, "rslora": True}], ids=["s=2", "alpha", "rslora"])
def test_it_keeps_the_function(name, kind, how):
    model, _ = adapted(name, kind, **how)
    batch = some_batches(1)[0]
    torch.manual_seed(0)
    plain = Classifier().eval()(**batch).logits
    found = model.eval()(**batch).logits
    if name in MOVES:
        assert not torch.allclose(found, plain, atol=1e-4)
    else:
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
    with adarank.disabled(model):
        torch.testing.assert_close(model(**batch).logits, plain, rtol=1e-4, atol=1e-5)


@every
@kinds
def test_the_same_seed_gives_the_same_factors(name, kind):
    first, second = adapted(name, kind, seed=3)[0], adapted(name, kind, seed=3)[0]
    assert first.state_dict().keys() == second.state_dict().keys()
    assert all(torch.equal(t, second.state_dict()[n]) for n, t in first.state_dict().items())


@every
@pytest.mark.parametrize("uneven", [False, True])
def test_the_total_rank_is_the_one_asked_for(name, uneven):
    names = list(adapted("default")[1])
    asked = {n: 2 + i % 3 if uneven else 4 for i, n in enumerate(names)}
    _, adapters = adapted(name, rank=asked)
    assert sum(a.rank for a in adapters.values()) == sum(asked.values())
    if init_of(name).ranks is None:
        assert {n: a.rank for n, a in adapters.items()} == asked


@every
def test_measuring_leaves_the_model_as_it_was(name):
    init = init_of(name)
    if init.measure is None:
        pytest.skip("it looks at no data")
    torch.manual_seed(0)
    model = Classifier()
    model.net.layers[1].eval()
    model.net.layers[0].up.bias.requires_grad_(False)
    model.net.head.weight.grad = torch.ones_like(model.net.head.weight)
    up = model.net.layers[0].up.weight
    up.grad = torch.full_like(up, 2.0)
    before, twin = deepcopy(model.state_dict()), deepcopy(model)
    random = torch.get_rng_state()
    asked = dict.fromkeys((n for n, m in model.named_modules() if n.endswith(("up", "down"))), 4)
    init.measure(model, asked, some_batches(6))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert [m.training for m in model.modules()] == [m.training for m in twin.modules()]
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in twin.parameters()]
    held = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert held.keys() == {"net.head.weight", "net.layers.0.up.weight"}
    assert held["net.layers.0.up.weight"].eq(2).all()
    assert held["net.head.weight"].eq(1).all()
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks):
            assert not hooks
    assert not any(getattr(p, "_post_accumulate_grad_hooks", None) for p in model.parameters())


@every
def test_missing_batches_are_refused_and_nothing_changes(name):
    init = init_of(name)
    if init.measure is None:
        pytest.skip("it looks at no data")
    for batches, why in ((None, "batches is not given"), ([], "batches is empty")):
        model = Classifier()
        trainable = [p.requires_grad for p in model.parameters()]
        with pytest.raises(SettingError, match=why) as error:
            adarank.adapt(model, rank=4, init=init, batches=batches)
        assert f"init={name}" in str(error.value)
        assert "\n" not in str(error.value)
        assert [p.requires_grad for p in model.parameters()] == trainable
        assert not adarank.adapters.lowrank.adapters_of(model)


@every
def test_factors_of_a_half_precision_base_are_in_fp32(name, safe_bf16):
    _, adapters = adapted(name, dtype=torch.bfloat16)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for a in adapters.values() for p in (a.Q, a.P))
    assert all(a.base.weight.dtype == torch.bfloat16 for a in adapters.values())


@pytest.mark.parametrize("name", representatives(NAMES, ("eva", "pissa")))
def test_it_runs_from_the_command_line_under_a_controller(name, tmp_path):
    small = ["tiny=true", "train.steps=6", "train.eval_every=6", "task.limit=16", "rank=4", "targets=qv"]
    short = ["init.steps=3"] if init_of(name).measure is not None else []
    inside("method=adalora", f"init={name}", *small, *short, f"out={tmp_path}")
    summary = json.loads(next(tmp_path.glob("*/summary.json")).read_text())
    assert summary["status"] == "finished"
    assert sum(summary["rank"]["final"].values()) == 4 * len(summary["rank"]["final"])
