"""Adapters and factors with requires_grad=False never move, and frozen adapters keep their triplets."""

from functools import partial
from itertools import product

import pytest
import torch
from torch.nn import functional as F

import adarank
from adarank.errors import SettingError
from tests.allocators.test_contract import OPTIONS as ALLOCATORS
from tests.allocators.test_contract import made as make_allocator
from tests.conftest import Net
from tests.representatives import representatives
from tests.scores.test_contract import NAMES as SCORES
from tests.scores.test_contract import make as make_score
from tests.test_controller import STEPS, data

FROZEN = "layers.1.up"
FACTORS = ("Q", "lam", "P")


def setup(
    parts=FACTORS,
    early=True,
    adapter="svd",
    initial=24,
    final=12,
    optimizer=torch.optim.AdamW,
    pruned_triplets="trainable",
    score=None,
    schedule="cubic",
    named=FROZEN,
    **options,
):
    """(net, adapters, controller, optimizer, freeze); early: frozen before the controller and the optimiser exist."""
    torch.manual_seed(0)
    net = Net()
    adapters = adarank.adapt(net, adapter, rank=4, train=["head"])
    with torch.no_grad():
        for a in adapters.values():  # λ = 0 would stay 0 in any case
            a.lam.copy_(torch.where(a.lam == 1, a.lam, 0.1))
            a.P.normal_(std=0.1)

    def freeze(trains=False):
        for part in parts:
            if isinstance(getattr(adapters[named], part), torch.nn.Parameter):
                getattr(adapters[named], part).requires_grad_(trains)

    if early:
        freeze()
    controller = adarank.RankController(
        adapters,
        score=score or adarank.scores.adalora(),
        schedule=getattr(adarank.schedules, schedule)(initial, final, t_i=5, t_f=10, total=STEPS, interval=3),
        pruned_triplets=pruned_triplets,
        **{"penalty": adarank.penalties.orthogonality(1.0), **options},
    )
    made = optimizer([p for p in net.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    controller.attach(made)
    return net, adapters, controller, made, freeze


def train(net, controller, optimizer, steps, set_to_none=True):
    for t in steps:
        x, y = data(t)
        F.cross_entropy(net(x), y).backward()
        controller.after_backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)


def copies(adapter, parts):
    return {part: getattr(adapter, part).detach().clone() for part in parts}


def held(adapter, before):
    return all(torch.equal(getattr(adapter, part), value) for part, value in before.items())


SGD = partial(torch.optim.SGD, momentum=0.9)
GROWTH = {"pruned_triplets": "frozen", "initial": 12, "allocator": adarank.allocators.prune_expand(4)}
RUNS = {
    "adalora": {},
    "paper": {"variant": "paper"},
    "original": {"variant": "original"},
    "momentum": {"optimizer": SGD},
    "proximal": {"penalty": adarank.penalties.l1_proximal(0.5)},
    "frozen triplets": {"pruned_triplets": "frozen"},
    "growth": GROWTH,
    "masked": {"pruned_triplets": "masked"},
    "svd before allocation": {"svd_before_allocation": True, "score": adarank.scores.magnitude()},
    "compaction": {"compaction": "progressive", "compact_after": 1},
    "lora": {"adapter": "lora", "pruned_triplets": "frozen"},
    "lora growth": {"adapter": "lora", **GROWTH},
    "parameters": {"unit": "parameters", "initial": 24 * 33, "final": 12 * 33},
}


BY_DEFAULT = [
    ("adalora", True),
    ("adalora", False),
    ("growth", False),
    ("proximal", True),
    ("svd before allocation", False),
    ("compaction", False),
]


@pytest.mark.parametrize(("name", "early"), representatives(product(RUNS, [True, False]), BY_DEFAULT))
def test_a_frozen_adapter_never_moves_and_keeps_its_triplets(name, early):
    options = RUNS[name]
    net, adapters, controller, optimizer, freeze = setup(early=early, **options)
    frozen = adapters[FROZEN]
    if not early:
        train(net, controller, optimizer, range(8), set_to_none=False)  # its momentum is not zero now
        optimizer.zero_grad(set_to_none=False)
        freeze()
    before, mask = copies(frozen, FACTORS), frozen.mask.clone()
    active = mask.nonzero().squeeze(1)
    other = copies(adapters["layers.1.down"], ("Q", "P"))
    train(net, controller, optimizer, range(controller.step, STEPS), set_to_none=early)
    if options.get("compaction"):
        before = {part: value[active] for part, value in before.items()}
        mask = mask[active]
    assert held(frozen, before)
    assert torch.equal(frozen.mask, mask)
    assert not held(adapters["layers.1.down"], other)
    assert controller.last_allocation.kept == 12
    assert controller.last_allocation.ranks == adarank.ranks(net)
    assert all(torch.isfinite(p).all() for p in net.parameters())
    x = data(99)[0]
    frozen.train()
    in_training = frozen(torch.ones(2, frozen.in_features))
    assert torch.equal(in_training, frozen.eval()(torch.ones(2, frozen.in_features)))
    assert torch.isfinite(net(x)).all()


PARTS = product(
    ["adalora", "proximal", "growth", "svd before allocation", "momentum"],
    [("Q",), ("P",), ("Q", "P"), ("lam",)],
    [True, False],
)


@pytest.mark.parametrize(
    ("name", "parts", "early"),
    representatives(PARTS, [("adalora", ("Q",), True), ("growth", ("Q",), False), ("proximal", ("lam",), False)]),
)
def test_a_single_frozen_factor_never_moves(name, parts, early):
    net, adapters, controller, optimizer, freeze = setup(parts, early, **RUNS[name])
    frozen = adapters[FROZEN]
    if not early:
        train(net, controller, optimizer, range(8))
        freeze()
    before = copies(frozen, parts)
    rest = copies(frozen, set(FACTORS) - set(parts))
    train(net, controller, optimizer, range(controller.step, STEPS))
    assert held(frozen, before)
    assert not held(frozen, rest)
    assert controller.last_allocation.kept == 12


@pytest.mark.parametrize("score", representatives(SCORES, ["output", "fisher"]))
def test_no_score_moves_a_frozen_adapter_or_prunes_it(score):
    net, adapters, controller, optimizer, _ = setup(score=make_score(score))
    before = copies(adapters[FROZEN], FACTORS)
    train(net, controller, optimizer, range(STEPS))
    assert held(adapters[FROZEN], before)
    assert adarank.ranks(net)[FROZEN] == 4
    assert controller.last_allocation.kept == 12


CLAMPS = [{}, {"min_rank": 1, "max_rank": 3}]


@pytest.mark.parametrize(
    ("kind", "clamps"), representatives(product(ALLOCATORS, CLAMPS), [("uniform", {}), ("by_family", CLAMPS[1])])
)
def test_no_allocator_prunes_a_frozen_adapter_or_exceeds_the_budget(kind, clamps):
    options = {"allocator": make_allocator(kind, **clamps)}
    if kind in ("grow", "prune_expand", "one_by_one"):
        options |= {"pruned_triplets": "frozen", "initial": 12, "final": 15, "schedule": "growing"}
    if kind == "by_cost":
        options |= {"unit": "parameters", "initial": 24 * 33, "final": 12 * 33}
    net, adapters, controller, optimizer, _ = setup(**options)
    before = copies(adapters[FROZEN], FACTORS)
    train(net, controller, optimizer, range(STEPS))
    ranks = adarank.ranks(net)
    assert held(adapters[FROZEN], before)
    assert ranks[FROZEN] == 4
    budget = options.get("final", 12) // (33 if kind == "by_cost" else 1)
    if kind in ("nonzero", "tolerance", "one_by_one"):
        return  # they have no budget to spend
    assert sum(ranks.values()) <= budget
    assert kind == "prefix" or sum(ranks.values()) == budget
    if clamps and kind in ("global_top", "by_family", "random", "by_cost"):
        assert {r for n, r in ranks.items() if n != FROZEN} <= {1, 2, 3}


def test_the_clipped_norm_and_the_scores_know_nothing_of_a_frozen_adapter():
    net, adapters, controller, optimizer, _ = setup()
    x, y = data(0)
    F.cross_entropy(net(x), y).backward()
    controller.after_backward()
    bank = controller.bank
    assert all(getattr(adapters[FROZEN], part).grad is None for part in FACTORS)
    assert bank.fixed.sum() == sum(getattr(adapters[FROZEN], part).numel() for part in FACTORS)
    assert not bank.grad[bank.fixed].any()
    assert bank.grad[~bank.fixed].any()
    optimizer.step()
    index = list(adapters).index(FROZEN)
    assert not controller.score.score(controller.buffers, bank)[bank.module == index].any()


def test_thawed_again_it_trains_and_may_be_pruned():
    net, adapters, controller, optimizer, freeze = setup(early=False, named="layers.0.up")
    freeze()
    train(net, controller, optimizer, range(15))
    freeze(trains=True)
    before = copies(adapters["layers.0.up"], FACTORS)
    train(net, controller, optimizer, range(15, STEPS))
    assert controller.bank.fixed is None
    assert not adapters["layers.0.up"].masked
    assert not held(adapters["layers.0.up"], before)
    assert controller.last_allocation.kept == 12


@pytest.mark.parametrize("early", [True, False])
def test_a_budget_that_cannot_hold_the_frozen_adapters_is_refused(early):
    message = (
        r"budget must be at least 4 triplets, which the frozen adapters of layers\.1\.up hold \(got 3\); unfreeze some"
    )
    if early:
        with pytest.raises(SettingError, match=message):
            setup(final=3)
        return
    net, adapters, controller, optimizer, freeze = setup(final=3, early=False)
    train(net, controller, optimizer, range(3))
    freeze()
    before = controller.bank.weight.clone()
    F.cross_entropy(net(data(3)[0]), data(3)[1]).backward()
    with pytest.raises(SettingError, match=message):
        controller.after_backward()
    assert torch.equal(controller.bank.weight, before)
    freeze(trains=True)
    optimizer.zero_grad()
    train(net, controller, optimizer, range(3, STEPS))
    assert controller.last_allocation.kept == 3
    assert adapters is not None


def test_what_the_others_may_no_longer_get_is_refused():
    with pytest.raises(SettingError, match=r"allocator\.min_rank must be at most 1 \(got 2"):
        setup(allocator=adarank.allocators.global_top(min_rank=2))


def test_all_adapters_frozen_trains_the_head_alone():
    net, adapters, controller, optimizer, _ = setup(final=24)
    for adapter in adapters.values():
        adapter.requires_grad_(False)
    before, head = controller.bank.weight.clone(), net.head.weight.clone()
    train(net, controller, optimizer, range(STEPS))
    assert torch.equal(controller.bank.weight, before)
    assert not torch.equal(net.head.weight, head)
    assert controller.bank.mask.all()


@pytest.mark.parametrize(
    "options", representatives([{}, {"compaction": "progressive", "compact_after": 1}, GROWTH], keep=1)
)
def test_stopped_and_resumed_is_bit_identical(options, tmp_path):
    net, _, controller, optimizer, _ = setup(**options)
    train(net, controller, optimizer, range(17))
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    train(net, controller, optimizer, range(17, STEPS))
    again, _, resumed, fresh, _ = setup(**options)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    fresh.load_state_dict(state["optimizer"])
    again.load_state_dict(state["model"])
    train(again, resumed, fresh, range(17, STEPS))
    assert torch.equal(resumed.bank.weight, controller.bank.weight)
    assert torch.equal(resumed.bank.mask, controller.bank.mask)


@pytest.mark.parametrize("thaws", [True, False])
def test_what_is_frozen_or_thawed_before_a_state_is_loaded_is_held_or_trains(thaws):
    """Loading forgot which adapters had been frozen when the controller was attached."""
    _, _, _, optimizer, _ = setup()
    _, adapters, controller, fresh, freeze = setup(early=thaws)
    freeze(trains=thaws)
    fresh.load_state_dict({**optimizer.state_dict(), "param_groups": fresh.state_dict()["param_groups"], "state": {}})
    assert adapters[FROZEN].masked is not thaws
    assert controller._held == (0 if thaws else 4)
