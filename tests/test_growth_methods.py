"""IncreLoRA, ElaLoRA and FlexLoRA, written out: modules that hold the triplets they have and nothing else, plain SGD
with momentum, importance element by element. Only what is drawn at random is taken from the run under test."""

import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F

import adarank
from adarank.allocators import grow, prune_expand
from tests.conftest import Net

STEPS, T_I, T_F, INTERVAL = 36, 6, 8, 4
HELD, LR, MOMENTUM, GAMMA, CLIP, BETA = 5, 0.5, 0.9, 0.2, 0.8, 0.85
H, B, K = 2, 3, 2


def data(step):
    draw = torch.Generator().manual_seed(step)
    return torch.randn(16, 8, generator=draw).double(), torch.randint(0, 3, (16,), generator=draw)


GROWING, CONSTANT = adarank.schedules.growing, partial(adarank.schedules.constant, from_t_i=True)
METHODS = {
    "increlora": (adarank.scores.adalora, grow(H), GROWING, 1),
    "elalora": (adarank.scores.adalora, prune_expand(B, K, min_rank_grows=False), CONSTANT, 3),
    "flexlora": (adarank.scores.spectral_entropy, prune_expand(B, importance_of="module"), CONSTANT, 3),
}


def under_test(method):
    score, allocator, schedule, rank = METHODS[method]
    torch.manual_seed(0)
    net = Net().double()
    adapters = adarank.adapt(net, "svd", rank=HELD, train=["head"])
    with torch.no_grad():
        for adapter in adapters.values():
            adapter.lam.normal_(0, 0.3)  # a start that every triplet shares in
    n = len(adapters)
    controller = adarank.RankController(
        adapters,
        score=score(),
        allocator=allocator,
        schedule=schedule(rank * n, 3 * n, t_i=T_I, t_f=T_F, total=STEPS, interval=INTERVAL),
        penalty=adarank.penalties.orthogonality(GAMMA),
        pruned_triplets="frozen",
    )
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=LR, momentum=MOMENTUM)
    controller.attach(optimizer)
    return net, adapters, controller, optimizer


class Written:
    """The method as its paper and its authors' code tell it. active[m]: {slot: [q, λ, p]} of module m; past: momentum;
    Ī and Ū."""

    def __init__(self, method, net, adapters):
        self.method, self.scale = method, 2.0
        self.fixed = {n: p.detach().clone() for n, p in net.named_parameters() if ".Q" not in n and ".P" not in n}
        rank = METHODS[method][3]
        self.active = {
            m: {i: [a.Q[i].detach().clone(), a.lam[i].detach().clone(), a.P[i].detach().clone()] for i in range(rank)}
            for m, a in adapters.items()
        }
        self.head = [net.head.weight.detach().clone(), net.head.bias.detach().clone()]
        zeros = {
            (m, i): [torch.zeros_like(w) for w in ws] for m, slots in self.active.items() for i, ws in slots.items()
        }
        self.past, self.mean, self.spread = ({k: [w.clone() for w in ws] for k, ws in zeros.items()} for _ in range(3))
        self.head_past = [torch.zeros_like(w) for w in self.head]

    def layer(self, name, x):
        weight, bias = self.fixed[f"{name}.base.weight"], self.fixed[f"{name}.base.bias"]
        for q, lam, p in self.active[name].values():
            weight = weight + self.scale * lam * torch.outer(p, q)
        return x @ weight.T + bias

    def loss(self, x, y):
        x = x @ self.fixed["embed.weight"].T + self.fixed["embed.bias"]
        for i in range(3):
            x = x + self.layer(f"layers.{i}.down", torch.tanh(self.layer(f"layers.{i}.up", x)))
        total = F.cross_entropy(x @ self.head[0].T + self.head[1], y)
        for slots in self.active.values():
            for part in (0, 2):
                A = torch.stack([w[part] for w in slots.values()])
                total = total + GAMMA / (2 * len(self.active)) * torch.linalg.norm(A @ A.T - torch.eye(len(A)).double())
        return total

    def step(self, t):
        where = [(m, i, part) for m, slots in self.active.items() for i in slots for part in range(3)]
        leaves = [self.active[m][i][part].requires_grad_() for m, i, part in where]
        self.head = [w.detach().requires_grad_() for w in self.head]
        gradients = torch.autograd.grad(self.loss(*data(t)), leaves + self.head)
        norm = math.sqrt(sum((g**2).sum().item() for g in gradients))
        gradients = [g * min(1.0, CLIP / (norm + 1e-6)) for g in gradients]
        for (m, i, part), g in zip(where, gradients, strict=False):
            past = self.past[m, i]
            past[part] = MOMENTUM * past[part] + g
            new = self.active[m][i][part].detach() - LR * past[part]
            self.active[m][i][part] = new
            if t < STEPS - T_F:
                now, mean, spread = (new * g).abs(), self.mean[m, i], self.spread[m, i]
                mean[part] = BETA * mean[part] + (1 - BETA) * now
                spread[part] = BETA * spread[part] + (1 - BETA) * (now - mean[part]).abs()
        self.head_past = [MOMENTUM * p + g for p, g in zip(self.head_past, gradients[len(where) :], strict=True)]
        self.head = [w.detach() - LR * p for w, p in zip(self.head, self.head_past, strict=True)]

    def importance(self, m):
        """{slot: importance} of one module's triplets: AdaLoRA's eqs. 7-11."""
        found = {}
        for i in self.active[m]:
            s = [(a * b) for a, b in zip(self.mean[m, i], self.spread[m, i], strict=True)]
            found[i] = (s[0].mean() + s[1] + s[2].mean()).item()
        return found

    def entropy(self, m):
        """FlexLoRA: H of the module, from 0 to 1; r counts directions that have any energy."""
        energy = [lam.item() ** 2 for _, lam, _ in self.active[m].values() if lam.item()]
        if len(energy) < 2:
            return 0.0
        p = [e / sum(energy) for e in energy]
        return -sum(x * math.log(x) for x in p) / math.log(len(p))

    def changes(self, t):
        """(slots to drop, slots to add), as (module, slot), of the allocation after step t."""
        due = t % INTERVAL == 0 if self.method == "increlora" else (t - T_I) % INTERVAL == 0
        if not (T_I < t <= STEPS - T_F and due):
            return [], []
        free = {m: [i for i in range(HELD) if i not in slots] for m, slots in self.active.items()}
        names = list(self.active)
        if self.method == "increlora":
            budget = len(names) + 2 * len(names) * (t - T_I) // (STEPS - T_F - T_I)
            room = budget - sum(map(len, self.active.values()))
            mean = {m: sum(self.importance(m).values()) / len(self.active[m]) for m in names}
            best, new, group = sorted(names, key=lambda m: -mean[m]), [], []
            while len(new) < room:
                if not any(free[m] for m in group):
                    group = [m for m in best if free[m]][:H]
                for m in group:
                    if free[m] and len(new) < room:
                        new.append((m, free[m].pop(0)))
            return [], new
        b = round(B * (1 - ((t - T_I) / (STEPS - T_F - T_I)) ** 3))
        if self.method == "elalora":
            lowest = {m: sorted((v, i) for i, v in self.importance(m).items()) for m in names}
            candidates = [(v, m, i) for m in names for v, i in lowest[m][: min(K, len(lowest[m]) - 1)]]
            down, up = sorted(candidates)[:b], [(-v, m) for v, m, _ in sorted(candidates, reverse=True)]
        else:
            H_of = {m: self.entropy(m) for m in names}
            least = {m: min(self.active[m], key=lambda i: self.active[m][i][1].item() ** 2) for m in names}
            down = sorted((H_of[m], m, least[m]) for m in names if len(self.active[m]) > 1)[:b]
            up = sorted((-H_of[m], m) for m in names)
        new = []
        for _, m in up:
            if free[m] and len(new) < len(down):
                new.append((m, free[m].pop(0)))
        return [(m, i) for _, m, i in down], new

    def change(self, t, adapters):
        off, on = self.changes(t)
        for m, i in off:
            del self.active[m][i]
        for m, i in on:
            a = adapters[m]
            self.active[m][i] = [a.Q[i].detach().clone(), torch.zeros(()).double(), a.P[i].detach().clone()]
            for kept in (self.past, self.mean, self.spread):
                kept[m, i] = [torch.zeros_like(w) for w in self.active[m][i]]
        return len(off), len(on)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_follows_its_paper_step_by_step(method):
    net, adapters, controller, optimizer = under_test(method)
    written = Written(method, net, adapters)
    moved = 0
    for t in range(STEPS):
        x, y = data(t)
        F.cross_entropy(net(x), y).backward()
        controller.after_backward()
        torch.nn.utils.clip_grad_norm_([p for p in net.parameters() if p.requires_grad], CLIP)
        optimizer.step()
        optimizer.zero_grad()
        written.step(t)
        moved += sum(written.change(t, adapters))
        for m, adapter in adapters.items():
            assert [i for i, on in enumerate(adapter.mask.tolist()) if on] == sorted(written.active[m]), (t, m)
            for i, (q, lam, p) in written.active[m].items():
                torch.testing.assert_close(adapter.Q[i], q, rtol=1e-8, atol=1e-11)
                torch.testing.assert_close(adapter.lam[i], lam, rtol=1e-8, atol=1e-11)
                torch.testing.assert_close(adapter.P[i], p, rtol=1e-8, atol=1e-11)
    assert moved >= 12  # the reference had something to decide
    assert sum(adarank.ranks(net).values()) == 3 * len(adapters)
    assert len(set(adarank.ranks(net).values())) > 1
