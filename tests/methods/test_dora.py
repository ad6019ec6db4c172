"""DoRA and its magnitude (arXiv 2402.09353) under every allocator, and what pruning does to the magnitude."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import adarank
from adarank import SettingError, allocators, schedules
from adarank.harness.config.compose import spec_from
from experiments.bench.tape import Tape
from tests.conftest import Net

RANK, FINAL, STEPS = 4, 2, 8
# (schedule, first and last budget per module, options) of the allocators that do not prune as AdaLoRA does
SPECIAL = {
    "by_cost": (schedules.cubic, RANK, FINAL, {"unit": "parameters"}),
    "grow": (schedules.growing, 1, FINAL, {"pruned_triplets": "frozen"}),
    "nonzero": (schedules.constant, RANK, RANK, {"penalty": adarank.penalties.l1_proximal(0.5)}),
    "one_by_one": (schedules.growing, 1, FINAL, {"pruned_triplets": "frozen"}),
    "prefix": (schedules.cubic, RANK, FINAL, {"pruned_triplets": "masked"}),
    "prune_expand": (schedules.constant, FINAL, FINAL, {"pruned_triplets": "frozen"}),
}
BUDGETLESS = ("nonzero", "one_by_one", "tolerance")
PRUNING = [(name, "svd_dora") for name in allocators.__all__]
PRUNING += [(name, "dora") for name in allocators.__all__ if name != "nonzero"]  # whose penalty needs λ


def setup(kind="svd_dora", allocator="global_top", **options):
    """(model, adapters, controller, optimiser)."""
    torch.manual_seed(0)
    net = Net(2)
    adapters = adarank.adapt(net, kind, rank=RANK, targets=["up", "down"], train=["head"])
    schedule, begin, end, special = SPECIAL.get(allocator, (schedules.cubic, RANK, FINAL, {}))
    if kind == "dora" and "pruned_triplets" not in special:
        special = {**special, "pruned_triplets": "masked"}
    units = sum(a.in_features + a.out_features + 1 if "unit" in special else 1 for a in adapters.values())
    controller = adarank.RankController(
        adapters,
        **{
            "score": adarank.scores.contribution(),
            "allocator": getattr(allocators, allocator)(),
            "schedule": schedule(begin * units, end * units, t_i=1, t_f=2, total=STEPS),
            **special,
            **options,
        },
    )
    trained = [p for p in net.parameters() if p.requires_grad]
    return net, adapters, controller, torch.optim.AdamW(trained, lr=3e-2, fused=True)


def batch(step):
    draw = torch.Generator().manual_seed(step)
    return {"x": torch.randn(6, 8, generator=draw), "y": torch.randint(0, 3, (6,), generator=draw)}


def loss_of(net, batch):
    return F.cross_entropy(net(batch["x"]), batch["y"])


def train(net, controller, optimizer, steps=STEPS):
    if not controller.optimizers:
        controller.attach(optimizer)
    for _ in range(steps):
        loss_of(net, batch(controller.step)).backward()
        controller.after_backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def dense(net, adapters):
    """The plain model with the paper's W' in place of every W, in NumPy and float64."""
    plain = Net(2).double()
    state = {n.replace(".base.", "."): t for n, t in net.state_dict().items()}
    plain.load_state_dict({n: state[n] for n in plain.state_dict()})
    for name, a in adapters.items():
        W, Q, P, m, lam = (t.double().numpy() for t in (a.base.weight, a.Q, a.P, a.magnitude, a.effective_lam()))
        V = W + a.scale * sum((lam[k] * np.outer(P[k], Q[k]) for k in range(len(lam))), np.zeros_like(W))
        length = np.sqrt((V**2).sum(1))
        plain.get_submodule(name).weight.copy_(torch.from_numpy((m / length)[:, None] * V))
    return plain


@pytest.mark.parametrize(("allocator", "kind"), PRUNING)
def test_it_crosses_every_allocator(allocator, kind, tmp_path):
    net, adapters, controller, optimizer = setup(kind, allocator)
    controller.attach(optimizer)
    start = {name: a.magnitude.detach().clone() for name, a in adapters.items()}
    allocations, masks = 0, set()
    for step in range(STEPS):
        train(net, controller, optimizer, steps=1)
        last = controller.last_allocation
        if last is None or last.step != step:
            continue
        allocations += 1
        masks.add(tuple(last.mask.tolist()))
        assert last.budget == controller.schedule.budget(step)
        spent, largest = (last.parameters, 33) if controller.unit == "parameters" else (last.mask.sum(), 1)
        largest = 4 if allocator == "prefix" else largest  # one number for four modules
        assert allocator in BUDGETLESS or 0 <= last.budget - int(spent) < largest
    assert allocations >= 3
    assert len(masks) >= 2
    assert allocator in (*BUDGETLESS, "by_cost") or int(controller.bank.mask.sum()) == 4 * FINAL
    assert all(not torch.equal(a.magnitude, start[name]) for name, a in adapters.items())

    x = batch(99)["x"]
    expected = dense(net.eval(), adapters)(x.double()).float()
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)
    adarank.compact(net, optimizer)
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-5)
    adarank.save_adapter(net, tmp_path)
    torch.manual_seed(0)
    fresh = Net(2)
    adarank.load_adapter(fresh, tmp_path)
    adarank.merge(fresh.eval())
    torch.testing.assert_close(fresh(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pruned", ["trainable", "frozen", "masked"])
@pytest.mark.parametrize("after", ["keep", "rescale", "reset"])
def test_what_pruning_does_to_the_magnitude(pruned, after):
    """One allocation, looked at from both sides: the triplets that training computed with, and those that are left."""
    one_shot = schedules.one_shot(4 * RANK, 4 * FINAL, t=5, total=STEPS)
    net, adapters, controller, optimizer = setup(
        schedule=one_shot, pruned_triplets=pruned, magnitude_after_pruning=after
    )
    controller.attach(optimizer)
    controller.holds_decisions = True  # the step and the decision apart
    for _ in range(6):
        train(net, controller, optimizer, steps=1)
        found = {name: copy.deepcopy(a) for name, a in adapters.items()}
        controller.decide()
    assert int(controller.bank.mask.sum()) == 4 * FINAL
    for name, a in adapters.items():
        before = found[name]
        W = a.base.weight.double()

        def length(adapter, lam, W=W):
            V = W + adapter.scale * (adapter.P.double().t() * lam.double()) @ adapter.Q.double()
            return V.norm(dim=1)

        old, new = length(before, before.lam), length(a, a.lam * a.mask)
        m = before.magnitude.double()
        expected = {"keep": m, "rescale": m * new / old, "reset": new}[after]
        torch.testing.assert_close(a.magnitude.double(), expected, rtol=1e-5, atol=1e-6)
    pruned_somewhere = [name for name, a in adapters.items() if not a.mask.all()]
    assert pruned_somewhere
    if after != "keep":
        assert all(not torch.equal(adapters[n].magnitude, found[n].magnitude) for n in pruned_somewhere)


def test_a_frozen_magnitude_stays_and_a_run_resumes_bit_for_bit():
    options = {"magnitude_after_pruning": "reset", "compaction": "progressive", "compact_after": 1}
    net, adapters, controller, optimizer = setup(**options)
    first = next(iter(adapters.values()))
    first.magnitude.requires_grad_(False)
    frozen = first.magnitude.clone()
    train(net, controller, optimizer, steps=4)
    assert torch.equal(first.magnitude, frozen)
    state = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    train(net, controller, optimizer, steps=4)
    other, theirs, again, optimizer = setup(**options)
    next(iter(theirs.values())).magnitude.requires_grad_(False)
    again.attach(optimizer)
    optimizer.load_state_dict(state[1])
    other.load_state_dict(state[0])
    train(other, again, optimizer, steps=4)
    assert all(torch.equal(t, net.state_dict()[n]) for n, t in other.state_dict().items())


@pytest.mark.parametrize("after", ["keep", "rescale"])
def test_a_captured_step_is_the_ordinary_loop_s(after):
    net, _, controller, optimizer = setup(magnitude_after_pruning=after)
    step = adarank.capture(net, optimizer, controller, loss=loss_of, max_grad_norm=0, graphs=Tape)
    assert step.feed is None  # the products of a magnitude are not the bank's
    for i in range(STEPS):
        step(batch(i))
    other, _, theirs, optimizer = setup(magnitude_after_pruning=after)
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"])
    train(other, theirs, optimizer)
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensor, other.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_the_setting_is_checked():
    with pytest.raises(SettingError, match=r"^magnitude_after_pruning must be one of keep, rescale, reset \(got 'no'"):
        setup(magnitude_after_pruning="no")
    with pytest.raises(SettingError, match=r"^magnitude_after_pruning must be keep with adapters that have no magnitu"):
        setup("svd", magnitude_after_pruning="reset")
    assert spec_from(["method=adadora", "magnitude_after_pruning=reset"]).magnitude_after_pruning == "reset"
    for method, why in (("adalora", "its adapter has no magnitude"), ("dora", "it prunes nothing")):
        with pytest.raises(
            SettingError, match=f"magnitude_after_pruning=reset has no effect with method={method}: {why}"
        ):
            spec_from([f"method={method}", "magnitude_after_pruning=reset"])
