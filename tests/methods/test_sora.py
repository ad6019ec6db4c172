"""SoRA (arXiv 2311.11696) against the algorithm written out in NumPy, and what its pieces promise."""

import numpy as np
import pytest
import torch
from torch import nn

import adarank
from adarank.bank import Bank
from adarank.harness.config.spec import Piece, Spec, TrainConfig
from adarank.harness.run.execute import final_rank
from adarank.harness.run.prepare import Prepared
from adarank.scores.score import Score

STEPS, RANK, N = 60, 5, 24


class Regression(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(7, 6, dtype=torch.float64)

    def forward(self, x):
        return self.linear(x)


def reference(W, b, Q, lam, P, s, x, y, rates, xi, times_lr, adam):
    """SoRA by hand: true gradients, AdamW (or SGD) on Q, g, P, then the soft threshold on g alone. Yields g."""
    state = [(np.zeros_like(w), np.zeros_like(w)) for w in (Q, lam, P)]
    for t, lr in enumerate(rates, start=1):
        h = x @ Q.T
        R = 2 / y.size * (x @ W.T + b + s * (h * lam) @ P - y)
        back = s * R @ P.T
        grads = [(back * lam).T @ x, (back * h).sum(0), s * (h * lam).T @ R]
        for w, g, (m, v) in zip((Q, lam, P), grads, state, strict=True):
            if adam:
                m += 0.1 * (g - m)
                v += 0.001 * (g * g - v)
                w -= lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            else:
                w -= lr * g
        threshold = xi * lr if times_lr else xi
        for i in range(len(lam)):
            if lam[i] > threshold:
                lam[i] -= threshold
            elif lam[i] < -threshold:
                lam[i] += threshold
            else:
                lam[i] = 0.0
        yield lam.copy()


def sora(net, xi, times_lr, total=STEPS, init="gate", **options):
    adapters = adarank.adapt(net, rank=RANK, targets=["linear"], init=init)
    controller = adarank.RankController(
        adapters,
        score=adarank.scores.magnitude(),
        allocator=adarank.allocators.nonzero(),
        schedule=adarank.schedules.constant(RANK, RANK, t_i=0, t_f=0, total=total),
        penalty=adarank.penalties.l1_proximal(xi, times_lr),
        **options,
    )
    return adapters["linear"], controller


@pytest.mark.parametrize("times_lr", [True, False])
@pytest.mark.parametrize("adam", [True, False])
def test_the_trajectory_is_the_algorithm_s(adam, times_lr):
    torch.manual_seed(3)
    net = Regression()
    base_rate = 0.05 if adam else 0.5
    adapter, controller = sora(net, 1.0 if times_lr else 0.02, times_lr)
    make = torch.optim.AdamW if adam else torch.optim.SGD
    optimizer = make([p for p in net.parameters() if p.requires_grad], lr=base_rate, weight_decay=0.0)
    controller.attach(optimizer)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 - t / STEPS)
    x, y = torch.randn(N, 7, dtype=torch.float64), torch.randn(N, 6, dtype=torch.float64)
    weights = (net.linear.base.weight, net.linear.base.bias, adapter.Q, adapter.lam, adapter.P)
    arrays = [w.detach().numpy().copy() for w in weights]
    rates = [base_rate * (1 - t / STEPS) for t in range(STEPS)]
    gates = reference(*arrays, adapter.scale, x.numpy(), y.numpy(), rates, 1.0 if times_lr else 0.02, times_lr, adam)
    seen = set()
    for expected in gates:
        (net(x) - y).square().mean().backward()
        controller.after_backward()
        optimizer.step()
        optimizer.zero_grad()
        falling.step()
        np.testing.assert_allclose(adapter.lam.detach().numpy(), expected, rtol=1e-9, atol=1e-12)
        assert controller.step == 1 or np.array_equal(adapter.mask.numpy(), expected != 0)
        seen.add(int((expected != 0).sum()))
    assert min(seen) < RANK, "the case must drop some gates to test anything"
    np.testing.assert_allclose(adapter.Q.detach().numpy(), arrays[2], rtol=1e-8, atol=1e-11)
    np.testing.assert_allclose(adapter.P.detach().numpy(), arrays[4], rtol=1e-8, atol=1e-11)


def test_the_threshold_follows_the_learning_rate_of_the_gates():
    torch.manual_seed(3)
    net = Regression()
    adapter, controller = sora(net, 2.0, True)
    rates = [{"params": [adapter.Q, adapter.P], "lr": 0.5}, {"params": [adapter.lam], "lr": 0.02}]
    optimizer = torch.optim.SGD(rates)
    controller.attach(optimizer)
    net(torch.randn(N, 7, dtype=torch.float64)).square().mean().backward()
    controller.after_backward()
    stepped = adapter.lam.detach() - 0.02 * adapter.lam.grad
    optimizer.step()
    torch.testing.assert_close(adapter.lam.detach(), stepped.sign() * (stepped.abs() - 2.0 * 0.02).clamp_min(0))


@pytest.mark.parametrize("variant", ["exact", "paper"])
def test_scores_see_the_gates_before_the_threshold_and_the_allocation_after_it(variant):
    """The written-out order: step, observe, threshold, allocate; the paper's variant observes before the step."""
    torch.manual_seed(3)
    net = Regression()
    adapters = adarank.adapt(net, rank=RANK, targets=["linear"], init="gate")
    adapter, seen = adapters["linear"], {}

    def observe(buffers, bank):
        seen["observed"] = bank.lam.clone()

    def score(buffers, bank):
        seen["scored"] = bank.lam.clone()
        return bank.lam.abs()

    controller = adarank.RankController(
        adapters,
        score=Score(observe=observe, score=score),
        allocator=adarank.allocators.nonzero(),
        schedule=adarank.schedules.constant(RANK, RANK, t_i=0, t_f=0, total=STEPS),
        penalty=adarank.penalties.l1_proximal(0.02, times_lr=False),
        variant=variant,
    )
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.5)
    controller.attach(optimizer)
    for _ in range(3):
        (net(torch.randn(N, 7, dtype=torch.float64)) - 1).square().mean().backward()
        controller.after_backward()
        before, gradient = adapter.lam.detach().clone(), adapter.lam.grad.clone()
        optimizer.step()
        optimizer.zero_grad()
        stepped = before - 0.5 * gradient
        torch.testing.assert_close(seen["observed"], before if variant == "paper" else stepped)
        torch.testing.assert_close(adapter.lam.detach(), stepped.sign() * (stepped.abs() - 0.02).clamp_min(0))
    assert torch.equal(seen["scored"], adapter.lam.detach())


def test_a_gate_that_was_zero_may_come_back():
    torch.manual_seed(0)
    net = Regression()
    adapter, controller = sora(net, 0.0, True, init="default")  # λ = 0 at the start
    with torch.no_grad():
        adapter.mask.zero_()
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    controller.attach(optimizer)
    for _ in range(2):
        net(torch.randn(N, 7, dtype=torch.float64)).square().mean().backward()
        controller.after_backward()
        optimizer.step()
        optimizer.zero_grad()
    assert adapter.mask.all()
    assert adapter.lam.all()


def test_what_the_strength_leaves_is_no_budget_and_is_compacted_without_changing_the_function():
    torch.manual_seed(3)
    net = Regression()
    adapter, controller = sora(net, 1.0, True)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.05)
    controller.attach(optimizer)
    x = torch.randn(N, 7, dtype=torch.float64)
    for _ in range(STEPS):
        (net(x) - 1).square().mean().backward()
        controller.after_backward()
        optimizer.step()
        optimizer.zero_grad()
    assert controller.allocator.keeps_budget is False
    left = int(adapter.mask.sum())
    assert 0 < left < RANK
    trained = net(x)
    assert adarank.compact(net, optimizer) == {"linear": left}
    torch.testing.assert_close(net(x), trained)


def test_the_summary_has_no_budget_and_the_ranks_left():
    net = Regression()
    adapter, controller = sora(net, 1.0, True)
    with torch.no_grad():
        adapter.mask[:2] = False
    nonzero = Piece("allocator", "adarank.allocators.nonzero", {})
    settings = Spec(method="sora", rank=RANK, init_rank=RANK, allocator=nonzero, train=TrainConfig(lr=1.0))
    found = final_rank(Prepared(net, {"linear": adapter}, controller), settings)
    assert found == {"initial": RANK, "budget": None, "budget_triplets": None, "final": {"linear": RANK - 2}}
    controller.allocator = adarank.allocators.global_top()
    assert final_rank(Prepared(net, {"linear": adapter}, controller), settings)["budget_triplets"] == RANK


def test_the_soft_threshold_alone():
    net = Regression()
    adapters = adarank.adapt(net, rank=RANK, targets=["linear"])
    bank = Bank(adapters)
    with torch.no_grad():
        bank.lam.copy_(torch.tensor([0.5, -0.5, 0.09, -0.09, 0.0]))
    adarank.penalties.l1_proximal(2.0).proximal(bank, 0.05)
    torch.testing.assert_close(bank.lam, torch.tensor([0.4, -0.4, 0.0, 0.0, 0.0], dtype=bank.lam.dtype))
    assert not bank.lam[2:].any(), "exactly zero"


def test_gates_start_random_and_the_model_unchanged():
    torch.manual_seed(0)
    net = Regression()
    x = torch.randn(N, 7, dtype=torch.float64)
    before = net(x)
    adapter = adarank.adapt(net, rank=RANK, targets=["linear"], init="gate")["linear"]
    torch.testing.assert_close(net(x), before, rtol=0, atol=0)
    assert adapter.lam.all()
    assert adapter.Q.abs().max() <= 1 / np.sqrt(7)


def test_bad_settings():
    with pytest.raises(adarank.SettingError, match=r"penalty\.sparsity must be at least 0 \(got -1\)"):
        adarank.penalties.l1_proximal(-1)
    with pytest.raises(adarank.SettingError, match="init=gate draws λ"):
        adarank.adapt(Regression(), "lora", rank=2, targets=["linear"], init="gate")
    adapters = adarank.adapt(Regression(), "lora", rank=2, targets=["linear"])
    with pytest.raises(adarank.SettingError, match="needs adapters whose λ is trained, such as adapter='svd'"):
        adarank.RankController(adapters, penalty=adarank.penalties.l1_proximal())
