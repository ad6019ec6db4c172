"""NumPy's and torch's scalars are numbers wherever a public function takes one."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import adarank
from adarank import SettingError, allocators, inits, penalties, schedules, scores
from tests.conftest import Net

WHOLE = (np.int64, np.int16, np.uint8, torch.tensor)
REAL = (np.float64, np.float32, lambda value: torch.tensor(value, dtype=torch.float64))


def net(rank=2, **options):
    torch.manual_seed(0)
    model = Net(1)
    return model, adarank.adapt(model, "svd", rank, ["up", "down"], **options)


def controller(**options):
    return adarank.RankController(
        net()[1], score=scores.adalora(), schedule=schedules.cubic(4, 2, 1, 2, 9), compaction="progressive", **options
    )


def compressed(budget):
    model, adapters = net()
    for adapter in adapters.values():
        nn.init.ones_(adapter.lam)
    return adarank.compress(model, budget).ranks


def budgets(schedule):
    values = [*(schedule.budget(step) for step in range(schedule.total)), *schedule.allocations()]
    assert all(type(value) is int for value in values)
    return values


def states(controller):
    return controller.compact_after, controller.generator.initial_seed()


# what a public function makes of one number, {its name and argument: (a valid number, number -> something to compare)}
PLACES = {
    "adapt rank": (2, lambda n: [a.rank for a in net(n)[1].values()]),
    "adapt rank map": (2, lambda n: adarank.ranks(net({"layers.0.up": n, "layers.0.down": 1})[0])),
    "adapt alpha": (3, lambda n: [a.scale for a in net(alpha=n)[1].values()]),
    "adapt dropout": (0.25, lambda n: [a.dropout for a in net(dropout=n)[1].values()]),
    "bottlenecks rank": (2, lambda n: [b.width for b in adarank.bottlenecks(Net(1), "down", n).values()]),
    "compress budget": (3, compressed),
    "RankController compact_after": (3, lambda n: states(controller(compact_after=n))),
    "RankController seed": (3, lambda n: states(controller(seed=n))),
    "cubic initial": (40, lambda n: budgets(schedules.cubic(n, 7, 3, 4, 20))),
    "cubic final": (7, lambda n: budgets(schedules.cubic(40, n, 3, 4, 20))),
    "cubic t_i": (3, lambda n: budgets(schedules.cubic(40, 7, n, 4, 20))),
    "cubic t_f": (4, lambda n: budgets(schedules.cubic(40, 7, 3, n, 20))),
    "cubic total": (20, lambda n: budgets(schedules.cubic(40, 7, 3, 4, n))),
    "cubic interval": (2, lambda n: budgets(schedules.cubic(40, 7, 3, 4, 20, n))),
    "linear initial": (100, lambda n: budgets(schedules.linear(n, 7, 3, 4, 20))),  # products beyond 16 bits
    "cosine final": (7, lambda n: budgets(schedules.cosine(40, n, 3, 4, 20))),
    "growing final": (100, lambda n: budgets(schedules.growing(7, n, 3, 4, 20, curve="cubic"))),
    "constant initial": (7, lambda n: budgets(schedules.constant(n, 7, 3, 4, 20))),
    "one_shot t": (5, lambda n: budgets(schedules.one_shot(40, 7, n, 20))),
    "late t_f": (2, lambda n: budgets(schedules.late(40, 7, 20, n))),
    "late interval": (2, lambda n: budgets(schedules.late(40, 7, 20, 2, n))),
    "orthogonality gamma": (0.5, lambda n: gradient(penalties.orthogonality(n))),
    "l1_proximal sparsity": (0.5, lambda n: shrunk(penalties.l1_proximal(n))),
    "adalora beta1": (0.5, lambda n: observed(scores.adalora(beta1=n))),
    "fisher beta": (0.5, lambda n: observed(scores.fisher(n))),
    "random seed": (5, lambda n: observed(scores.random(n))),
    "global_top min_rank": (1, lambda n: mask(allocators.global_top(min_rank=n))),
    "global_top max_rank": (2, lambda n: mask(allocators.global_top(max_rank=n))),
    "by_family max_rank": (2, lambda n: mask(allocators.by_family(max_rank=n))),
    "grow top_h": (1, lambda n: mask(allocators.grow(n))),
    "prefix minimum": (1, lambda n: mask(allocators.prefix(n))),
    "prune_expand swaps": (1, lambda n: mask(allocators.prune_expand(n))),
    "pissa niter": (3, lambda n: factors(inits.pissa(n))),
    "eva rho": (1.5, lambda n: factors(inits.eva(rho=n, tau=0.0))),
    "gora step": (0.5, lambda n: factors(inits.gora(step=n))),
    "gora steps": (1, lambda n: factors(inits.gora(steps=n))),
    "lora_one gamma": (4.0, lambda n: factors(inits.lora_one(gamma=n), rank=1)),
    "lora_ga gamma": (4.0, lambda n: factors(inits.lora_ga(gamma=n), rank=1)),
}


def bank():
    torch.manual_seed(0)
    bank = adarank.RankController(net(3)[1]).bank
    bank.weight.copy_(torch.randn_like(bank.weight))
    bank.grad.copy_(torch.randn_like(bank.grad))
    return bank


@torch.no_grad()
def gradient(penalty):
    held = bank()
    penalty.add(held, None, False)
    return held.grad


@torch.no_grad()
def shrunk(penalty):
    held = bank()
    penalty.proximal(held, 0.5)
    return held.lam


@torch.no_grad()
def observed(score):
    held = bank()
    buffers = score.init(held)
    for _ in range(2):
        score.observe(buffers, held)
    return score.score(buffers, held)


def mask(allocator):
    kept = torch.tensor([True, True, False, True, False, False])
    request = allocators.allocator.Request(
        torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0, 6.0]),
        kept,
        4,
        torch.ones(6, dtype=torch.long),
        torch.tensor([0, 0, 0, 1, 1, 1]),
        torch.Generator().manual_seed(0),
        ("layers.0.up", "layers.0.down"),
    )
    return allocator(request)


class Loss(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = Net(1)

    def forward(self, x):
        return {"loss": self.net(x).square().sum()}


def factors(init, rank=2):
    torch.manual_seed(0)
    model = Loss()
    adapters = adarank.adapt(model, "lora", rank, ["up", "down"], init=init, batches=[(torch.randn(30, 8),)] * 2)
    return torch.cat([part.flatten() for a in adapters.values() for part in (a.Q, a.P)])


def same(a, b):
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.filterwarnings("ignore:init=eva")
@pytest.mark.parametrize("place", PLACES)
def test_a_scalar_of_numpy_or_torch_counts_as_the_number_and_a_boolean_or_text_as_none(place):
    value, make = PLACES[place]
    expected = make(value)
    for convert in WHOLE if isinstance(value, int) else REAL:
        assert same(make(convert(value)), expected), convert
    if isinstance(value, float):
        assert same(make(np.float16(value)), expected)  # these values are exact in 16 bits
    for wrong in (True, np.bool_(True), torch.tensor(True), "2", [value], np.array([value]), float("nan")):
        with pytest.raises(SettingError, match=r"must be .* \(got "):
            make(wrong)
    if isinstance(value, int) and place != "adapt alpha":
        with pytest.raises(SettingError, match=r"must be a whole number .* \(got 1\.5\)"):
            make(1.5)


@given(st.integers(1, 12), st.sampled_from(WHOLE))
def test_every_whole_number_is_a_rank_whatever_its_type(rank, convert):
    assert adarank.ranks(net(convert(rank))[0]) == {"layers.0.up": rank, "layers.0.down": rank}
