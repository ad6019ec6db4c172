"""Dynamic DoRA (arXiv 2405.17357) against its algorithm written out on plain tensors, and what its pieces promise."""

import copy
import math

import pytest
import torch
from torch import nn

import adarank
from adarank import SettingError
from adarank.bank import Bank
from experiments.bench.tape import Tape

STEPS, START, FINAL = 40, 6, 4
T_I, T_F, INTERVAL, ALPHA, BETA, EPS = 6, 20, 2, 0.1, 0.9, 1e-8


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(7, 9, dtype=torch.float64), nn.Linear(9, 6, dtype=torch.float64)

    def forward(self, x):
        return self.down(torch.tanh(self.up(x)))


def dynamic(net, **options):
    adapters = adarank.adapt(net, "svd", rank=START, targets=["up", "down"], init="kaiming")
    settings = {
        "score": adarank.scores.share(BETA),
        "schedule": adarank.schedules.accelerating(2 * START, 2 * FINAL, T_I, T_F, STEPS, INTERVAL),
        "penalty": adarank.penalties.variance(ALPHA),
    }
    controller = adarank.RankController(adapters, **{**settings, **options})
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=2e-2)
    return adapters, controller.attach(optimizer), optimizer


def batch(step):
    draw = torch.Generator().manual_seed(step)
    return [torch.randn(8, d, generator=draw, dtype=torch.float64) for d in (7, 6)]


def reference(net, factors, scale):
    """The authors' loop (regularization_loss, update_importance_score, prune_lora_scaler) with exactly the budget kept
    and steps counted from 0. Yields (every c, the kept ones) after each step."""
    leaves = {name: [t.clone().requires_grad_() for t in abc] for name, abc in factors.items()}
    optimizer = torch.optim.AdamW([t for abc in leaves.values() for t in abc], lr=2e-2)
    scores = {name: torch.zeros(START, dtype=torch.float64) for name in leaves}
    settled, kept = STEPS - T_F, None
    for step in range(STEPS):
        x, y = batch(step)
        for name in ("up", "down"):
            A, c, B = leaves[name]
            layer = net.get_submodule(name)
            x = x @ layer.weight.T + layer.bias + scale * ((x @ A.T) * c) @ B.T
            x = torch.tanh(x) if name == "up" else x
        loss = (x - y).square().mean()
        if step < settled:
            variances = [A.var(dim=1).sum() + B.var(dim=0).sum() for A, _, B in leaves.values()]
            loss = loss + ALPHA * sum(variances) / (len(leaves) * 2 * START)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for name, (A, c, B) in leaves.items() if step < settled else ():
                parts = [c[i] * torch.outer(B[:, i], A[i]) for i in range(START)]
                norm = sum(parts).norm() + EPS
                share = torch.stack([part.norm() for part in parts]) / norm
                scores[name] = BETA * scores[name] + (1 - BETA) * share
            if T_I < step <= settled and (step % INTERVAL == 0):
                every = torch.cat(list(scores.values()))
                pruned = int((START - FINAL) * 2 * ((step - T_I) / (settled - T_I)) ** 3)
                kept = torch.zeros(len(every), dtype=torch.bool)
                kept[every.argsort(descending=True, stable=True)[: len(every) - pruned]] = True
            if kept is not None and (step > settled or step % INTERVAL == 0):
                for (_, c, _), keeps in zip(leaves.values(), kept.split(START), strict=True):
                    c[~keeps] = 0.0
            every = torch.cat([c for _, c, _ in leaves.values()]).clone()
        yield every, torch.ones(2 * START, dtype=torch.bool) if kept is None else kept.clone()


def test_every_step_is_the_algorithm_s():
    torch.manual_seed(0)
    net = Two().requires_grad_(False)
    plain = copy.deepcopy(net)
    adapters, controller, optimizer = dynamic(net)
    factors = {n: [t.detach().clone() for t in (a.Q, a.lam, a.P.t())] for n, a in adapters.items()}
    masks = set()
    for step, (c, kept) in enumerate(reference(plain, factors, adapters["up"].scale)):
        x, y = batch(step)
        (net(x) - y).square().mean().backward()
        controller.after_backward()
        optimizer.step()
        optimizer.zero_grad()
        assert torch.equal(controller.bank.mask, kept)
        torch.testing.assert_close(controller.bank.lam, c, rtol=1e-7, atol=1e-9)
        masks.add(tuple(kept.tolist()))
    assert len(masks) >= 3
    assert sum(adarank.ranks(net).values()) == 2 * FINAL


@pytest.mark.parametrize("kind", ["svd", "lora"])
def test_the_score_is_the_share_of_the_dense_change(net, kind):
    names = [f"layers.{i}.{n}" for i in range(3) for n in ("up", "down")]
    ranks = dict(zip(names, (2, 3, 2, 5, 4, 3), strict=True))
    adapters = adarank.adapt(net.double(), kind, rank=ranks, targets=names)
    score = adarank.scores.share(0.7)
    bank = Bank(adapters)
    buffers, average = score.init(bank), 0.0
    for _ in range(3):
        with torch.no_grad():
            bank.weight.normal_()
            if kind == "svd":
                adapters[names[0]].lam.zero_()
            else:
                bank.lam.fill_(1.0)
        shares = []
        for a in adapters.values():
            parts = [lam * torch.outer(p, q) for lam, p, q in zip(a.lam, a.P, a.Q, strict=True)]
            shares += [part.norm() / (sum(parts).norm() + EPS) for part in parts]
        average = 0.7 * average + 0.3 * torch.stack(shares).detach()
        score.observe(buffers, bank)
    torch.testing.assert_close(score.score(buffers, bank), average, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("grad_scale", [None, torch.tensor(8.0)])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_penalty_is_autograd_s_gradient(net, grad_scale, frozen):
    names = [f"layers.{i}.{n}" for i in range(3) for n in ("up", "down")]
    ranks = dict(zip(names, (2, 3, 2, 5, 4, 3), strict=True))
    adapters = adarank.adapt(net.double(), rank=ranks, targets=names)
    bank = Bank(adapters)
    bank.frozen = frozen
    for i, a in enumerate(adapters.values()):
        a.mask[i % a.rank] = False
    factors = [f for a in adapters.values() for f in (a.Q, a.P)]
    rows = [row for a in adapters.values() for f in (a.Q, a.P) for row in (f[a.mask] if frozen else f)]
    expected = torch.autograd.grad(0.3 * sum(row.var() for row in rows) / (2 * bank.triplets), factors)
    for f in factors:
        f.grad = torch.ones_like(f)
    bank.sync_views()
    adarank.penalties.variance(0.3).add(bank, grad_scale, False)
    for f, g in zip(factors, expected, strict=True):
        torch.testing.assert_close(f.grad, 1 + float(grad_scale or 1) * g)


def test_a_captured_step_leaves_the_penalty_out_where_the_loop_does():
    def loss_of(net, batch):
        return (net(batch["x"]) - batch["y"]).square().mean()

    def train(graphs):
        torch.manual_seed(0)
        net = Two()
        _, controller, _ = dynamic(net)
        (optimizer,) = controller.optimizers
        for group in optimizer.param_groups:
            group["fused"], group["foreach"] = True, False
            group["lr"] = torch.tensor(group["lr"])
        step = adarank.capture(net, optimizer, controller, loss=loss_of, graphs=graphs)
        return [step(dict(zip("xy", batch(i), strict=True))).item() for i in range(STEPS)]

    assert train(Tape) == train(False)


def test_its_start_is_torch_s_kaiming_rule(net):
    x = torch.randn(4, 8)
    before = net(x)
    adapter = adarank.adapt(net, rank=6, targets=["embed"], init="kaiming")["embed"]
    torch.testing.assert_close(net(x), before)
    for factor, fan_in in ((adapter.Q, 8), (adapter.P, 6)):
        bound = math.sqrt(6 / fan_in)
        assert 0.8 * bound < factor.abs().max() <= bound
    assert not adapter.lam.any()


def test_what_does_not_go_is_refused(net):
    with pytest.raises(SettingError, match="init=kaiming starts with λ = 0, but adapter=lora does not train it"):
        adarank.adapt(net, "lora", rank=2, init="kaiming")
    with pytest.raises(SettingError, match=r"^score.beta must be at least 0 and below 1 \(got 1\)"):
        adarank.scores.share(1)
    with pytest.raises(SettingError, match=r"^penalty.gamma must be at least 0 \(got -1\)"):
        adarank.penalties.variance(-1)
