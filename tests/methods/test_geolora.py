"""GeoLoRA (arXiv 2410.18720) against the authors' step written out: columns, one module at a time, no batching."""

import copy
from contextlib import contextmanager

import pytest
import torch

import adarank
from adarank.harness.config.compose import spec_from
from adarank.harness.run.captured import check_capture
from adarank.penalties import orthogonality_value
from tests.methods.two_layers import Two

LR, TAU, HELD, STEPS = 2.0, 0.2, 6, 12


def data():
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(32, d, generator=draw, dtype=torch.float64) for d in (13, 14)]


def setup(optimizer=torch.optim.SGD, lr=LR, interval=1, t_f=2, total=STEPS, **controls):
    torch.manual_seed(2)
    net = Two((13, 17, 14))
    init = adarank.inits.orthonormal(lam=0.0)
    adapters = adarank.adapt(net, "svd", rank=HELD, targets=["first", "second"], init=init)
    settings = {
        "score": adarank.scores.magnitude(),
        "allocator": adarank.allocators.tolerance(TAU, min_rank=1),
        "schedule": adarank.schedules.constant(2 * HELD, 2 * HELD, t_i=0, t_f=t_f, total=total, interval=interval),
        "penalty": adarank.penalties.low_rank_manifold(),
    }
    controller = adarank.RankController(adapters, **{**settings, **controls})
    made = optimizer([p for p in net.parameters() if p.requires_grad], lr=lr)
    controller.attach(made)
    return net, adapters, controller, made


def step(net, controller, optimizer):
    x, y = data()
    (net(x) - y).square().mean().backward()
    controller.after_backward()
    optimizer.step()
    optimizer.zero_grad()


def start_at_rank_2(adapters):
    """Two singular values in each module, and four free slots: ΔW as {name: (U, S, V)}, columns."""
    found = {}
    with torch.no_grad():
        for name, adapter in adapters.items():
            adapter.lam.copy_(torch.tensor([0.9, 0.5, 0, 0, 0, 0]))
            adapter.mask[2:] = False
            found[name] = (adapter.P[:2].t().clone(), torch.diag(adapter.lam[:2]).clone(), adapter.Q[:2].t().clone())
    return found


def written_out(net, bases, factors, tau, min_rank):
    """One step of algorithm 1: gradients of U, S and V, K- and L-step, augmentation, coefficients, truncation."""
    x, y = data()
    leaves = {n: tuple(w.clone().requires_grad_(True) for w in usv) for n, usv in factors.items()}
    h = x
    for name in ("first", "second"):
        W, b, s = bases[name]
        U, S, V = leaves[name]
        h = h @ (W + s * U @ S @ V.t()).t() + b
        h = torch.tanh(h) if name == "first" else h
    gradients = torch.autograd.grad((h - y).square().mean(), [w for usv in leaves.values() for w in usv])
    new = {}
    for i, (name, (U, S, V)) in enumerate(factors.items()):
        G_U, G_S, G_V = gradients[3 * i : 3 * i + 3]
        r, inverse = len(S), torch.diag(1 / S.diag())
        G_K, G_L = G_U @ inverse, G_V @ inverse
        U_hat = torch.linalg.qr(torch.cat([U, G_K], 1))[0]
        V_hat = torch.linalg.qr(torch.cat([V, G_L], 1))[0]
        K, L = U @ S - LR * G_K, V @ S.t() - LR * G_L
        S_hat = torch.zeros(2 * r, 2 * r, dtype=torch.float64)
        S_hat[:r, :r] = S - LR * G_S
        S_hat[r:, :r] = U_hat[:, r:].t() @ K
        S_hat[:r, r:] = L.t() @ V_hat[:, r:]
        left, sigma, right = torch.linalg.svd(S_hat)
        kept = 2 * r
        for j in range(2 * r):
            if torch.linalg.norm(sigma[j:]) < tau * torch.linalg.norm(sigma):
                kept = j
                break
        kept = min(max(kept, min_rank), HELD)
        U_hat = torch.cat([U, U_hat[:, r:]], 1)
        V_hat = torch.cat([V, V_hat[:, r:]], 1)
        new[name] = (U_hat @ left[:, :kept], torch.diag(sigma[:kept]), V_hat @ right[:kept].t())
    return new


def test_with_sgd_a_step_is_the_written_out_algorithm_s():
    """Six steps from rank 2, truncated by tolerance after each: the same ranks, singular values and ΔW."""
    net, adapters, controller, optimizer = setup()
    factors = start_at_rank_2(adapters)
    controller.step = 1  # no schedule allocates after step 0
    bases = {n: (a.base.weight.detach(), a.base.bias.detach(), a.scale) for n, a in adapters.items()}
    ranks = set()
    for _ in range(6):
        assert all(2 * len(S) <= HELD for _, S, _ in factors.values()), "the reference has no largest rank"
        factors = written_out(net, bases, factors, TAU, 1)
        step(net, controller, optimizer)
        for name, (U, S, V) in factors.items():
            adapter = adapters[name]
            ranks.add(len(S))
            assert adarank.ranks(net)[name] == len(S)
            torch.testing.assert_close(adapter.lam[adapter.mask].detach(), S.diag(), rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(adapter.delta().detach(), adapter.scale * U @ S @ V.t(), rtol=1e-8, atol=1e-11)
    assert len(ranks) > 1, "a case in which ranks change"


@pytest.mark.parametrize("interval", [1, 3])
def test_rows_stay_orthonormal_and_a_truncation_changes_delta_w_by_less_than_the_tolerance(interval):
    """With AdamW, from λ = 0 at all triplets."""
    net, adapters, controller, optimizer = setup(torch.optim.AdamW, lr=0.02, interval=interval, total=30)
    untruncated = []
    real = controller._allocate

    def watched():
        untruncated.append({n: a.scale * (a.P.t() * a.lam) @ a.Q for n, a in adapters.items()})
        real()
        for name, a in adapters.items():
            lost = torch.linalg.norm(untruncated[-1][name] - a.delta())
            assert lost < TAU * torch.linalg.norm(untruncated[-1][name])

    controller._allocate = watched
    x, y = data()
    first = (net(x) - y).square().mean().item()
    for _ in range(30):
        step(net, controller, optimizer)
        assert orthogonality_value(controller.bank) < 1e-12
        for a in adapters.values():
            kept = a.lam[a.mask].detach()
            assert (kept > 0).all()
            assert kept.equal(kept.sort(descending=True).values)
    assert len(untruncated) == (28 if interval == 1 else 10)
    assert controller.is_settled
    assert sum(adarank.ranks(net).values()) < 2 * HELD
    net.eval()
    assert (net(x) - y).square().mean() < 0.8 * first


def test_it_starts_at_the_base_and_its_first_step_moves_the_coefficients():
    """While S = 0 there is no gradient of K or L: the first step is that of the diagonal of S alone."""
    net, adapters, controller, optimizer = setup()
    x, _ = data()
    before = {n: (a.P.detach().clone(), a.Q.detach().clone()) for n, a in adapters.items()}
    base = Two((13, 17, 14))
    base.load_state_dict({n.replace(".base", ""): w for n, w in net.state_dict().items() if ".base." in n})
    torch.testing.assert_close(net(x), base(x))
    loss = (net(x) - data()[1]).square().mean()
    loss.backward()
    gradients = {n: a.lam.grad.clone() for n, a in adapters.items()}
    controller.allocator = adarank.allocators.tolerance(1e-9)
    controller.after_backward()
    optimizer.step()
    for name, a in adapters.items():
        P, Q = before[name]
        expected = -LR * a.scale * (P.t() * gradients[name]) @ Q
        torch.testing.assert_close(a.delta().detach(), expected)


def test_a_resumed_run_and_a_merged_model_are_the_same():
    """The controller's state in the optimiser and the model's are all that a step needs."""
    net, _, controller, optimizer = setup(torch.optim.AdamW, lr=0.02, interval=2, total=20)
    for _ in range(7):
        step(net, controller, optimizer)
    state, optimizer_state = copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict())
    other, _, second, resumed = setup(torch.optim.AdamW, lr=0.02, interval=2, total=20)
    resumed.load_state_dict(optimizer_state)
    other.load_state_dict(state)
    for _ in range(13):
        step(net, controller, optimizer)
        step(other, second, resumed)
    for (name, a), b in zip(net.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    x, _ = data()
    net.eval()
    out = net(x)
    adarank.merge(net)
    torch.testing.assert_close(net(x), out)


@pytest.mark.parametrize("name", ["global_top", "by_family", "uniform"])
def test_a_budget_can_decide_in_place_of_the_tolerance(name):
    """The largest singular values lie in the triplets that the budget keeps, and evaluation is of those."""
    schedule = adarank.schedules.cubic(2 * HELD, 6, t_i=1, t_f=4, total=STEPS, interval=2)
    allocator = getattr(adarank.allocators, name)()
    net, adapters, controller, optimizer = setup(torch.optim.AdamW, lr=0.02, schedule=schedule, allocator=allocator)
    for _ in range(STEPS):
        step(net, controller, optimizer)
    assert sum(adarank.ranks(net).values()) == 6
    for a in adapters.values():
        assert not a.lam[~a.mask].any()
    assert orthogonality_value(controller.bank) < 1e-12


def test_modules_of_rank_0_and_sides_shorter_than_twice_the_rank():
    """Progressive compaction leaves unlike ranks; 2·r directions do not fit into 13 inputs."""
    schedule = adarank.schedules.cubic(24, 5, t_i=1, t_f=4, total=STEPS, interval=2)
    torch.manual_seed(2)
    net = Two((13, 17, 14))
    init = adarank.inits.orthonormal(lam=0.0)
    adapters = adarank.adapt(net, "svd", rank=12, targets=["first", "second"], init=init)
    controller = adarank.RankController(
        adapters,
        score=lambda bank: bank.lam.abs() * (bank.module == 0),  # the second module loses everything
        schedule=schedule,
        penalty=adarank.penalties.low_rank_manifold(),
        compaction="progressive",
        compact_after=1,
    )
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.02)
    controller.attach(optimizer)
    for _ in range(STEPS):
        step(net, controller, optimizer)
    assert {n: a.rank for n, a in adapters.items()} == {"first": 5, "second": 0}
    rows = adapters["first"].Q
    torch.testing.assert_close(rows @ rows.t(), torch.eye(5, dtype=rows.dtype))


class Graph:
    """What a capture would use, if it got that far."""

    @contextmanager
    def recording(self):
        yield

    def replay(self):
        raise AssertionError("a step that reads values back must not be captured")


def test_no_cuda_graph_and_a_sentence_that_says_so():
    net, _, controller, optimizer = setup(torch.optim.AdamW)
    with pytest.warns(UserWarning, match="without CUDA graphs: the penalty reads values back from the device"):
        captured = adarank.capture(net, optimizer, controller, loss=lambda m, b: m(b["x"]).sum(), graphs=Graph)
    assert captured.make is None
    spec = spec_from(["method=geolora", "train.capture=true"])
    with pytest.raises(adarank.SettingError, match="because penalty=low_rank_manifold reads values back"):
        check_capture(spec, controller)


def test_what_it_cannot_do_is_refused():
    with pytest.raises(adarank.SettingError, match=r"pruned_triplets must be trainable with this penalty.*'frozen'"):
        setup(pruned_triplets="frozen")
    adapters = adarank.adapt(Two((13, 17, 14)), "lora", rank=2, targets=["first"])
    with pytest.raises(adarank.SettingError, match="needs adapters whose λ is trained"):
        adarank.RankController(adapters, penalty=adarank.penalties.low_rank_manifold())
