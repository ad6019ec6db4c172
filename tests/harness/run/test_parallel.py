"""Replicas and pieces, in a group of one process: what is wrapped, what is cut, what is left whole."""

import weakref

import pytest
import torch
from torch import distributed as dist
from torch import nn

import adarank
from adarank.errors import SettingError
from adarank.harness.models import tiny
from adarank.harness.run import parallel
from adarank.harness.run.prepare import enable_gradient_checkpointing


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def built():
    torch.manual_seed(0)
    return tiny("bert", width=32, layers=2).build(2)


INPUTS = {"input_ids": torch.arange(5, 29).view(4, 6), "attention_mask": torch.ones(4, 6, dtype=torch.long)}


def gradients(net, model):
    model.eval()  # without dropout
    net(**INPUTS).logits.square().sum().backward()
    found = {name: parallel.full_tensor(p.grad).clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.usefixtures("group")
def test_a_replica_is_outdated_once_parameters_are_new_and_leaves_no_trace(built):
    adapters = adarank.adapt(built.model, rank=4, train=built.head)
    for adapter in adapters.values():
        nn.init.ones_(adapter.lam)
    expected = gradients(built.model, built.model)
    net = parallel.replicate(built.model)
    assert not parallel.is_outdated(net)
    assert not parallel.is_outdated(built.model)
    found = gradients(net, built.model)
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name]) for name in expected)

    first, *others = adapters.values()
    first.mask[:] = False  # one module at rank 0, whose empty factors get no gradient
    for adapter in others:
        adapter.mask[2:] = False
    adarank.compact(built.model)
    assert parallel.is_outdated(net)
    gone = weakref.ref(net)
    net = None
    assert gone() is None, "DDP's hooks outlive it"
    net = parallel.replicate(built.model)
    assert not parallel.is_outdated(net)
    for _ in range(2):  # DDP complains of an unused parameter in the pass after
        assert len(gradients(net, built.model)) == len(expected) - 3


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("adapted", [True, False])
def test_frozen_weights_are_cut_and_what_trains_stays_whole(built, adapted):
    if adapted:
        adarank.adapt(built.model, rank=4, train=built.head)
    trains = {name for name, p in built.model.named_parameters() if p.requires_grad}
    expected = gradients(built.model, built.model)
    parallel.shard(built.model)
    cut = {name for name, p in built.model.named_parameters() if parallel.is_sharded(p)}
    everything = {name for name, _ in built.model.named_parameters()}
    assert cut == (everything - trains if adapted else everything)
    found = gradients(built.model, built.model)
    assert found.keys() == expected.keys() == trains
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)
    parameter = next(p for p in built.model.parameters() if parallel.is_sharded(p))
    assert torch.equal(
        parallel.full_tensor(parallel.distribute_like(parallel.full_tensor(parameter), parameter)),
        parallel.full_tensor(parameter),
    )


def saved_bytes(model):
    total = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: total.append(t.nbytes) or t, lambda t: t):
        loss = model(**INPUTS).logits.sum()
    loss.backward()
    return sum(total)


def test_recomputed_activations_are_not_kept_and_change_no_gradient(built):
    adarank.adapt(built.model, rank=4, train=built.head)
    built.model.train()
    torch.manual_seed(1)
    kept = saved_bytes(built.model)
    expected = [p.grad.clone() for p in parallel.trained(built.model)]
    built.model.zero_grad()
    enable_gradient_checkpointing(built.model)
    torch.manual_seed(1)
    assert saved_bytes(built.model) < kept / 2
    assert all(torch.equal(p.grad, g) for p, g in zip(parallel.trained(built.model), expected, strict=True))


def test_a_model_that_cannot_recompute_is_refused():
    with pytest.raises(
        SettingError, match=r"train.gradient_checkpointing must be false with Linear, which does not support it"
    ):
        enable_gradient_checkpointing(nn.Linear(2, 2))


def test_logits_are_put_together_in_order(monkeypatch):
    """Three ranks, of which the last has no batch of this round; all_reduce stood in for by a sum over their calls."""
    own = [torch.tensor([[1.0, -0.5], [2.0, 3.0]]), torch.tensor([[7.0, 8.0]]), torch.tensor([[9.0, 9.0]])]
    sent = []
    monkeypatch.setattr(parallel, "world", lambda: 3)
    monkeypatch.setattr(parallel.dist, "all_reduce", lambda tensor: sent.append(tensor))
    for r in range(3):
        monkeypatch.setattr(parallel, "rank", lambda r=r: r)
        parallel.gather_rows(own[r], [2, 1])
    total = sum(t.clone() for t in sent)
    monkeypatch.setattr(parallel.dist, "all_reduce", lambda tensor: tensor.copy_(total))
    for r in range(3):
        monkeypatch.setattr(parallel, "rank", lambda r=r: r)
        found = parallel.gather_rows(own[r], [2, 1])
        assert torch.equal(torch.cat(found), torch.cat(own[:2]))
