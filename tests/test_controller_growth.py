"""The controller where ranks grow or triplets are frozen or masked, where the budget counts parameters, where ΔW is
decomposed before allocating, and where nothing is allocated at all."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import adarank
from adarank.adapters.lowrank import to_singular
from adarank.errors import SettingError
from adarank.scores.score import Score
from tests.conftest import Net
from tests.representatives import representatives

STEPS, HELD, START = 30, 4, 2


def data(step):
    draw = torch.Generator().manual_seed(step)
    return torch.randn(16, 8, generator=draw), torch.randint(0, 3, (16,), generator=draw)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.3, momentum=0.9, weight_decay=0.01)


def setup(
    optimizer=adamw,
    adapter="svd",
    allocator=None,
    schedule="constant",
    pruned_triplets="frozen",
    start=START,
    before=lambda net: None,
    **options,
):
    """before: what is done to the adapted model before the controller exists."""
    torch.manual_seed(0)
    net = Net()
    adapters = adarank.adapt(net, adapter, rank=HELD, train=["head"])
    before(net)
    n = len(adapters)
    final = 3 if schedule == "growing" else start
    options = {"penalty": adarank.penalties.orthogonality(0.1), "score": adarank.scores.adalora(), **options}
    controller = adarank.RankController(
        adapters,
        allocator=allocator or adarank.allocators.prune_expand(3),
        schedule=getattr(adarank.schedules, schedule)(start * n, final * n, t_i=3, t_f=8, total=STEPS, interval=4),
        pruned_triplets=pruned_triplets,
        **options,
    )
    optimizer = optimizer([p for p in net.parameters() if p.requires_grad])
    controller.attach(optimizer)
    return net, adapters, controller, optimizer


def backward(net, controller, t):
    x, y = data(t)
    F.cross_entropy(net(x), y).backward()
    controller.after_backward()


def run(net, controller, optimizer, steps, each=None):
    for t in steps:
        backward(net, controller, t)
        torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if each is not None:
            each(t)


def states(controller, optimizer):
    """Every tensor of optimiser state that has an entry per parameter, flat over the bank, by name."""
    found = {}
    bank = controller.bank
    kinds = {k for s in optimizer.state.values() for k, v in s.items() if isinstance(v, torch.Tensor) and v.ndim}
    for kind in kinds:
        blank = bank.unflatten(torch.zeros_like(bank.weight))
        for (part, i), tensor in blank.items():
            value = optimizer.state.get(getattr(bank.adapters[i], part), {}).get(kind)
            if value is not None:
                tensor.copy_(value)
        found[kind] = bank.flatten(blank)
    return found


BOTH = [(o, a) for o in (adamw, sgd) for a in ("svd", "lora")]


@pytest.mark.parametrize(("optimizer", "adapter"), BOTH)
def test_a_triplet_that_is_turned_on_starts_anew_and_nothing_else_changes(optimizer, adapter):
    net, _, controller, optimizer = setup(optimizer, adapter, schedule="growing", allocator=adarank.allocators.grow(2))
    run(net, controller, optimizer, range(7))
    bank = controller.bank
    on = bank.mask.clone()
    fresh = ~on & (torch.arange(bank.triplets) % 3 == 0)
    assert fresh.any()
    where = bank.broadcast_to_parameters(fresh)
    for buffer in [*controller.buffers.values(), *states(controller, optimizer).values()]:
        assert buffer[~where].any()  # there is something to leave alone
    # give the slots a past, as a triplet that was pruned has one
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor) and value.ndim:
                value.add_(1.0)
    for buffer in controller.buffers.values():
        buffer.add_(1.0)
    weight, head = bank.weight.clone(), net.head.weight.clone()
    buffers = {name: b.clone() for name, b in controller.buffers.items()}
    before = states(controller, optimizer)
    head_state = {k: v.clone() for k, v in optimizer.state[net.head.weight].items() if isinstance(v, torch.Tensor)}
    x = data(99)[0]
    outputs = [net.train()(x), net.eval()(x)]

    controller._set_mask(on | fresh)

    assert torch.equal(net(x), outputs[1])
    assert torch.equal(net.train()(x), outputs[0])
    assert torch.equal(bank.mask, on | fresh)
    assert torch.equal(bank.weight[~where], weight[~where])
    assert torch.equal(net.head.weight, head)
    for name, buffer in controller.buffers.items():
        assert not buffer[where].any()
        assert torch.equal(buffer[~where], buffers[name][~where])
    after = states(controller, optimizer)
    learns = bank.flatten(
        {
            (part, i): torch.full_like(t, isinstance(getattr(bank.adapters[i], part), torch.nn.Parameter))
            for (part, i), t in bank.unflatten(bank.weight).items()
        }
    ).bool()
    for kind, value in after.items():
        assert not value[where & learns].any()
        assert torch.equal(value[~where], before[kind][~where])
    assert all(torch.equal(optimizer.state[net.head.weight][k], v) for k, v in head_state.items())
    # as the default init draws them
    pieces, old = bank.unflatten(bank.weight), bank.unflatten(weight)
    turned = bank.unflatten(where)
    Q = torch.cat([pieces["Q", i][turned["Q", i]] for i in range(len(bank.adapters))])
    P = torch.cat([pieces["P", i][turned["P", i]] for i in range(len(bank.adapters))])
    lam = torch.cat([pieces["lam", i][turned["lam", i]] for i in range(len(bank.adapters))])
    assert not torch.equal(Q, torch.cat([old["Q", i][turned["Q", i]] for i in range(len(bank.adapters))]))
    if adapter == "svd":
        assert not lam.any()
        assert torch.cat([P, Q]).std().item() == pytest.approx(0.02, rel=0.25)
    else:
        assert (lam == 1).all()
        assert not P.any()
        assert Q.abs().max() <= 1 / np.sqrt(12)
        assert Q.std().item() == pytest.approx(np.mean([1 / np.sqrt(3 * d) for d in (12, 20)]), rel=0.25)


def test_averages_per_triplet_start_anew_with_their_triplet():
    net, _, controller, optimizer = setup(score=adarank.scores.fisher())
    run(net, controller, optimizer, range(3))
    bank, (average,) = controller.bank, controller.buffers.values()
    fresh = ~bank.mask & (torch.arange(bank.triplets) % 3 == 0)
    average.add_(1.0)
    before = average.clone()
    controller._set_mask(bank.mask | fresh)
    assert fresh.any()
    assert torch.equal(average, before.masked_fill(fresh, 0.0))


def test_momentum_moves_no_frozen_lam_before_the_score_sees_it():
    seen = []

    def observe(buffers, bank):
        seen.append((bank.mask.clone(), bank.lam.clone()))

    score = Score(observe=observe, score=lambda buffers, bank: bank.lam.abs())
    net, _, controller, optimizer = setup(sgd, score=score, allocator=adarank.allocators.prune_expand(1))
    run(net, controller, optimizer, range(20))
    assert len({tuple(mask.tolist()) for mask, _ in seen}) > 2  # some were pruned with a momentum
    assert not any(lam[~mask].any() for mask, lam in seen)


@pytest.mark.parametrize(("optimizer", "adapter"), BOTH)
def test_a_frozen_lam_is_exactly_zero_after_every_step_and_its_gradient_is_dropped(optimizer, adapter):
    net, _, controller, optimizer = setup(optimizer, adapter)
    bank, dropped, seen = controller.bank, [], []
    for t in range(STEPS):
        x, y = data(t)
        F.cross_entropy(net(x), y).backward()
        if adapter == "svd":
            dropped.append(torch.cat([a.lam.grad for a in bank.adapters])[~bank.mask].abs().sum().item())
        controller.after_backward()
        assert not bank.lam_grad[~bank.mask].any()
        assert not bank.grad[bank.broadcast_to_parameters(~bank.mask)].any()  # its factors' too, the penalty included
        optimizer.step()
        optimizer.zero_grad()
        assert not bank.lam[~bank.mask].any()
        assert bank.mask.sum() == START * len(bank.names)
        seen.append(bank.mask.clone())
    assert adapter == "lora" or min(dropped) > 0  # autograd had one
    assert len({tuple(m.tolist()) for m in seen}) > 3


def test_the_clipped_norm_does_not_know_how_many_slots_are_free():
    norms = []
    for held in (START, 4):
        torch.manual_seed(0)
        net = Net().double()
        adapters = adarank.adapt(net, "svd", rank=held, train=["head"])
        n = len(adapters)
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for a in adapters.values():  # the same first triplets
                a.Q[:START] = torch.randn(START, a.in_features, generator=draw).double()
                a.P[:START] = torch.randn(START, a.out_features, generator=draw).double()
                a.lam[:START] = torch.randn(START, generator=draw).double()
        controller = adarank.RankController(
            adapters,
            score=adarank.scores.adalora(),
            schedule=adarank.schedules.constant(START * n, START * n, t_i=3, t_f=8, total=STEPS, interval=4),
            penalty=adarank.penalties.orthogonality(0.7),
            pruned_triplets="frozen",
        )
        parameters = [p for p in net.parameters() if p.requires_grad]
        controller.attach(torch.optim.SGD(parameters, lr=0.1))
        x, y = data(0)
        F.cross_entropy(net(x.double()), y).backward()
        controller.after_backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, 1e9).item())
        value = adarank.penalties.orthogonality_value(controller.bank, 0.7).item()
        norms.append(value)
    assert norms[:2] == pytest.approx(norms[2:], rel=1e-12)


@pytest.mark.parametrize("stop", representatives([2, 9, 21, 23], [9]))
@pytest.mark.parametrize(("optimizer", "adapter"), BOTH)
@pytest.mark.parametrize("kind", ["grow", "prune_expand", "random"])
def test_stopped_and_resumed_is_bit_identical(kind, optimizer, adapter, stop, tmp_path):
    more = {
        "allocator": getattr(adarank.allocators, kind)(),
        "schedule": "growing" if kind != "prune_expand" else "constant",
    }
    net, _, controller, opt = setup(optimizer, adapter, **more)
    run(net, controller, opt, range(stop))
    torch.save({"model": net.state_dict(), "optimizer": opt.state_dict()}, tmp_path / "state.pt")
    run(net, controller, opt, range(stop, STEPS))

    again, _, resumed, fresh = setup(optimizer, adapter, **more)
    run(again, resumed, fresh, range(5))  # whatever it did before does not matter
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again.load_state_dict(state["model"])
    fresh.load_state_dict(state["optimizer"])
    run(again, resumed, fresh, range(stop, STEPS))
    assert torch.equal(resumed.bank.weight, controller.bank.weight)
    assert torch.equal(resumed.bank.mask, controller.bank.mask)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), net.state_dict().values(), strict=True))
    assert resumed.last_allocation.ranks == controller.last_allocation.ranks


def test_a_controller_that_starts_below_what_is_held_shares_evenly():
    net, _, _, _ = setup()
    assert set(adarank.ranks(net).values()) == {START}
    with pytest.raises(SettingError, match="must start at 24 triplets"):
        setup(pruned_triplets="trainable", allocator=adarank.allocators.global_top())


@pytest.mark.parametrize("pruned_triplets", ["frozen", "masked", "trainable"])
def test_an_allocator_sees_minus_infinity_exactly_where_a_triplet_is_frozen(pruned_triplets):
    requests = []

    def allocate(request):
        requests.append(request._replace(mask=request.mask.clone(), scores=request.scores.clone()))
        return adarank.allocators.global_top().allocate(request._replace(budget=9))

    trainable = pruned_triplets == "trainable"
    net, _, controller, optimizer = setup(
        pruned_triplets=pruned_triplets, allocator=allocate, start=HELD if trainable else START
    )
    run(net, controller, optimizer, range(12))
    assert [r.progress for r in requests] == pytest.approx([(t - 3) / (STEPS - 8 - 3) for t in (4, 8)])
    for request in requests:
        assert (~request.mask).any() or trainable
        expected = ~request.mask if pruned_triplets == "frozen" else torch.zeros_like(request.mask)
        assert torch.equal(request.scores.isneginf(), expected)
    assert not controller.last_allocation.scores.isneginf().any()  # what is recorded are the scores themselves


def test_masked_triplets_keep_their_lam_and_stay_out_of_training_s_forward_pass():
    net, _, controller, optimizer = setup(
        pruned_triplets="masked",
        allocator=adarank.allocators.global_top(),
        penalty=None,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.3),
    )
    bank = controller.bank
    with torch.no_grad():
        bank.lam.normal_()
    x = data(7)[0]
    assert torch.equal(net.train()(x), net.eval()(x))  # both compute with λ ⊙ mask
    net.train()
    backward(net, controller, 0)
    assert bank.lam_grad[bank.mask].all()
    assert not bank.grad[bank.broadcast_to_parameters(~bank.mask)].any()
    out = bank.lam[~bank.mask].clone()
    off = ~bank.mask
    optimizer.step()
    assert torch.equal(bank.lam[off], out)
    controller._set_mask(torch.ones_like(bank.mask))
    assert torch.equal(bank.lam[off], out)  # what comes back comes back as it was


UNIT = [
    ("global_top", {}),
    ("by_cost", {}),
    ("by_cost", {"min_rank": 1}),
    ("uniform", {}),
    ("by_family", {}),
    ("random", {}),
]


@pytest.mark.parametrize(("kind", "clamps"), UNIT)
def test_a_budget_in_parameters_is_never_exceeded_and_little_is_left(kind, clamps):
    torch.manual_seed(0)
    net = Net()  # modules of two costs: 12 -> 20 -> 12 and, wrapped too, the embedding 8 -> 12
    adapters = adarank.adapt(net, "svd", rank=3, targets=["up", "down", "embed"])
    costs = [a.in_features + a.out_features + 1 for a in adapters.values()]
    assert len(set(costs)) == 2
    final = 2 * sum(costs) - 5  # no whole number of triplets
    controller = adarank.RankController(
        adapters,
        score=adarank.scores.adalora(),
        allocator=getattr(adarank.allocators, kind)(**clamps),
        schedule=adarank.schedules.cubic(3 * sum(costs), final, t_i=3, t_f=8, total=STEPS, interval=2),
        unit="parameters",
    )
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-2)
    controller.attach(optimizer)
    seen = []

    def look(t):
        last = controller.last_allocation
        if last is not None and last.step == t:
            seen.append((last.budget, int(last.parameters)))
            kept = {n: r * c for (n, r), c in zip(last.ranks.items(), costs, strict=True)}
            assert sum(kept.values()) == last.parameters

    run(net, controller, optimizer, range(STEPS), look)
    assert len(seen) > 5
    assert all(0 <= budget - parameters < max(costs) for budget, parameters in seen)
    assert seen[-1][0] == final
    ranks = adarank.ranks(net)
    assert sum(r * c for r, c in zip(ranks.values(), costs, strict=True)) <= final
    assert min(ranks.values()) >= clamps.get("min_rank", 0)


def test_growth_in_parameters_stays_below_the_budget():
    torch.manual_seed(0)
    net = Net()
    adapters = adarank.adapt(net, "svd", rank=HELD, targets=["up", "down", "embed"])
    costs = [a.in_features + a.out_features + 1 for a in adapters.values()]
    controller = adarank.RankController(
        adapters,
        score=adarank.scores.adalora(),
        allocator=adarank.allocators.grow(2),
        schedule=adarank.schedules.growing(sum(costs), 3 * sum(costs), t_i=3, t_f=8, total=STEPS, interval=4),
        unit="parameters",
        pruned_triplets="frozen",
    )
    optimizer = adamw([p for p in net.parameters() if p.requires_grad])
    controller.attach(optimizer)
    assert set(adarank.ranks(net).values()) == {1}
    run(net, controller, optimizer, range(STEPS))
    last = controller.last_allocation
    assert last.budget == 3 * sum(costs)
    assert 0 <= last.budget - int(last.parameters) < max(costs)


@pytest.mark.parametrize("adapter", ["svd", "lora"])
def test_basis_singular_prunes_the_smallest_singular_values_of_all_modules(adapter):
    """PARA's rule: with |λ| as the score what stays are the largest singular values of every ΔW together (adapter
    "svd"); decomposing by itself changes no ΔW."""
    torch.manual_seed(0)
    net = Net().double()
    adapters = adarank.adapt(net, adapter, rank=HELD)
    with torch.no_grad():
        for a in adapters.values():
            for part in (a.Q, a.P, a.lam) if adapter == "svd" else (a.Q, a.P):
                part.normal_()
    deltas = {name: a.delta().detach().numpy().copy() for name, a in adapters.items()}
    for a in adapters.values():
        to_singular(a)
    for name, a in adapters.items():
        np.testing.assert_allclose(a.delta().detach().numpy(), deltas[name], atol=1e-12)
    if adapter == "lora":
        return
    n = len(adapters)
    controller = adarank.RankController(
        adapters,
        score=adarank.scores.magnitude(),
        schedule=adarank.schedules.cubic(HELD * n, 2 * n, t_i=0, t_f=2, total=4, interval=2),
        svd_before_allocation=True,
    )
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.0)
    controller.attach(optimizer)
    for t in range(4):
        backward_double(net, controller, t)
        optimizer.step()
        optimizer.zero_grad()
    assert controller.last_allocation.budget == 2 * n
    split = {name: np.linalg.svd(delta) for name, delta in deltas.items()}
    every = sorted((s for _, values, _ in split.values() for s in values[:HELD]), reverse=True)
    for name, a in adapters.items():
        U, values, Vt = split[name]
        kept = sum(s >= every[2 * n - 1] for s in values[:HELD])
        assert int(a.mask.sum()) == kept
        truncated = (U[:, :kept] * values[:kept]) @ Vt[:kept]
        np.testing.assert_allclose(a.delta().detach().numpy(), truncated, atol=1e-10)


def backward_double(net, controller, t):
    x, y = data(t)
    F.cross_entropy(net(x.double()), y).backward()
    controller.after_backward()


@pytest.mark.parametrize("adapter", ["svd", "lora"])
def test_a_penalty_alone_needs_neither_score_nor_schedule(adapter):
    torch.manual_seed(0)
    net = Net().double()
    adapters = adarank.adapt(net, adapter, rank=3, train=["head"])
    controller = adarank.RankController(adapters, penalty=adarank.penalties.orthogonality(0.3))
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    controller.attach(optimizer)
    for t in range(5):
        x, y = data(t)
        loss = F.cross_entropy(net(x.double()), y)
        penalty = sum(torch.linalg.norm(A @ A.T - torch.eye(3).double()) for a in adapters.values() for A in (a.Q, a.P))
        factors = [p for a in adapters.values() for p in (a.Q, a.P)]
        expected = torch.autograd.grad(loss + 0.3 / (2 * len(adapters)) * penalty, factors, retain_graph=True)
        loss.backward()
        controller.after_backward()
        for p, g in zip(factors, expected, strict=True):
            torch.testing.assert_close(p.grad, g, rtol=1e-10, atol=1e-13)
        optimizer.step()
        optimizer.zero_grad()
    assert controller.last_allocation is None
    assert controller.bank.mask.all()
    assert controller.step == 5


def test_clamps_that_cannot_be_kept_are_refused_at_the_start():
    with pytest.raises(SettingError, match=r"allocator\.min_rank must be at most 2 \(got 3, which takes 18 triplets"):
        setup(allocator=adarank.allocators.prune_expand(min_rank=3))
    with pytest.raises(
        SettingError, match=r"allocator\.max_rank must be at least 2 \(got 1, which leaves room for 6 triplets"
    ):
        setup(allocator=adarank.allocators.prune_expand(max_rank=1))
    with pytest.raises(SettingError, match=r"budget\.unit must be parameters"):
        setup(allocator=adarank.allocators.by_cost())


@pytest.mark.parametrize("allocator", [adarank.allocators.grow(), adarank.allocators.prune_expand()])
def test_without_a_free_slot_there_is_nothing_to_grow(allocator):
    adapters = adarank.adapt(Net(), rank=2)
    schedule = adarank.schedules.constant(12, 12, 2, 4, 20)
    with pytest.raises(adarank.SettingError, match=r"max_rank_factor must be above 1 .* all 12 triplets"):
        adarank.RankController(
            adapters, score=adarank.scores.adalora(), schedule=schedule, allocator=allocator, pruned_triplets="frozen"
        )


@pytest.mark.parametrize("adapter", ["svd", "lora"])
@pytest.mark.parametrize("stop", [2, 23])
def test_a_model_loaded_before_the_controller_is_attached_keeps_its_weights(adapter, stop):
    """The initial mask zeroed λ, and drew factors anew, of triplets that the loaded mask keeps."""
    more = {"allocator": adarank.allocators.grow(), "schedule": "growing", "adapter": adapter}
    net, _, controller, optimizer = setup(**more)
    run(net, controller, optimizer, range(stop))
    saved, state = copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict())
    run(net, controller, optimizer, range(stop, STEPS))
    again, _, resumed, fresh = setup(before=lambda net: net.load_state_dict(saved), **more)
    fresh.load_state_dict(fresh.state_dict())  # as accelerate does with every optimiser
    fresh.load_state_dict(state)
    assert all(torch.equal(value, saved[name]) for name, value in again.state_dict().items())
    run(again, resumed, fresh, range(stop, STEPS))
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), net.state_dict().values(), strict=True))


def test_a_state_saved_before_the_first_step_is_loaded_as_it_is():
    """Nothing tells its weights from those that the initial mask leaves here, which must then stay, too."""
    net, _, _, optimizer = setup(adapter="lora", schedule="growing", allocator=adarank.allocators.grow())
    again, _, _, fresh = setup(adapter="lora", schedule="growing", allocator=adarank.allocators.grow())
    again.load_state_dict(net.state_dict())
    fresh.load_state_dict(optimizer.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), net.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {"schedule": "growing", "allocator": adarank.allocators.global_top()},
        {"allocator": adarank.allocators.prune_expand()},
    ],
)
def test_what_grows_is_not_compacted_progressively(options):
    """The free triplets were removed before they could be activated, and the final budget was missed without a word."""
    with pytest.raises(SettingError, match=r"^compaction must be off or final with a schedule or an allocator that"):
        setup(compaction="progressive", **options)
    setup(compaction="progressive", compact_after=None, **options)
