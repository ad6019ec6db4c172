"""DyLoRA (arXiv 2210.07558) against algorithm 1 written out in NumPy."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import adarank
from adarank.allocators import prefix
from adarank.allocators.allocator import Request
from tests.methods.two_layers import Two

STEPS, R_MAX, FINAL = 12, 5, 2


def setup(seed=4):
    torch.manual_seed(2)
    net = Two()
    adapters = adarank.adapt(net, "lora", rank=R_MAX, targets=["first", "second"])
    controller = adarank.RankController(
        adapters,
        score=adarank.scores.contribution(),
        allocator=prefix(),
        schedule=adarank.schedules.late(2 * R_MAX, 2 * FINAL, total=STEPS, t_f=1, interval=1),
        pruned_triplets="masked",
        seed=seed,
    )
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.05, weight_decay=0.1)
    controller.attach(optimizer)
    return net, adapters, controller, optimizer


def data():
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(16, d, generator=draw, dtype=torch.float64) for d in (7, 6)]


def step(net, controller, optimizer):
    x, y = data()
    (net(x) - y).square().mean().backward()
    controller.after_backward()
    optimizer.step()
    optimizer.zero_grad()


def reference(net, adapters, lengths):
    """AdamW on zero-padded gradients of the truncated model; yields the factors after each step."""
    x, y = (t.numpy() for t in data())
    layers = [(a.base.weight.numpy(), a.base.bias.numpy(), a.scale) for a in adapters.values()]
    weights = [w.detach().numpy().copy() for a in adapters.values() for w in (a.Q, a.P)]
    state = [(np.zeros_like(w), np.zeros_like(w)) for w in weights]
    for t, b in enumerate(lengths, start=1):
        Q1, P1, Q2, P2 = (w[:b] for w in weights)  # truncate
        (W1, c1, s1), (W2, c2, s2) = layers
        h = np.tanh(x @ W1.T + c1 + s1 * x @ Q1.T @ P1)
        R2 = 2 / y.size * (h @ W2.T + c2 + s2 * h @ Q2.T @ P2 - y)
        R1 = (R2 @ W2 + s2 * R2 @ P2.T @ Q2) * (1 - h**2)
        short = [s1 * (R1 @ P1.T).T @ x, s1 * (x @ Q1.T).T @ R1, s2 * (R2 @ P2.T).T @ h, s2 * (h @ Q2.T).T @ R2]
        for w, g_b, (m, v) in zip(weights, short, state, strict=True):
            g = np.zeros_like(w)
            g[:b] = g_b
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            w *= 1 - 0.05 * 0.1
            w -= 0.05 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        yield [w.copy() for w in weights]


def test_the_trajectory_is_algorithm_1_s_on_the_lengths_drawn():
    net, adapters, controller, optimizer = setup()
    start = copy.deepcopy((net, adapters))
    lengths, found = [], []
    for _ in range(STEPS):
        masks = [a.mask.numpy() for a in adapters.values()]
        assert np.array_equal(masks[0], masks[1]), "one length for all modules"
        lengths.append(int(masks[0].sum()))
        assert masks[0][: lengths[-1]].all(), "a prefix"
        step(net, controller, optimizer)
        found.append([w.detach().numpy().copy() for a in adapters.values() for w in (a.Q, a.P)])
    assert lengths[0] == R_MAX
    assert len(set(lengths)) > 2
    for ours, theirs in zip(found, reference(*start, lengths), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    assert adarank.ranks(net) == {"first": FINAL, "second": FINAL}
    assert controller.last_allocation.step == STEPS - 1
    assert all(a.lam.eq(1).all() for a in adapters.values())


def test_resuming_draws_the_same_lengths_bit_for_bit():
    net, _, controller, optimizer = setup()
    for _ in range(5):
        step(net, controller, optimizer)
    saved = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    for _ in range(5, STEPS):
        step(net, controller, optimizer)
    again, _, controller, optimizer = setup(seed=99)
    optimizer.load_state_dict(saved[1])
    again.load_state_dict(saved[0])
    for _ in range(5, STEPS):
        step(again, controller, optimizer)
    for name, tensor in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(1, 4), st.integers(0, 2**20), st.data())
def test_laws_of_the_prefix(ranks, minimum, seed, data):
    n = sum(ranks)
    module = torch.arange(len(ranks)).repeat_interleave(torch.tensor(ranks))
    cost = 1 + 3 * module  # dearer modules later
    budget = data.draw(st.integers(0, int(cost.sum())))
    generator = torch.Generator().manual_seed(seed)
    mask = prefix(minimum)(Request(torch.randn(n), torch.ones(n, dtype=torch.bool), budget, cost, module, generator))
    kept = [m.tolist() for m in mask.split(ranks)]
    assert all(m == sorted(m, reverse=True) for m in kept), "a prefix of each module"
    length = max(sum(m) for m in kept)
    assert [sum(m) for m in kept] == [min(length, r) for r in ranks]
    assert int(cost[mask].sum()) <= budget
    if budget == int(cost.sum()):
        assert min(minimum, max(ranks)) <= length <= max(ranks)
    else:
        more = sum(min(length + 1, r) * (1 + 3 * i) for i, r in enumerate(ranks))
        assert more > budget, "a longer prefix would have been paid for"


def test_lengths_are_uniform():
    generator = torch.Generator().manual_seed(0)
    one, ones = torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.long)
    request = Request(torch.zeros(4), ones.bool(), 4, ones, one, generator)
    drawn = [int(prefix(2)(request).sum()) for _ in range(3000)]
    counts = np.bincount(drawn, minlength=5)
    assert not counts[:2].any()
    assert abs(counts[2:] - 1000).max() < 120  # four standard deviations and a half


def test_bad_settings():
    with pytest.raises(
        adarank.SettingError, match=r"allocator\.minimum must be a whole number of at least 1 \(got 0\)"
    ):
        prefix(0)
