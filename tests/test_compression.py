"""`compress`, and PARA's one-shot pruning by the controller, against NumPy's SVD of the dense ΔW."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import adarank
from adarank.adapters.lowrank import adapters_of
from adarank.inits.init import Init
from tests.conftest import Net

NAMES = [f"layers.{i}.{n}" for i in range(3) for n in ("up", "down")]
RANKS = dict(zip(NAMES, (2, 3, 5, 4, 1, 6), strict=True))
TOTAL = sum(RANKS.values())


def adapted(kind="svd", dtype=torch.float64, init="default", alpha=None):
    torch.manual_seed(1)
    net = Net().to(dtype)
    adapters = adarank.adapt(net, kind, rank=RANKS, targets=NAMES, init=init, alpha=alpha)
    with torch.no_grad():
        for a in adapters.values():
            a.Q.normal_()
            a.P.normal_()
            if kind == "svd":
                a.lam.normal_()
    return net, adapters


def dense(adapters):
    """ΔW of every module, relative to the original weight."""
    return {
        n: (a.delta() if a.start() is None else a.delta() - a.start()).detach().numpy() for n, a in adapters.items()
    }


def best(matrices, budget):
    """{name: approximation} and ranks of the block-diagonal matrix's best approximation of rank `budget`, by dense
    SVDs."""
    parts = {n: np.linalg.svd(m, full_matrices=False) for n, m in matrices.items()}
    order = sorted(((s, n, i) for n, (_, sigma, _) in parts.items() for i, s in enumerate(sigma)), reverse=True)
    chosen = {n: sorted(i for _, m, i in order[:budget] if m == n) for n in matrices}
    made = {n: (u[:, chosen[n]] * s[chosen[n]]) @ vt[chosen[n]] for n, (u, s, vt) in parts.items()}
    return made, {n: len(c) for n, c in chosen.items()}


@pytest.mark.parametrize("alpha", [None, 3.0])  # 3: another scale in every module
@pytest.mark.parametrize("kind", ["svd", "lora"])
@settings(max_examples=12, deadline=None)
@given(budget=st.integers(1, TOTAL))
def test_it_is_the_best_approximation_of_all_modules_together(kind, alpha, budget):
    net, adapters = adapted(kind, alpha=alpha)
    before = dense(adapters)
    expected, ranks = best(before, budget)
    found = adarank.compress(net, budget)
    assert found.ranks == ranks == adarank.ranks(net) == {n: a.rank for n, a in adapters.items()}
    for name, matrix in dense(adapters).items():
        np.testing.assert_allclose(matrix, expected[name], atol=1e-10)
        error = np.linalg.norm(before[name] - expected[name]) / np.linalg.norm(before[name])
        assert found.lost[name] == pytest.approx(error, abs=1e-7)
    gone = sum(np.linalg.norm(before[n] - expected[n]) ** 2 for n in NAMES)
    assert found.overall == pytest.approx(
        (gone / sum(np.linalg.norm(m) ** 2 for m in before.values())) ** 0.5, abs=1e-7
    )


@pytest.mark.parametrize("kind", ["svd", "lora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_full_rank_nothing_is_lost_and_the_merged_weights_are_equal(kind, dtype):
    net, adapters = adapted(kind, dtype)
    with torch.no_grad():
        adapters[NAMES[2]].mask[1] = False  # what is pruned does not come back
    x = torch.randn(5, 8, dtype=dtype)
    merged = copy.deepcopy(net)
    adarank.merge(merged)
    net.eval()
    before = net(x)
    found = adarank.compress(net, 10 * TOTAL)
    assert found.ranks == {**RANKS, NAMES[2]: RANKS[NAMES[2]] - 1}
    assert found.overall < 1e-6
    tight = {"rtol": 1e-4, "atol": 1e-4} if dtype is torch.float32 else {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(net(x), before, **tight)
    adarank.merge(net)
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], tensor, **tight)


def moved():
    """An init in PiSSA's manner: ΔW₀ ≠ 0, out of the base."""

    def fill(a, found):
        a.Q.normal_()
        a.P.normal_()
        a.lam.fill_(1.0)
        a.start_from(a.Q * a.scale, a.P)

    return Init("moved", fill)


@pytest.mark.parametrize("kind", ["svd", "lora"])
def test_a_base_that_an_init_changed_is_the_original_again(kind):
    net, adapters = adapted(kind, init=moved())
    torch.manual_seed(1)
    original = Net().double()
    before = dense(adapters)
    expected, ranks = best(before, 9)
    assert adarank.compress(net, 9).ranks == ranks
    for name, a in adapters.items():
        assert a.start() is None
        torch.testing.assert_close(a.base.weight, original.get_submodule(name).weight)
        np.testing.assert_allclose(a.delta().detach().numpy(), expected[name], atol=1e-10)
    x = torch.randn(5, 8, dtype=torch.float64)
    with adarank.disabled(net):
        torch.testing.assert_close(net(x), original(x))


def test_it_trains_saves_and_compresses_again_with_a_module_left_empty(tmp_path):
    net, adapters = adapted()
    with torch.no_grad():
        adapters[NAMES[0]].lam.zero_()
    found = adarank.compress(net, 5)
    assert found.ranks[NAMES[0]] == 0
    assert found.lost[NAMES[0]] == 0.0
    assert sum(found.ranks.values()) == 5
    net.train()
    net(torch.randn(5, 8, dtype=torch.float64)).square().mean().backward()
    assert all(a.P.grad is not None for n, a in adapters.items() if found.ranks[n])
    adarank.save_adapter(net, tmp_path)
    assert sum(adarank.compress(net, 3).ranks.values()) == 3


def test_an_untrained_adapter_keeps_nothing():
    torch.manual_seed(0)
    net = Net()
    adarank.adapt(net, rank=2, targets=NAMES)
    found = adarank.compress(net, 4)
    assert sum(found.ranks.values()) == 0
    assert found.overall == 0.0


def test_bad_arguments():
    net, _ = adapted()
    for budget in (0, -3, 1.5, True, np.int64(0)):
        with pytest.raises(adarank.SettingError, match=r"^budget must be a whole number of at least 1"):
            adarank.compress(net, budget)
    with pytest.raises(adarank.SettingError, match="no adapters to compress"):
        adarank.compress(Net(), 3)


@pytest.mark.parametrize("kind", ["svd", "lora"])
def test_para_is_plain_training_and_then_the_same_approximation(kind):
    """The controller's one-shot pruning at the last step = the same run without a controller, then `compress`."""
    steps, budget = 6, 8

    def trained(controlled):
        net, adapters = adapted(kind)
        optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-2)
        if controlled:
            controller = adarank.RankController(
                adapters,
                score=adarank.scores.contribution(),
                allocator=adarank.allocators.global_top(),
                schedule=adarank.schedules.late(TOTAL, budget, total=steps, t_f=1),
                pruned_triplets="masked",
                svd_before_allocation=True,
            ).attach(optimizer)
        draw = torch.Generator().manual_seed(0)
        for _ in range(steps):
            net(torch.randn(16, 8, generator=draw, dtype=torch.float64)).square().mean().backward()
            if controlled:
                controller.after_backward()
            optimizer.step()
            optimizer.zero_grad()
        return net, adapters

    plain, free = trained(False)
    expected, ranks = best(dense(free), budget)
    pruned, adapters = trained(True)
    assert adarank.ranks(pruned) == ranks
    assert all(a.rank == RANKS[n] for n, a in adapters_of(pruned).items())
    for name, matrix in dense(adapters).items():
        np.testing.assert_allclose(matrix, expected[name], atol=1e-10)
    assert adarank.compress(plain, budget).ranks == ranks
    x = torch.randn(5, 8, dtype=torch.float64)
    torch.testing.assert_close(plain.eval()(x), pruned.eval()(x))


def test_learning_has_no_meaning_where_lam_is_constant():
    _, adapters = adapted("lora")
    with pytest.raises(adarank.SettingError, match="pruned_triplets must be frozen or masked with adapter='lora'"):
        adarank.RankController(
            adapters,
            score=adarank.scores.contribution(),
            schedule=adarank.schedules.late(TOTAL, 8, total=6, t_f=1),
        )
