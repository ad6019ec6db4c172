"""Inits that change the base: everything that leaves the model is relative to the original base."""

from copy import deepcopy

import pytest
import torch
from torch import nn

import adarank
from adarank import SettingError
from adarank.adapters.lowrank import LowRank
from tests.inits.conftest import Classifier, some_batches

CHANGING = ["pissa", "milora", "olora", "corda", "lora_ga"]
RANKS = [4, 1, 3, 2, 5, 6]
changing = pytest.mark.parametrize("init", CHANGING)
kinds = pytest.mark.parametrize("kind", ["svd", "lora"])
BATCH = some_batches(1, seed=9)[0]


def fresh(dtype=torch.float32):
    """The original base, freshly loaded."""
    torch.manual_seed(0)
    return Classifier(dtype)


def started(init, kind, dtype=torch.float32, model=None):
    """Adapted with uneven ranks and rsLoRA's scaling."""
    model = fresh(dtype) if model is None else model
    names = [n for n, m in model.named_modules() if n.endswith(("up", "down"))]
    ranks = dict(zip(names, RANKS, strict=True))
    batches = some_batches(4, dtype=dtype)
    adapters = adarank.adapt(model, kind, ranks, alpha=3.0, rslora=True, init=init, batches=batches, train=["head"])
    return model, adapters


def trained(init, kind, dtype=torch.float32):
    """Three AdamW steps, then some triplets pruned."""
    model, adapters = started(init, kind, dtype)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for batch in some_batches(3, dtype=dtype, seed=5):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for adapter in adapters.values():
        adapter.mask[1::2] = False
    return model.eval(), adapters


def logits(model):
    with torch.no_grad():
        return model.eval()(x=BATCH["x"].to(next(model.parameters()).dtype)).logits


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@changing
@kinds
def test_saved_and_reloaded_on_a_fresh_base(init, kind, tmp_path):
    model, adapters = trained(init, kind)
    adarank.save_adapter(model, tmp_path)
    again = fresh()
    loaded = adarank.load_adapter(again, tmp_path)
    close(logits(again), logits(model))
    assert [a.rank for a in loaded.values()] == [(r + 1) // 2 for r in RANKS]
    for name, adapter in loaded.items():
        assert torch.equal(adapter.base.weight, adapters[name].base.weight)


@changing
@kinds
def test_merged_unmerged_and_disabled(init, kind):
    model, _ = trained(init, kind)
    expected, original = logits(model), fresh()
    with torch.no_grad():  # the head was trained
        original.net.head.load_state_dict(model.net.head.state_dict())
    with adarank.disabled(model):
        close(logits(model), logits(original))
    adarank.merge(model)
    plain = fresh()
    plain.load_state_dict(model.state_dict())
    close(logits(plain), expected)
    adarank.unmerge(model)
    close(logits(model), expected)
    with adarank.disabled(model):
        close(logits(model), logits(original))


@changing
@kinds
def test_a_copy_and_a_compacted_model_compute_the_same(init, kind):
    model, _ = trained(init, kind)
    expected = logits(model)
    copy = deepcopy(model)
    adarank.compact(copy)
    close(logits(copy), expected)
    with adarank.disabled(copy), adarank.disabled(model):
        close(logits(copy), logits(model))


@changing
@kinds
@pytest.mark.parametrize("into", ["the same init", "the default init", "another init"])
@pytest.mark.parametrize("base", [True, False], ids=["whole state", "without the base"])
def test_a_state_dict_resumes_in_a_newly_built_model(init, kind, into, base):
    model, _ = trained(init, kind)
    state = {n: t.clone() for n, t in model.state_dict().items() if base or ".base." not in n}
    other = {"the same init": init, "the default init": "default"}.get(into, "olora" if init == "pissa" else "pissa")
    again, adapters = started(other, kind)
    missing, unexpected = again.load_state_dict(state, strict=base)
    assert not unexpected
    assert all(".base." in name for name in missing)
    close(logits(again), logits(model))
    with adarank.disabled(again), adarank.disabled(model):
        close(logits(again), logits(model))
    if into == "the same init":
        for name, adapter in adapters.items():  # exactly: nothing was put back and taken out again
            assert torch.equal(adapter.base.weight, model.get_submodule(name).base.weight)


def test_a_state_dict_without_a_start_is_no_state_of_a_changed_base():
    plain, _ = started("default", "svd")
    again, _ = started("pissa", "svd")
    with pytest.raises(RuntimeError, match="start_Q"):
        again.load_state_dict(plain.state_dict())


@changing
@kinds
def test_a_half_precision_base_loses_one_rounding_of_the_residual(init, kind, safe_bf16):
    """bf16 keeps 8 bits: half a unit in the last place of W − ΔW₀ is at most 2⁻⁸ of it."""
    original = fresh(torch.bfloat16)
    _, adapters = started(init, kind, torch.bfloat16)
    for name, adapter in adapters.items():
        W = original.get_submodule(name).weight.float()
        residual = W - adapter.start()
        error = (adapter.base.weight.float() + adapter.delta() - W).abs()
        assert error.max() <= residual.abs().max() * 2**-8
        assert error.max() > 0


@changing
def test_half_precision_reloads_to_the_same_residual(init, tmp_path, safe_bf16):
    model, adapters = trained(init, "svd", torch.bfloat16)
    adarank.save_adapter(model, tmp_path)
    again = fresh(torch.bfloat16)
    for name, adapter in adarank.load_adapter(again, tmp_path).items():
        assert torch.equal(adapter.base.weight, adapters[name].base.weight)
    torch.testing.assert_close(logits(again), logits(model), rtol=2e-2, atol=2e-2)


@changing
def test_adalora_prunes_to_half_and_the_result_survives(init, tmp_path):
    """Ends at exactly half the triplets, reloads and merges relative to the original base."""
    model, adapters = started(init, "svd")
    total = sum(RANKS)
    controller = adarank.RankController(
        adapters,
        score=adarank.scores.adalora(beta1=0.85, beta2=0.85),
        schedule=adarank.schedules.cubic(initial=total, final=total // 2, t_i=2, t_f=2, total=12, interval=1),
        penalty=adarank.penalties.orthogonality(gamma=0.1),
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    controller.attach(optimizer)
    for batch in some_batches(12, seed=3):
        model(**batch).loss.backward()
        controller.after_backward()
        optimizer.step()
        optimizer.zero_grad()
    assert sum(adarank.ranks(model).values()) == total // 2
    expected = logits(model)
    adarank.save_adapter(model, tmp_path)
    again = fresh()
    adarank.load_adapter(again, tmp_path)
    close(logits(again), expected)
    adarank.merge(again)
    close(logits(again), expected)


def test_a_growing_schedule_is_refused():
    """It would start without triplets that were taken out of the base."""
    _, adapters = started("pissa", "svd")
    with pytest.raises(SettingError, match="because the init subtracted all of them from the base"):
        adarank.RankController(
            adapters,
            score=adarank.scores.adalora(),
            schedule=adarank.schedules.cubic(initial=8, final=8, t_i=1, t_f=1, total=9, interval=1),
            pruned_triplets="frozen",
        )


@pytest.mark.parametrize("base", [nn.Conv2d(3, 8, 3), nn.Embedding(20, 8)], ids=["convolution", "embedding"])
@pytest.mark.parametrize("init", ["pissa", "olora"])
@kinds
def test_other_layers_keep_their_function(base, init, kind):
    x = torch.randn(2, 3, 6, 6) if isinstance(base, nn.Conv2d) else torch.tensor([[1, 7], [19, 0]])
    model = nn.Sequential(deepcopy(base))
    expected = model(x)
    adapters = adarank.adapt(model, kind, rank=3, targets=["0"], init=init)
    close(model(x), expected)
    assert isinstance(adapters["0"], LowRank)
    assert adapters["0"].delta().norm() > 0.1
