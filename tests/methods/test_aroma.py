"""AROMA (arXiv 2504.05343) against its two loops written out, with components that are merged into W as the authors do."""

import copy

import pytest
import torch

import adarank
from adarank.allocators.allocator import Request
from tests.methods.two_layers import Two

LR, DECAY, CHANGE, CHECKS, THRESHOLD, INTERVAL, HELD = 0.02, 0.1, 0.35, 6, 0.6, 3, 6


def data():
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(32, d, generator=draw, dtype=torch.float64) for d in (7, 6)]


def setup(total=90, kind="lora", threshold=THRESHOLD):
    torch.manual_seed(2)
    net = Two()
    adapters = adarank.adapt(net, kind, rank=HELD, targets=["first", "second"])
    controller = adarank.RankController(
        adapters,
        score=adarank.scores.settling(CHANGE, CHECKS),
        allocator=adarank.allocators.one_by_one(threshold),
        schedule=adarank.schedules.growing(2, 2 * HELD, t_i=0, t_f=2, total=total, interval=INTERVAL),
        pruned_triplets="frozen",
    )
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=LR, weight_decay=DECAY)
    controller.attach(optimizer)
    return net, adapters, controller, optimizer


def step(net, controller, optimizer):
    x, y = data()
    (net(x) - y).square().mean().backward()
    controller.after_backward()
    optimizer.step()
    optimizer.zero_grad()


class Written:
    """Per module: W with the merged components, and the component in training, a [d_in] and b [d_out]."""

    def __init__(self, adapters):
        self.scale = {n: a.scale for n, a in adapters.items()}
        self.W = {n: a.base.weight.detach().clone() for n, a in adapters.items()}
        self.bias = {n: a.base.bias.detach() for n, a in adapters.items()}
        self.norm = {n: torch.linalg.norm(W) for n, W in self.W.items()}
        self.ranks = dict.fromkeys(adapters, 0)
        self.converged = set()
        self.t = 0
        self.components = {}
        for name, adapter in adapters.items():
            self.begin(name, adapter.Q[0])

    def begin(self, name, a):
        ab = [a.detach().clone(), torch.zeros(len(self.W[name]), dtype=torch.float64)]
        self.components[name] = {"ab": ab, "m": [0.0, 0.0], "v": [0.0, 0.0]}
        self.components[name] |= {"previous": None, "stable": False, "checks": 0}

    def delta(self, name, ab):
        return self.scale[name] * torch.outer(ab[1], ab[0])

    def train(self):
        x, y = data()
        active = [n for n in self.W if n not in self.converged]
        leaves = {n: [w.clone().requires_grad_(True) for w in self.components[n]["ab"]] for n in active}
        h = x
        for name in ("first", "second"):
            W = self.W[name] + (self.delta(name, leaves[name]) if name in leaves else 0)
            h = h @ W.t() + self.bias[name]
            h = torch.tanh(h) if name == "first" else h
        found = (
            torch.autograd.grad((h - y).square().mean(), [w for ab in leaves.values() for w in ab]) if active else ()
        )
        self.t += 1
        for i, name in enumerate(active):
            c = self.components[name]
            for j, g in enumerate(found[2 * i : 2 * i + 2]):
                c["m"][j] = 0.9 * c["m"][j] + 0.1 * g
                c["v"][j] = 0.999 * c["v"][j] + 0.001 * g * g
                change = c["m"][j] / (1 - 0.9**self.t) / ((c["v"][j] / (1 - 0.999**self.t)).sqrt() + 1e-8)
                c["ab"][j] = c["ab"][j] * (1 - LR * DECAY) - LR * change

    def check(self, drawn):
        """drawn(name): what the library drew for the module's next component, if it has a slot for one."""
        active = [n for n in self.W if n not in self.converged]
        for name in active:
            c = self.components[name]
            product = self.delta(name, c["ab"])
            if c["previous"] is not None and torch.linalg.norm(product - c["previous"]) < CHANGE * torch.linalg.norm(
                c["previous"]
            ):
                c["stable"] = True
            c["previous"] = product
            c["checks"] += 1
        if not active or not all(
            self.components[n]["stable"] or self.components[n]["checks"] >= CHECKS for n in active
        ):
            return False
        for name in active:
            product = self.delta(name, self.components[name]["ab"])
            if torch.linalg.norm(product) / self.norm[name] < THRESHOLD:
                self.converged.add(name)
                continue
            self.W[name] = self.W[name] + product
            self.ranks[name] += 1
            self.begin(name, drawn(name))
        return True

    def dense(self, name):
        merged = self.W[name]
        return merged if name in self.converged else merged + self.delta(name, self.components[name]["ab"])


def test_every_step_is_the_written_out_algorithm_s():
    net, adapters, controller, optimizer = setup()
    written, grown = Written(adapters), []

    def drawn(name):
        return adapters[name].Q[written.ranks[name]]

    for t in range(84):
        step(net, controller, optimizer)
        written.train()
        if t and t % INTERVAL == 0 and written.check(drawn):
            grown.append(t)
        for name, a in adapters.items():
            assert int(a.mask.sum()) == written.ranks[name] + (name not in written.converged)
            torch.testing.assert_close(a.base.weight + a.delta().detach(), written.dense(name), rtol=1e-8, atol=1e-10)
    waited = {b - a for a, b in zip([0, *grown], grown, strict=False)}
    assert CHECKS * INTERVAL in waited, "the longest inner loop"
    assert min(waited) < CHECKS * INTERVAL, "one that stops by itself"
    assert written.ranks == {"first": 4, "second": 2}
    assert len(written.converged) == 2, "both modules stop by themselves"


def test_finished_components_never_change_and_the_new_one_starts_with_zeroed_averages():
    """In spite of weight decay and momentum; with λ trained, too."""
    net, adapters, controller, optimizer = setup(kind="svd", threshold=1e-4)
    kept, fresh = {}, 0
    for _ in range(60):
        before = controller.bank.mask.clone()
        step(net, controller, optimizer)
        for name, finished in zip(
            adapters, controller.finished.split([a.rank for a in adapters.values()]), strict=True
        ):
            a = adapters[name]
            for i in finished.nonzero().flatten().tolist():
                now = torch.cat([a.Q[i], a.lam[i : i + 1], a.P[i]]).detach().clone()
                assert torch.equal(kept.setdefault((name, i), now), now)
        started = (controller.bank.mask & ~before).split([a.rank for a in adapters.values()])
        for a, rows in zip(adapters.values(), started, strict=True):
            for i in rows.nonzero().flatten().tolist():
                fresh += 1
                assert not any(
                    optimizer.state[p][k][i].any() for p in (a.Q, a.lam, a.P) for k in ("exp_avg", "exp_avg_sq")
                )
    assert kept
    assert fresh
    assert all(a.delta().any() for a in adapters.values())


def test_a_resumed_run_and_a_merged_model_are_the_same():
    net, _, controller, optimizer = setup()
    for _ in range(20):
        step(net, controller, optimizer)
    assert controller.finished.any()
    state, optimizer_state = copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict())
    other, _, second, resumed = setup()
    resumed.load_state_dict(optimizer_state)
    other.load_state_dict(state)
    for _ in range(25):
        step(net, controller, optimizer)
        step(other, second, resumed)
    for (name, a), b in zip(net.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert torch.equal(controller.finished, second.finished)
    x, _ = data()
    net.eval()
    out = net(x)
    assert adarank.compact(net, optimizer) == {n: int(m) for n, m in adarank.ranks(net).items()}
    assert len(controller.finished) == controller.bank.triplets
    torch.testing.assert_close(net(x), out)
    adarank.merge(net)
    torch.testing.assert_close(net(x), out)


def test_a_frozen_adapter_keeps_its_component_and_the_other_grows():
    net, adapters, controller, optimizer = setup()
    for p in adapters["first"].parameters():
        p.requires_grad_(False)
    before = [adapters["first"].Q.clone(), adapters["first"].P.clone()]
    for _ in range(30):
        step(net, controller, optimizer)
    assert torch.equal(adapters["first"].Q, before[0])
    assert torch.equal(adapters["first"].P, before[1])
    assert adarank.ranks(net)["first"] == 1
    assert adarank.ranks(net)["second"] > 1


def request(scores, mask, finished):
    n = len(scores)
    modules = torch.arange(n // 3).repeat_interleave(3)
    tensors = (torch.tensor(scores), torch.tensor(mask).bool(), 0, torch.ones(n, dtype=torch.long), modules)
    return Request(*tensors, finished=torch.tensor(finished).bool())


@pytest.mark.parametrize(
    ("scores", "mask", "finished", "expected"),
    [
        ([0.5, 0, 0, 0.5, 0, 0], [1, 0, 0, 1, 0, 0], [0] * 6, [1, 1, 0, 1, 1, 0]),  # both are done
        ([0.5, 0, 0, -0.5, 0, 0], [1, 0, 0, 1, 0, 0], [0] * 6, [1, 0, 0, 1, 0, 0]),  # one still moves
        ([0.5, 0.01, 0, 0.5, 0.5, 0], [1, 1, 0, 1, 1, 0], [1, 0, 0, 1, 0, 0], [1, 0, 0, 1, 1, 1]),  # one fades
        ([0.5, 0, 0, 0.5, 0.5, 0], [1, 0, 0, 1, 1, 0], [1, 0, 0, 1, 0, 0], [1, 0, 0, 1, 1, 1]),  # one has converged
        ([0.5, 0.5, 0.5, 0.5, 0, 0], [1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0]),  # one is full
        ([0.01, 0, 0, 0.01, 0, 0], [1, 0, 0, 1, 0, 0], [1, 0, 0, 1, 0, 0], [1, 0, 0, 1, 0, 0]),  # all have converged
    ],
)
def test_the_outer_loop(scores, mask, finished, expected):
    new = adarank.allocators.one_by_one(0.1)(request(scores, mask, finished))
    assert new.int().tolist() == expected


def test_bad_settings():
    with pytest.raises(adarank.SettingError, match=r"allocator\.threshold must be at least 0 \(got -1\)"):
        adarank.allocators.one_by_one(-1)
    with pytest.raises(adarank.SettingError, match=r"score\.change must be at least 0 \(got -1\)"):
        adarank.scores.settling(-1)
    with pytest.raises(adarank.SettingError, match=r"score\.checks must be a whole number of at least 1 \(got 0\)"):
        adarank.scores.settling(checks=0)
