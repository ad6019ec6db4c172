"""IGU-LoRA's score against training written out with explicit path points, and what the path promises."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import adarank
from adarank.bank import Bank
from adarank.scores import igu
from tests.conftest import Net
from tests.test_controller import STEPS, data, run, setup

LR, BETA1, BETA2 = 0.3, 0.8, 0.7


def started(**options):
    torch.manual_seed(0)
    net = Net().double()
    adapters = adarank.adapt(net, rank=3)
    with torch.no_grad():
        for adapter in adapters.values():
            adapter.lam.normal_(0, 0.3)
    controller = adarank.RankController(
        adapters,
        score=igu(beta1=BETA1, beta2=BETA2, **options),
        schedule=adarank.schedules.cubic(18, 12, t_i=8, t_f=3, total=12),
    )
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=LR)
    controller.attach(optimizer)
    return net, adapters, controller, optimizer


def loss_at(net, factors, c, x, y):
    """The loss with (P, λ, Q) scaled by c, from plain matrices."""

    def layer(name, x):
        base = net.get_submodule(name).base
        q, lam, p = (c * w for w in factors[name])
        return x @ (base.weight + 2.0 * p.T @ torch.diag(lam) @ q).T + base.bias

    x = net.embed(x)
    for i in range(3):
        x = x + layer(f"layers.{i}.down", torch.tanh(layer(f"layers.{i}.up", x)))
    return F.cross_entropy(net.head(x), y)


@pytest.mark.parametrize("form", ["ratio", "product"])
def test_training_and_scores_are_the_authors_written_out(form):
    net, adapters, controller, optimizer = started(form=form)
    factors = {n: [w.detach().clone() for w in (a.Q, a.lam, a.P)] for n, a in adapters.items()}
    mean = {n: [torch.zeros_like(w) for w in ws] for n, ws in factors.items()}
    spread = {n: [torch.zeros_like(w) for w in ws] for n, ws in factors.items()}
    points = []
    for step in range(8):
        x, y = data(step)
        c = controller.buffers["path"].item() ** (1 / 3)
        points.append(round(20 * c))
        assert c == pytest.approx(points[-1] / 20)
        leaves = {n: [w.requires_grad_() for w in ws] for n, ws in factors.items()}
        flat = [w for ws in leaves.values() for w in ws]
        gradients = iter(torch.autograd.grad(loss_at(net, leaves, c, x.double(), y), flat))
        for name, ws in leaves.items():
            for k, w in enumerate(ws):
                g = next(gradients)
                new = w.detach() - LR * g
                now = (new * g).abs()
                mean[name][k] = BETA1 * mean[name][k] + (1 - BETA1) * now
                spread[name][k] = BETA2 * spread[name][k] + (1 - BETA2) * (now - mean[name][k]).abs()
                factors[name][k] = new
        F.cross_entropy(net(x.double()), y).backward()
        controller.after_backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len(set(points)) > 3
    expected = []
    for name in factors:
        s = [
            m * u if form == "product" else (m + 1e-6) / (u + 1e-6)
            for m, u in zip(mean[name], spread[name], strict=True)
        ]
        expected += [(s[0][i].mean() + s[1][i] + s[2][i].mean()).item() for i in range(3)]
        torch.testing.assert_close(adapters[name].P.detach(), factors[name][2])
    found = controller.score.score(controller.buffers, controller.bank)
    np.testing.assert_allclose(found, expected, rtol=1e-7)


def test_gradients_along_the_path_integrate_to_the_change_of_the_loss():
    """Completeness (arXiv 1703.01365): ∫ Σ w·∂L/∂w(c) dc = L(1) − L(0); the pass at path = c³ gives c·∂L/∂w(c)."""
    net, adapters, controller, _ = started()
    x, y = data(0)
    values, n = [], 40
    for k in range(1, n + 1):
        controller.buffers["path"].fill_((k / n) ** 3)
        net.zero_grad()
        F.cross_entropy(net(x.double()), y).backward()
        product = sum((p * p.grad).sum() for a in adapters.values() for p in (a.Q, a.lam, a.P))
        values.append(product.item() / (k / n))
    net.eval()
    with torch.no_grad():
        whole = F.cross_entropy(net(x.double()), y)
        with adarank.disabled(net):
            base = F.cross_entropy(net(x.double()), y)
    trapezoid = (sum(values) - values[-1] / 2) / n
    assert trapezoid == pytest.approx((whole - base).item(), rel=1e-3)


def test_points_are_uniform_and_belong_to_the_seed():
    bank = Bank(adarank.adapt(Net(), rank=1))

    def drawn(seed, count=2000):
        score = igu(points=5, seed=seed)
        buffers, found = score.init(bank), []
        for _ in range(count):
            found.append(round(5 * buffers["path"].item() ** (1 / 3)))
            score.observe(buffers, bank)
        return found

    first = drawn(3)
    counts = np.bincount(first, minlength=6)
    assert counts[0] == 0
    assert abs(counts[1:] - 400).max() < 80  # four and a half standard deviations
    assert drawn(3, 50) == first[:50]
    assert sum(a == b for a, b in zip(first, drawn(4), strict=True)) < 500


def test_the_path_is_for_training_passes_alone_and_ends_with_the_budget():
    net, adapters, controller, optimizer = setup(score=igu(points=7))
    run(net, controller, optimizer, range(3))
    adapter = next(iter(adapters.values()))
    assert adapter.path is controller.buffers["path"]
    assert not adapter.can_be_fed
    adapter.path.fill_(0.125)
    x = torch.randn(4, adapter.in_features)
    for fused in (True, False):
        adapter.fused = fused
        base = adapter.base(x)
        change = adapter.eval()(x) - base
        torch.testing.assert_close(adapter.train()(x) - base, change / 8, rtol=1e-3, atol=1e-6)
    run(net, controller, optimizer, range(3, STEPS))
    assert controller.buffers["path"] == 1
    net.double()
    controller.sync_views()
    assert adapter.path is controller.buffers["path"]


def test_a_captured_step_walks_the_same_path():
    found = []
    for captured in (False, True):
        net, _, controller, optimizer = setup(score=igu())
        if captured:
            step = adarank.capture(
                net, optimizer, controller, loss=lambda model, batch: F.cross_entropy(model(batch["x"]), batch["y"])
            )
            for t in range(STEPS):
                step(dict(zip(("x", "y"), data(t), strict=True)))
        else:
            run(net, controller, optimizer, range(STEPS))
        found.append(controller.bank.weight.clone())
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"points": 0}, r"score\.points must be a whole number of at least 1 \(got 0\)"),
        ({"form": "snr"}, r"score\.form must be one of ratio, product \(got 'snr'\)"),
        ({"eps": 0.0}, r"score\.eps must be above 0 \(got 0.0\)"),
        ({"beta1": 1.0}, r"score\.beta1 must be at least 0 and below 1 \(got 1.0\)"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, says):
    with pytest.raises(adarank.SettingError, match=says):
        igu(**settings)
