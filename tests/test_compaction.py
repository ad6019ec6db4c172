from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import adarank
from adarank.adapters.lowrank import LowRank
from tests.test_controller import STEPS, Net, data, run, setup

OPTIMIZERS = {
    "adamw": torch.optim.AdamW,
    "fused adamw": lambda p, lr: torch.optim.AdamW(p, lr=lr, fused=True),
    "amsgrad": lambda p, lr: torch.optim.AdamW(p, lr=lr, amsgrad=True),
    "sgd": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9),
    "rmsprop": torch.optim.RMSprop,
    "nadam": torch.optim.NAdam,
}


def logits(net):
    x, _ = data(99)
    return net.eval()(x.to(net.head.weight.dtype)).detach()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_final_compaction_changes_nothing_but_the_size(name):
    found = []
    for compaction in ("off", "final"):
        net, adapters, controller, optimizer = setup(
            optimizer=OPTIMIZERS[name], compaction=compaction, gamma=0.0, dtype=torch.float64, lr=3e-3
        )
        run(net, controller, optimizer, range(STEPS))
        found.append((logits(net), adarank.ranks(net), controller, adapters, optimizer))
    (full, ranks, *_), (small, small_ranks, controller, adapters, optimizer) = found
    torch.testing.assert_close(small, full, rtol=0, atol=1e-12)
    assert small_ranks == ranks
    assert {name: a.rank for name, a in adapters.items()} == ranks
    assert len(controller.bank.weight) == 12 * 33
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for adapter in adapters.values():
        for p in (adapter.Q, adapter.lam, adapter.P):
            assert id(p) in held
            for value in optimizer.state.get(p, {}).values():
                assert not isinstance(value, torch.Tensor) or value.numel() == 1 or value.shape == p.shape
    assert all(len(b) == 12 * 33 for b in controller.buffers.values())


def test_with_the_penalty_only_the_pruned_rows_leave_it():
    net, _, controller, optimizer = setup(compaction="final", gamma=1.0)
    run(net, controller, optimizer, range(STEPS))
    assert sum(len(block.weight) for block in controller.bank.blocks) == 2 * 12
    assert controller.last_allocation.kept == 12


def test_progressive_without_compact_after_is_final_and_with_it_shrinks_early():
    sizes, lams = {}, {}
    for name, options in {
        "final": {"compaction": "final"},
        "never": {"compaction": "progressive", "compact_after": None},
        "early": {"compaction": "progressive", "compact_after": 2},
    }.items():
        net, _, controller, optimizer = setup(**options)
        sizes[name] = []
        for t in range(STEPS):
            run(net, controller, optimizer, [t])
            sizes[name].append(controller.bank.triplets)
            assert controller.bank.mask.sum() >= controller.schedule.budget(t) if t else True
        lams[name] = controller.bank.lam.clone()
        assert controller.last_allocation.kept == sizes[name][-1] == 12
    assert torch.equal(lams["final"], lams["never"])
    assert sizes["final"] == sizes["never"]
    assert min(sizes["early"][: STEPS - 10]) < 24 == min(sizes["final"][: STEPS - 10])


@pytest.mark.parametrize("patience", [1, 2])
def test_a_triplet_leaves_memory_at_exactly_that_many_allocations_in_a_row_without_it(patience):
    """Triplet 9 is left out for the first time while 0 leaves; 5 is left out at every second allocation, then twice."""
    without = [{0, 5}, {0, 9}, {5, 9}, set(), {5}, {5}]
    left = {1: [{0, 5}] + 5 * [{0, 5, 9}], 2: [set(), {0}, {0, 9}, {0, 9}, {0, 9}, {0, 5, 9}]}[patience]
    controllers, found = [], []

    def allocate(request):
        keep = torch.tensor([i not in without[len(found)] for i in range(24)])
        return keep[controllers[0].remaining]

    net, _, controller, optimizer = setup(allocator=allocate, compaction="progressive", compact_after=patience)
    controllers.append(controller)
    for t in range(STEPS - 11):
        run(net, controller, optimizer, [t])
        if len(found) < len(without) and controller.schedule.due(t):
            gone = (~controller.remaining).nonzero().flatten().tolist()
            assert controller.bank.triplets == 24 - len(gone)
            found.append(set(gone))
        if len(found) == len(without):
            break
    assert found == left


def test_a_module_without_triplets_costs_nothing_and_the_backward_stops_early():
    torch.manual_seed(0)
    net = Net()
    adapters = adarank.adapt(net, rank=3, train=["head"])
    for name, adapter in adapters.items():
        if not name.startswith("layers.2"):
            adapter.mask.zero_()
    assert adarank.compact(net) == {n: 3 * n.startswith("layers.2") for n in adapters}
    visited = []
    for name in adapters:
        net.get_submodule(name).register_full_backward_hook(lambda *_, n=name: visited.append(n))
    hidden = net.layers[1](net.layers[0](net.embed(data(0)[0])))
    assert not hidden.requires_grad
    net(data(0)[0]).sum().backward()
    assert set(visited) <= {"layers.2.up", "layers.2.down"}
    assert adapters["layers.0.up"].Q.grad is None


def test_training_goes_on_with_modules_that_lost_everything():
    net, adapters, controller, optimizer = setup(optimizer=OPTIMIZERS["fused adamw"])
    run(net, controller, optimizer, range(10))
    controller.bank.mask[:8] = False
    adarank.compact(net, optimizer)
    assert [a.rank for a in adapters.values()][:2] == [0, 0]
    run(net, controller, optimizer, range(10, STEPS))
    assert sum(adarank.ranks(net).values()) == 12


def test_factors_that_were_frozen_stay_frozen(net):
    adapters = adarank.adapt(net, rank=3)
    adapters["layers.0.up"].requires_grad_(False)
    trains = {name: p.requires_grad for name, p in net.named_parameters()}
    for adapter in adapters.values():
        adapter.mask[0] = False
    adarank.compact(net)
    assert {name: p.requires_grad for name, p in net.named_parameters()} == trains
    assert trains["layers.1.up.Q"] > trains["layers.0.up.Q"]


def test_inside_the_step_while_the_loss_is_alive():
    net, _, controller, optimizer = setup(compaction="final")
    held = None
    for t in range(STEPS):
        x, y = data(t)
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        controller.after_backward()
        optimizer.step()
        optimizer.zero_grad()
        held = (held, loss) if t > 100 else loss
    assert torch.isfinite(held)


def test_without_a_controller_an_optimiser_follows():
    torch.manual_seed(0)
    net = Net()
    adapters = adarank.adapt(net, "lora", rank=4)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-2)
    for t in range(3):
        net(data(t)[0]).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    for adapter in adapters.values():
        adapter.mask[1] = False
    before, moment = logits(net), optimizer.state[adapters["layers.0.up"].P]["exp_avg"].clone()
    adarank.compact(net, optimizer)
    torch.testing.assert_close(logits(net), before)
    assert torch.equal(optimizer.state[adapters["layers.0.up"].P]["exp_avg"], moment[[0, 2, 3]])
    net.train()(data(5)[0]).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("controllers", [1, 2])
def test_every_adapter_is_compacted_whichever_controller_it_has(controllers):
    """Only those of the first optimiser's controller were."""
    torch.manual_seed(0)
    net = Net()
    adapters = adarank.adapt(net, rank=4)
    optimizers = []
    for part in (list(adapters)[:3], list(adapters)[3:])[:controllers]:
        some = {name: adapters[name] for name in part}
        optimizers.append(torch.optim.SGD([p for a in some.values() for p in a.parameters(recurse=False)], lr=0.1))
        adarank.RankController(some, penalty=adarank.penalties.orthogonality()).attach(optimizers[-1])
    for adapter in adapters.values():
        adapter.mask[1] = False
    assert set(adarank.compact(net, optimizers).values()) == {3}


class Rows(torch.optim.SGD):
    """Keeps state that is neither a scalar nor parameter-shaped."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["row_norms"] = torch.ones(3 * len(p) + 2)


class Factored(torch.optim.SGD):
    """Keeps one number per row of a matrix, as Adafactor does."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["row_norms"] = torch.ones(len(p))


@pytest.mark.parametrize("kind", [Rows, Factored])
def test_an_optimiser_whose_state_cannot_be_gathered_is_refused_before_anything_changes(kind):
    net, adapters, controller, optimizer = setup(optimizer=kind)
    run(net, controller, optimizer, range(3))
    controller.bank.mask[3] = False
    before = deepcopy(net.state_dict())
    with pytest.raises(
        adarank.SettingError,
        match=rf"compaction needs an optimiser whose .* {kind.__name__}, whose state 'row_norms' is",
    ):
        adarank.compact(net, optimizer)
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert {a.rank for a in adapters.values()} == {4}


def test_forgetting_the_optimiser_is_loud():
    net, _, controller, optimizer = setup()
    run(net, controller, optimizer, range(3))
    controller.bank.mask[3] = False
    adarank.compact(net)
    net(data(0)[0]).sum().backward()
    with pytest.raises(RuntimeError, match=r"pass the optimiser to adarank\.compact"):
        controller.after_backward()


@pytest.mark.parametrize("stop", [17, 31, 36])
@pytest.mark.parametrize("options", [{"compaction": "final"}, {"compaction": "progressive", "compact_after": 2}])
def test_stopped_and_resumed_is_bit_identical(stop, options, tmp_path):
    net, _, controller, optimizer = setup(**options)
    run(net, controller, optimizer, range(stop))
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    run(net, controller, optimizer, range(stop, STEPS))
    again, _, resumed, fresh = setup(**options)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    fresh.load_state_dict(state["optimizer"])  # first: it drops what had been dropped
    again.load_state_dict(state["model"])
    run(again, resumed, fresh, range(stop, STEPS))
    assert torch.equal(resumed.bank.weight, controller.bank.weight)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), net.state_dict().values(), strict=True))
    assert resumed.last_allocation.ranks == controller.last_allocation.ranks


def test_compact_after_0_is_refused():
    with pytest.raises(
        adarank.SettingError, match=r"compact_after must be a whole number of at least 1, or null for never \(got 0\)"
    ):
        setup(compaction="progressive", compact_after=0)


def test_nothing_to_compact_is_refused(net):
    with pytest.raises(adarank.SettingError, match="no adapters to compact"):
        adarank.compact(net)
    assert not any(isinstance(m, LowRank) for m in nn.Sequential(net).modules())
