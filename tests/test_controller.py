import doctest
import warnings
from copy import deepcopy

import pytest
import torch
from torch.nn import functional as F

import adarank
from adarank.scores.score import Score
from tests.conftest import Net

STEPS = 40


def data(step):
    draw = torch.Generator().manual_seed(step)
    return torch.randn(16, 8, generator=draw), torch.randint(0, 3, (16,), generator=draw)


def setup(
    rank=4,
    final=2,
    gamma=0.1,
    optimizer=torch.optim.AdamW,
    lr=1e-2,
    adapter="svd",
    dtype=None,
    score=None,
    **options,
):
    torch.manual_seed(0)
    net = Net().to(dtype)
    adapters = adarank.adapt(net, adapter, rank=rank, train=["head"])
    n = len(adapters)
    controller = adarank.RankController(
        adapters,
        score=score or adarank.scores.adalora(),
        schedule=adarank.schedules.cubic(rank * n, final * n, t_i=5, t_f=10, total=STEPS, interval=3),
        penalty=adarank.penalties.orthogonality(gamma),
        **options,
    )
    optimizer = optimizer([p for p in net.parameters() if p.requires_grad], lr=lr)
    controller.attach(optimizer)
    return net, adapters, controller, optimizer


def run(net, controller, optimizer, steps, accumulation=1, clip=0.0, set_to_none=True, masks=None):
    for t in steps:
        x, y = data(t)
        for xs, ys in zip(x.chunk(accumulation), y.chunk(accumulation), strict=True):
            (F.cross_entropy(net(xs.to(net.head.weight.dtype)), ys) / accumulation).backward()
        controller.after_backward()
        if clip:
            torch.nn.utils.clip_grad_norm_([p for p in net.parameters() if p.requires_grad], clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)
        if masks is not None:
            masks.append(controller.bank.mask.clone())


def test_exactly_the_budget_is_kept_and_the_final_mask_is_held():
    net, adapters, controller, optimizer = setup()
    masks = []
    run(net, controller, optimizer, range(STEPS), masks=masks)
    last = controller.last_allocation
    assert last.step >= STEPS - 10
    assert last.budget == last.kept == 12
    assert sum(adarank.ranks(net).values()) == 12
    assert adarank.ranks(net) == last.ranks
    assert last.parameters == 12 * 33
    final = [m for t, m in enumerate(masks) if t >= last.step]
    assert all(torch.equal(m, final[0]) for m in final)
    for adapter in adapters.values():
        assert not adapter.lam[~adapter.mask].any()
        assert adapter.lam[adapter.mask].all()


def test_between_allocations_pruned_triplets_learn_on_and_may_come_back():
    net, _, controller, optimizer = setup(final=1)
    returned, alive_between = False, False
    before = controller.bank.mask.clone()
    for t in range(STEPS - 10):
        run(net, controller, optimizer, [t])
        mask = controller.bank.mask
        returned |= bool((mask & ~before).any())
        alive_between |= bool(controller.bank.lam[~mask].any())
        before = mask.clone()
    assert alive_between
    assert returned


def test_frozen_triplets_stay_zero_and_off():
    net, _, controller, optimizer = setup(pruned_triplets="frozen")
    off = torch.zeros_like(controller.bank.mask)
    for t in range(STEPS):
        run(net, controller, optimizer, [t])
        off |= ~controller.bank.mask
        assert torch.equal(off, ~controller.bank.mask)
        assert not controller.bank.lam[off].any()
    assert controller.bank.mask.sum() == 12


@pytest.mark.parametrize("variant", ["exact", "original", "paper"])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_accumulation_adds_the_penalty_once(variant, set_to_none):
    found = []
    for accumulation in (1, 4):
        net, _, controller, optimizer = setup(variant=variant, dtype=torch.float64, gamma=1.0)
        run(net, controller, optimizer, range(12), accumulation, set_to_none=set_to_none)
        found.append(controller.bank.weight.clone())
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def written_out(variant, steps, clip):
    """Algorithm 1 with a plain autograd penalty and per-module averages: slow and obvious. Returns λ and masks."""
    torch.manual_seed(0)
    net = Net().double()
    adapters = adarank.adapt(net, rank=4, train=["head"])
    if variant == "original":
        for a in adapters.values():
            a.scale = 8.0 / (4 + 1e-5)
    trained = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    factors = [getattr(a, part) for a in adapters.values() for part in ("Q", "lam", "P")]
    mean, spread = [torch.zeros_like(f) for f in factors], [torch.zeros_like(f) for f in factors]
    lams, masks = [], []

    def observe():
        for i, f in enumerate(factors):
            now = (f.detach() * f.grad).abs()
            mean[i] = 0.85 * mean[i] + 0.15 * now
            spread[i] = 0.85 * spread[i] + 0.15 * (now - mean[i]).abs()

    for t in range(steps):
        x, y = data(t)
        norms = [torch.linalg.norm(f @ f.T - torch.eye(4, dtype=f.dtype)) for i, f in enumerate(factors) if i % 3 != 1]
        penalty = 0.1 * sum(n**2 for n in norms) if variant == "paper" else 0.1 / len(norms) * sum(norms)
        (F.cross_entropy(net(x.double()), y) + penalty).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(trained, clip)
        if variant == "paper" and t < STEPS - 10:
            observe()
        optimizer.step()
        if variant != "paper" and t < STEPS - 10:
            observe()
        budget = 24 if t <= 5 else 12 if t >= STEPS - 10 else int(12 + 12 * (1 - (t - 5) / (STEPS - 15)) ** 3)
        if t > 5 and (t % 3 == 0 or t > STEPS - 10):
            s = [m * u for m, u in zip(mean, spread, strict=True)]
            scores = torch.cat([s[i + 1] + s[i].mean(1) + s[i + 2].mean(1) for i in range(0, len(s), 3)])
            order = sorted(range(24), key=lambda i: (-scores[i].item(), i))
            keep = torch.zeros(24, dtype=torch.bool)
            keep[order[:budget]] = True
            with torch.no_grad():
                for a, m in zip(adapters.values(), keep.split(4), strict=True):
                    a.lam[~m] = 0
            masks.append(keep)
        optimizer.zero_grad()
        lams.append(torch.cat([a.lam.detach().clone() for a in adapters.values()]))
    return lams, masks


@pytest.mark.parametrize("variant", ["exact", "original", "paper"])
@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_each_variant_follows_its_algorithm_written_out(variant, clip):
    net, _, controller, optimizer = setup(variant=variant, dtype=torch.float64)
    lams, masks = [], []
    for t in range(STEPS):
        run(net, controller, optimizer, [t], clip=clip)
        lams.append(controller.bank.lam.clone())
        if controller.schedule.due(t):
            masks.append(controller.bank.mask.clone())
    expected_lams, expected_masks = written_out(variant, STEPS, clip)
    assert len(masks) == len(expected_masks)
    assert all(torch.equal(a, b) for a, b in zip(masks, expected_masks, strict=True))
    for ours, theirs in zip(lams, expected_lams, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def test_original_scales_by_alpha_over_rank_plus_1e_5():
    _, adapters, _, _ = setup(variant="original")
    assert {a.scale for a in adapters.values()} == {8 / (4 + 1e-5)}


def original(adapters):
    schedule = adarank.schedules.cubic(24, 12, 0, 2, 9)
    return adarank.RankController(adapters, score=adarank.scores.adalora(), schedule=schedule, variant="original")


def test_two_controllers_of_the_original_scale_once():
    net = Net()
    adapters = adarank.adapt(net, rank=4)
    expected = {8 / (4 + 1e-5)}
    for _ in range(2):
        original(adapters).attach(torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1))
        assert {a.scale for a in adapters.values()} == expected
    for adapter in adapters.values():
        adapter.scale = 4.0  # a scale set afterwards is an α/r again
    original(adapters).prepare_adapters()
    assert {a.scale for a in adapters.values()} == {4.0 * (4 / (4 + 1e-5))}


def test_a_loaded_adapter_keeps_the_scale_it_was_saved_with(tmp_path):
    net, adapters, controller, optimizer = setup(variant="original")
    run(net, controller, optimizer, range(STEPS))
    adarank.save_adapter(net, tmp_path)
    x = data(0)[0]
    expected, scales = net.eval()(x), {a.scale for a in adapters.values()}
    torch.manual_seed(0)
    fresh = Net()
    loaded = {name: a for name, a in adarank.load_adapter(fresh, tmp_path).items() if a.rank}
    before = fresh.eval()(x)
    schedule = adarank.schedules.constant(12, 12, 0, 2, 9)
    again = adarank.RankController(loaded, score=adarank.scores.adalora(), schedule=schedule, variant="original")
    again.prepare_adapters()
    assert {a.scale for a in loaded.values()} == scales == {8 / (4 + 1e-5)}
    assert torch.equal(fresh.eval()(x), before)
    torch.testing.assert_close(before, expected)


def test_a_loop_warns_once_of_the_adapters_that_no_gradient_reaches():
    net, adapters, controller, optimizer = setup(pruned_triplets="frozen")
    adapters["layers.0.down"].requires_grad_(False)
    x = data(0)[0]

    def backward():
        net.layers[1](net.embed(x)).sum().backward()  # the first and the last block are left out

    backward()
    with pytest.warns(
        UserWarning, match=r"did not reach the adapters of layers\.0\.up, layers\.2\.up, layers\.2\.down;"
    ):
        controller.after_backward()
    optimizer.step()
    optimizer.zero_grad()
    backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        controller.after_backward()


@pytest.mark.parametrize("initial", [24, 12])
def test_no_loop_is_warned_of_adapters_that_are_reached(initial):
    torch.manual_seed(0)
    net = Net()
    adapters = adarank.adapt(net, rank=4)
    schedule = adarank.schedules.growing(initial, 24, 5, 10, STEPS)
    controller = adarank.RankController(
        adapters, score=adarank.scores.adalora(), schedule=schedule, pruned_triplets="frozen"
    )
    controller.attach(torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net(data(0)[0]).sum().backward()
        controller.after_backward()


def test_a_growing_run_is_warned_of_what_is_not_reached():
    net = Net()
    adapters = adarank.adapt(net, rank=4)
    schedule = adarank.schedules.growing(12, 24, 5, 10, STEPS)
    controller = adarank.RankController(
        adapters, score=adarank.scores.adalora(), schedule=schedule, pruned_triplets="frozen"
    )
    controller.attach(torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1))
    net.layers[0](net.embed(data(0)[0])).sum().backward()
    with pytest.warns(
        UserWarning, match=r"did not reach the adapters of layers\.1\.up, layers\.1\.down, layers\.2\.up"
    ):
        controller.after_backward()


@pytest.mark.parametrize("pruned_triplets", ["frozen", "masked"])
def test_creating_a_controller_changes_no_adapter(pruned_triplets):
    net = Net()
    adapters = adarank.adapt(net, rank=4)
    for adapter in adapters.values():
        adapter.lam.data.fill_(1.0)

    def state():
        settings = [(a.scale, a.masked, a.watch) for a in adapters.values()]
        return settings, {name: tensor.clone() for name, tensor in net.state_dict().items()}

    settings, tensors = state()
    controller = adarank.RankController(
        adapters,
        score=adarank.scores.output(),
        schedule=adarank.schedules.growing(12, 24, 0, 2, 9),
        variant="original",
        pruned_triplets=pruned_triplets,
    )
    now_settings, now_tensors = state()
    assert now_settings == settings
    assert all(torch.equal(now_tensors[name], tensor) for name, tensor in tensors.items())
    net.double()  # it may still move before it is attached
    controller.attach(torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1))
    assert adarank.ranks(net) == dict.fromkeys(adapters, 2)
    assert all(a.masked == (pruned_triplets == "masked") and a.watch is not None for a in adapters.values())
    assert all(a.lam[~a.mask].any() == (pruned_triplets == "masked") for a in adapters.values())


def test_a_plain_function_is_a_score():
    found = []
    for score in (
        lambda bank: bank.lam.abs(),
        Score(score=lambda buffers, bank: bank.lam.abs()),
        adarank.scores.magnitude(),
    ):
        net, _, controller, optimizer = setup(score=score)
        run(net, controller, optimizer, range(STEPS))
        assert controller.buffers == {}
        found.append(controller.bank.weight.clone())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    with pytest.raises(NotImplementedError, match="without its function `score`"):
        Score().score({}, controller.bank)


def test_the_docstring_s_example_runs():
    test = doctest.DocTestFinder().find(adarank.RankController, globs={"adarank": adarank, "torch": torch})[0]
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


def test_original_keeps_none_on_ties_where_exact_keeps_the_budget():
    kept = {}
    for variant in ("exact", "original"):
        net, _, controller, optimizer = setup(variant=variant, lr=0.0, gamma=0.0)
        for _ in range(STEPS):
            (net(torch.zeros(1, 8)).sum() * 0).backward()  # no gradient at all: every score is 0
            controller.after_backward()
            optimizer.step()
            optimizer.zero_grad()
        kept[variant] = int(controller.last_allocation.kept)
    assert kept == {"exact": 12, "original": 0}


def test_initial_equal_to_final_budget_runs_at_a_constant_budget():
    net, _, controller, optimizer = setup(rank=3, final=3, variant="original")
    run(net, controller, optimizer, range(STEPS))
    assert controller.bank.mask.all()


@pytest.mark.parametrize("stop", [3, 17, 29, 30, 35])
@pytest.mark.parametrize("optimizer_type", [torch.optim.AdamW, torch.optim.SGD])
def test_stopped_and_resumed_is_bit_identical(stop, optimizer_type, tmp_path):
    net, _, controller, optimizer = setup(optimizer=optimizer_type)
    run(net, controller, optimizer, range(stop))
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "state.pt")
    run(net, controller, optimizer, range(stop, STEPS))

    again, _, resumed, fresh = setup(optimizer=optimizer_type)
    run(again, resumed, fresh, range(2))  # whatever it did before does not matter
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again.load_state_dict(state["model"])
    fresh.load_state_dict(state["optimizer"])
    assert resumed.step == stop
    run(again, resumed, fresh, range(stop, STEPS))
    assert torch.equal(resumed.bank.weight, controller.bank.weight)
    assert torch.equal(resumed.bank.mask, controller.bank.mask)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), net.state_dict().values(), strict=True))
    assert resumed.last_allocation.ranks == controller.last_allocation.ranks
    assert resumed.last_allocation.step == controller.last_allocation.step


def test_the_optimiser_s_state_alone_brings_back_the_controller():
    net, _, controller, optimizer = setup()
    run(net, controller, optimizer, range(20))
    _, _, resumed, fresh = setup()
    fresh.load_state_dict(deepcopy(optimizer.state_dict()))
    assert not controller.bank.mask.all()
    assert torch.equal(resumed.bank.mask, controller.bank.mask)
    assert torch.equal(resumed.pruned_for, controller.pruned_for)
    assert resumed.step == 20
    assert resumed.last_allocation.ranks == controller.last_allocation.ranks
    assert resumed.buffers.keys() == controller.buffers.keys()
    assert all(torch.equal(resumed.buffers[name], b) for name, b in controller.buffers.items())


def test_gradients_that_were_pending_are_no_longer_so_after_loading():
    net, _, controller, optimizer = setup()
    run(net, controller, optimizer, range(2))
    state = deepcopy(optimizer.state_dict())
    net(data(2)[0]).sum().backward()
    controller.after_backward()
    optimizer.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"without controller\.after_backward\(\)"):
        optimizer.step()
    controller.after_backward()


def test_a_controller_s_seed_decides_what_its_allocator_draws():
    drawn = []

    def allocate(request):
        drawn.append(torch.rand(4, generator=request.generator))
        return request.mask

    for seed, dtype in ((1, torch.float32), (1, torch.float64), (0, torch.float32)):
        net, _, controller, optimizer = setup(allocator=allocate, seed=seed)
        net.to(dtype)  # a model that moves keeps the seed
        torch.rand(3)
        run(net, controller, optimizer, range(7))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_before_the_first_allocation_the_mean_rank_is_the_mask_s():
    net, _, controller, optimizer = setup()
    controller.bank.mask[::2] = False
    assert controller.budget_now() == {"budget": 24, "mean_rank": 2.0}
    run(net, controller, optimizer, range(STEPS))
    assert controller.budget_now() == {"budget": 12, "mean_rank": 2.0}
    controller.bank.mask.zero_()  # what was allocated is logged
    assert controller.budget_now()["mean_rank"] == 2.0


def test_an_observation_is_what_an_allocation_would_have_seen_and_changes_nothing():
    watched, plain = setup(), setup()
    for t in range(STEPS):
        run(*(watched[i] for i in (0, 2, 3)), range(t, t + 1))
        run(*(plain[i] for i in (0, 2, 3)), range(t, t + 1))
        seen, last = watched[2].observation(), watched[2].last_allocation
        assert (seen.step, seen.observed) == (t, True)
        assert torch.equal(seen.mask, watched[2].bank.mask)
        if last is not None and last.step == t:
            assert torch.equal(seen.scores, last.scores)
            assert (seen.budget, int(seen.kept), int(seen.parameters)) == (last.budget, last.kept, last.parameters)
            assert not last.observed
    assert all(torch.equal(a, b) for a, b in zip(watched[0].parameters(), plain[0].parameters(), strict=True))
    penalty = adarank.RankController(
        adarank.adapt(Net(), rank=2, train=["head"]), penalty=adarank.penalties.orthogonality()
    )
    with pytest.raises(RuntimeError, match="has no score to observe"):
        penalty.observation()


def test_a_state_without_a_controller_or_of_another_one_is_refused():
    _, _, controller, optimizer = setup()
    plain = torch.optim.AdamW([p for g in optimizer.param_groups for p in g["params"]]).state_dict()
    with pytest.raises(RuntimeError, match="has no RankController"):
        optimizer.load_state_dict(plain)
    _, _, _other, other_optimizer = setup(rank=3)
    with pytest.raises(RuntimeError, match="the saved controller has 18 of 18 triplets left, this one has 24 of 24"):
        optimizer.load_state_dict(other_optimizer.state_dict())
    assert controller.step == 0


class TestMisWiringIsLoud:
    def test_a_step_without_after_backward(self):
        net, _, _, optimizer = setup()
        net(data(0)[0]).sum().backward()
        with pytest.raises(RuntimeError, match=r"without controller\.after_backward\(\); call it once"):
            optimizer.step()

    @pytest.mark.parametrize("again", [False, True])
    def test_two_calls_on_the_same_gradients(self, again):
        net, _, controller, _ = setup()
        net(data(0)[0]).sum().backward()
        controller.after_backward()
        if again:  # accumulated on top: the penalty would count twice
            net(data(1)[0]).sum().backward()
        with pytest.raises(RuntimeError, match="called twice for one optimiser step"):
            controller.after_backward()

    @pytest.mark.parametrize("set_to_none", [True, False])
    @pytest.mark.parametrize("compacted", [True, False])
    def test_fresh_gradients_after_a_skipped_step_start_anew(self, set_to_none, compacted):
        net, _, controller, optimizer = setup()
        if compacted:  # its Parameters are new ones
            controller.bank.mask[::2] = False
            adarank.compact(net, optimizer)
        for t in range(3):
            for part in range(2):
                net(data(2 * t + part)[0]).sum().backward()
            controller.after_backward()
            if t != 1:  # a gradient scaler skips step 1
                optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)
        assert controller.step == 2

    def test_an_optimiser_that_lacks_a_parameter(self):
        net = Net()
        adapters = adarank.adapt(net, rank=2)
        controller = adarank.RankController(
            adapters, score=adarank.scores.adalora(), schedule=adarank.schedules.cubic(12, 6, 0, 2, 9)
        )
        some = [p for n, p in net.named_parameters() if p.requires_grad and n != "layers.1.up.lam"]
        with pytest.raises(RuntimeError, match=r"lacks layers\.1\.up\.lam"):
            controller.attach(torch.optim.SGD(some, lr=0.1))

    def test_attached_twice_or_not_at_all(self):
        net, adapters, controller, optimizer = setup()
        with pytest.raises(RuntimeError, match="attached already"):
            controller.attach(optimizer)
        schedule = adarank.schedules.cubic(24, 12, 0, 2, 9)
        second = adarank.RankController(adapters, score=adarank.scores.adalora(), schedule=schedule)
        with pytest.raises(RuntimeError, match=r"call controller\.attach"):
            second.after_backward()
        with pytest.raises(RuntimeError, match="another RankController is attached"):
            second.attach(optimizer)
        assert net is not None

    def test_a_schedule_for_another_number_of_triplets(self):
        adapters = adarank.adapt(Net(), rank=2)
        schedule = adarank.schedules.cubic(10, 6, 0, 2, 9)
        with pytest.raises(adarank.SettingError, match=r"must start at 12 triplets, .* \(got 10\)"):
            adarank.RankController(adapters, score=adarank.scores.adalora(), schedule=schedule)

    @pytest.mark.parametrize("option", ["variant", "pruned_triplets", "compaction"])
    def test_an_unknown_option(self, option):
        with pytest.raises(adarank.SettingError, match=rf"{option} must be one of .* \(got 'odd'\)"):
            setup(**{option: "odd"})


def test_it_unwraps_accelerate_s_optimiser():
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, inner):
            self.optimizer = inner

    net = Net()
    adapters = adarank.adapt(net, rank=2)
    schedule = adarank.schedules.cubic(12, 6, 0, 2, 9)
    controller = adarank.RankController(adapters, score=adarank.scores.adalora(), schedule=schedule)
    inner = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    controller.attach(Wrapper(inner))
    net(data(0)[0]).sum().backward()
    controller.after_backward()
    inner.step()
    assert controller.step == 1


def test_the_penalty_never_enters_the_loss():
    net, _, _, _ = setup(gamma=1e6)
    x, y = data(0)
    plain = deepcopy(net)
    for adapter in (m for m in plain.modules() if hasattr(m, "enabled")):
        adapter.enabled = False
    assert F.cross_entropy(net(x), y) == F.cross_entropy(plain(x), y)  # λ = 0: the base's loss, nothing added


def test_moving_the_model_in_mid_run_changes_nothing_but_the_dtype():
    net, _, controller, optimizer = setup()
    run(net, controller, optimizer, range(20))
    net.double()
    optimizer.load_state_dict(optimizer.state_dict())  # casts the averages
    run(net, controller, optimizer, range(20, STEPS))
    assert controller.bank.weight.dtype == torch.float64
    assert sum(adarank.ranks(net).values()) == 12
