"""MatryoshkaLoRA (arXiv 2605.07850) against the authors' algorithm 1 and against LoRA at every prefix, one by one."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn

import adarank
from adarank.adapters.saving import adapter_state
from adarank.compression import compress_saved
from adarank.truncation import truncate_saved
from tests.methods.two_layers import Two

LAYERS = ("first", "second")


def adapted(rank=8, rslora=True):
    torch.manual_seed(3)
    net = Two()
    rank = min(rank, 6)
    adapters = adarank.adapt(net, "matryoshka", rank=rank, targets=LAYERS, alpha=1.0, rslora=rslora)
    with torch.no_grad():
        for a in adapters.values():
            a.P.normal_()
    return net, adapters, torch.randn(5, 7, dtype=torch.float64)


def algorithm_1(rank, train_ranks, scale):
    """P [rank] as the authors' code makes it: counts from the last triplet down, and sums of the last c scales."""
    P, c = [0.0] * rank, 0
    for r in range(rank, 0, -1):
        c += r in train_ranks
        P[r - 1] = sum(scale(s) for s in train_ranks[len(train_ranks) - c :])
    return P


@pytest.mark.parametrize("rank", [1, 2, 4, 16, 64])
def test_the_weights_are_algorithm_1_s(rank):
    net = nn.ModuleDict({"q": nn.Linear(64, 64)})
    a = adarank.adapt(net, "matryoshka", rank=rank)["q"]
    ranks = [r for r in (1, 2, 4, 8, 16, 32, 64, 128, 256) if r <= rank]
    expected = torch.tensor(algorithm_1(rank, ranks, lambda r: 1 / math.sqrt(r)))
    torch.testing.assert_close(a.scale * a.prefix_weights(), expected)
    asked = adarank.adapt(nn.ModuleDict({"q": nn.Linear(64, 64)}), "matryoshka", rank=rank, alpha=1.0, rslora=True)["q"]
    assert asked.scale == pytest.approx(a.scale)


def prefixes(active):
    return sorted({2**i for i in range(10) if 2**i < active} | {active})


def slow_path(a, x, lengths):
    """Σ over prefixes of s_r·B_r A_r x, each from its own slices; of the active triplets."""
    index = [i for i, on in enumerate(a.mask.tolist()) if on]
    out = torch.zeros(len(x), a.out_features, dtype=x.dtype)
    for r in lengths:
        for i in index[:r]:
            out = out + a.scale * math.sqrt(len(index) / r) * (x @ a.Q[i]).unsqueeze(1) * a.P[i]
    return out


def slow(net, adapters, x, lengths):
    first, second = adapters.values()
    h = torch.tanh(first.base(x) + slow_path(first, x, lengths(first)))
    return second.base(h) + slow_path(second, h, lengths(second))


@pytest.mark.parametrize("rank", [4, 5])
@pytest.mark.parametrize("pruned", [(), (1,), (0, 3)])
def test_training_is_the_sum_over_all_prefixes_with_its_gradients(rank, pruned):
    net, adapters, x = adapted(rank)
    for i in pruned:
        adapters["first"].mask[i] = False
        adapters["first"].masked = True
    factors = [p for a in adapters.values() for p in (a.Q, a.P)]
    expected = slow(net, adapters, x, lambda a: prefixes(int(a.mask.sum())))
    out = net(x)
    torch.testing.assert_close(out, expected)
    for ours, theirs in zip(
        torch.autograd.grad(out.square().sum(), factors),
        torch.autograd.grad(expected.square().sum(), factors),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("rank", [1, 2, 3, 5])
def test_every_prefix_can_be_evaluated_saved_merged_and_exported(rank, tmp_path):
    net, adapters, x = adapted(5)
    base = Two()
    for name in LAYERS:
        getattr(base, name).load_state_dict(adapters[name].base.state_dict())
    state = adapter_state(net.eval())
    expected = base.first(x)
    for i in range(rank):
        expected = expected + (x @ adapters["first"].Q[i]).unsqueeze(1) * adapters["first"].P[i] / math.sqrt(rank)
    h = torch.tanh(expected)
    expected = base.second(h)
    for i in range(rank):
        expected = expected + (h @ adapters["second"].Q[i]).unsqueeze(1) * adapters["second"].P[i] / math.sqrt(rank)
    expected = expected.detach()

    adarank.truncate(net, 5 if rank > 3 else 3)  # in two steps, as one who walks down the ranks
    assert adarank.truncate(net, rank) == adarank.ranks(net) == dict.fromkeys(LAYERS, rank)
    torch.testing.assert_close(net(x), expected)
    adarank.save_adapter(net, tmp_path / "saved")
    adarank.to_peft(net, tmp_path / "peft")
    for load, folder in ((adarank.load_adapter, "saved"), (adarank.from_peft, "peft")):
        fresh = copy.deepcopy(base)
        load(fresh, tmp_path / folder)
        torch.testing.assert_close(fresh.eval()(x), expected)
        adarank.merge(fresh)
        torch.testing.assert_close(fresh(x), expected)
    tensors, description = truncate_saved(*state, rank)
    for name, info in description["modules"].items():
        assert info["rank"] == rank
        change = info["scale"] * tensors[f"{name}.P"].t() @ tensors[f"{name}.Q"]
        torch.testing.assert_close(change, adapters[name].delta().detach())


def test_at_its_full_rank_it_is_lora_and_can_be_compressed():
    net, adapters, x = adapted(4)
    lora = Two()
    lora.load_state_dict({k: v for a in LAYERS for k, v in adapters[a].base.state_dict(prefix=f"{a}.").items()})
    for name, a in adarank.adapt(lora, "lora", rank=4, targets=LAYERS, alpha=1.0, rslora=True).items():
        a.load_state_dict(adapters[name].state_dict())
    torch.testing.assert_close(net.eval()(x), lora.eval()(x))
    assert sum(compress_saved(*adapter_state(net), 5)[2].ranks.values()) == 5


def test_of_other_kinds_the_first_triplets_are_kept_and_the_scale_stays():
    net = Two()
    adapters = adarank.adapt(net, "svd", rank=4, targets=LAYERS)
    adapters["first"].mask[0] = False
    assert adarank.truncate(net, 2) == {"first": 2, "second": 2}
    assert adapters["first"].mask.tolist() == [False, True, True, False]
    assert adapters["first"].scale == 2.0
    assert adarank.truncate(net, 9) == {"first": 2, "second": 2}


def test_bad_settings():
    with pytest.raises(adarank.SettingError, match=r"rank must be a whole number of at least 1 \(got 0\)"):
        adarank.truncate(adapted()[0], 0)
    with pytest.raises(adarank.SettingError, match="no adapters to truncate"):
        adarank.truncate(Two(), 1)


STEPS, HELD = 10, 5
GROWING = {"grow", "one_by_one", "prune_expand"}


@pytest.mark.parametrize("name", sorted(set(adarank.allocators.__all__) - {"nonzero"}))
def test_it_crosses_every_allocator(name):
    """nonzero reads λ, which is constant. The training pass stays the sum over the prefixes of what is active."""
    net, adapters, x = adapted(HELD)
    n, unit = len(adapters), "parameters" if name == "by_cost" else "triplets"
    start = 2 if name in ("grow", "one_by_one") else 3 if name == "prune_expand" else HELD
    cost = [a.in_features + a.out_features + 1 if unit == "parameters" else 1 for a in adapters.values()]
    schedule = {
        "grow": partial(adarank.schedules.growing, t_i=1, t_f=2),
        "one_by_one": partial(adarank.schedules.growing, t_i=1, t_f=2),
        "prune_expand": partial(adarank.schedules.constant, t_i=1, t_f=2),
    }.get(name, partial(adarank.schedules.cubic, t_i=1, t_f=2))
    controller = adarank.RankController(
        adapters,
        score=adarank.scores.adalora(),
        allocator=getattr(adarank.allocators, name)(),
        schedule=schedule(start * sum(cost), 3 * sum(cost), total=STEPS, interval=2),
        pruned_triplets="frozen" if name in GROWING else "masked",
        unit=unit,
    )
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.05)
    controller.attach(optimizer)
    for _ in range(STEPS):
        out = net(x)
        torch.testing.assert_close(out, slow(net, adapters, x, lambda a: prefixes(int(a.mask.sum()))))
        out.square().mean().backward()
        controller.after_backward()
        optimizer.step()
        optimizer.zero_grad()
    spent = sum(rank * c for rank, c in zip(adarank.ranks(net).values(), cost, strict=True))
    assert controller.is_settled
    if not getattr(controller.allocator, "keeps_budget", True):
        return
    assert spent <= 3 * sum(cost)
    if unit == "triplets" and name not in ("threshold", "prefix"):
        assert spent == 3 * n
