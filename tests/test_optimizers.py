"""Optimisers as loops of other people use them: called with a closure, several at once, with state of any shape."""

from copy import deepcopy
from itertools import product

import pytest
import torch
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

import adarank
from tests.conftest import Net
from tests.representatives import representatives
from tests.test_controller import STEPS, data, run, setup

CLIP = 0.05  # below every gradient norm of these runs


def step_with_closure(net, controller, optimizer, t, keyword=False):
    """One training step as Lightning takes it: all but the step itself is in the closure."""
    x, y = data(t)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x.to(net.head.weight.dtype)), y)
        loss.backward()
        controller.after_backward()
        assert clip_grad_norm_([p for p in net.parameters() if p.requires_grad], CLIP) > CLIP
        return loss

    return optimizer.step(closure=closure) if keyword else optimizer.step(closure)


@pytest.mark.parametrize(
    ("variant", "keyword"),
    representatives(product(["exact", "original", "paper"], [False, True]), [("exact", True), ("paper", False)]),
)
def test_a_closure_gives_the_run_of_a_plain_loop_with_the_penalty_before_a_clip_that_binds(variant, keyword):
    net, _, controller, optimizer = setup(variant=variant, gamma=1.0)
    run(net, controller, optimizer, range(STEPS), clip=CLIP)
    other, _, with_closure, its_optimizer = setup(variant=variant, gamma=1.0)
    for t in range(STEPS):
        loss = step_with_closure(other, with_closure, its_optimizer, t, keyword)
        assert loss.item() > 0
    assert with_closure.step == STEPS
    assert torch.equal(with_closure.bank.weight, controller.bank.weight)
    assert torch.equal(with_closure.bank.mask, controller.bank.mask)
    assert all(torch.equal(b, controller.buffers[name]) for name, b in with_closure.buffers.items())


def test_a_closure_without_after_backward_is_refused_and_moves_nothing():
    net, _, controller, optimizer = setup()
    before = controller.bank.weight.clone()

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(net(data(0)[0]), data(0)[1])
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match=r"inside the closure, .* \(in Lightning, in on_before_optimizer_step\)"):
        optimizer.step(closure)
    F.cross_entropy(net(data(0)[0]), data(0)[1]).backward()
    controller.after_backward()  # of gradients that the closure then drops
    with pytest.raises(RuntimeError, match=r"without controller\.after_backward\(\)"):
        optimizer.step(closure)
    assert torch.equal(controller.bank.weight, before)
    step_with_closure(net, controller, optimizer, 0)
    assert controller.step == 1


class Twice(torch.optim.SGD):
    """Evaluates its closure twice per step."""

    def step(self, closure):
        closure()
        return super().step(closure)


class Deaf(torch.optim.SGD):
    """Takes a closure and does not call it."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.add_(0)


class CallsSuper(torch.optim.AdamW):
    """Its step is its parent's, with the closure or after it: torch may run the hooks of both."""

    first = False

    def step(self, closure=None):
        if self.first and closure is not None:
            with torch.enable_grad():
                loss = closure()
            super().step()
            return loss
        return super().step(closure)


class CallsFirst(CallsSuper):
    first = True


@pytest.mark.parametrize("kind", [CallsSuper, CallsFirst])
@pytest.mark.parametrize("variant", representatives(["exact", "paper"], 1))
def test_a_subclass_that_calls_super_steps_once(kind, variant):
    torch.optim.AdamW([torch.zeros(1)])  # from now on its step runs hooks by itself
    net, _, expected, optimizer = setup(variant=variant)
    run(net, expected, optimizer, range(STEPS), clip=CLIP)
    for closure in (False, True):
        net, _, controller, optimizer = setup(variant=variant, optimizer=kind)
        for t in range(STEPS):
            if closure:
                step_with_closure(net, controller, optimizer, t)
            else:
                run(net, controller, optimizer, [t], clip=CLIP)
        assert controller.step == STEPS
        assert torch.equal(controller.bank.weight, expected.bank.weight)


def test_optimisers_that_evaluate_a_closure_repeatedly_or_never_are_refused():
    net = Net()
    adapters = adarank.adapt(net, rank=4)
    schedule = adarank.schedules.cubic(24, 12, 0, 2, 9)
    controller = adarank.RankController(adapters, score=adarank.scores.adalora(), schedule=schedule, variant="original")
    lbfgs = torch.optim.LBFGS([p for p in net.parameters() if p.requires_grad])
    with pytest.raises(adarank.SettingError, match=r"LBFGS evaluates its closure several times per step, .*AdamW"):
        controller.attach(lbfgs)
    assert {a.scale for a in adapters.values()} == {2.0}  # nothing was prepared
    net, _, controller, optimizer = setup(optimizer=Twice)
    before = controller.bank.weight.clone()
    with pytest.raises(RuntimeError, match=r"Twice evaluates its closure several times per step"):
        step_with_closure(net, controller, optimizer, 0)
    assert torch.equal(controller.bank.weight, before)
    net, _, controller, optimizer = setup(optimizer=Deaf)
    with pytest.raises(RuntimeError, match="Deaf did not call its closure"):
        step_with_closure(net, controller, optimizer, 0)


def test_gradients_dropped_after_after_backward_need_another_call():
    net, _, controller, optimizer = setup()
    for t in range(2):
        optimizer.zero_grad()
        net(data(t)[0]).sum().backward()
        if t == 0:
            controller.after_backward()
    with pytest.raises(RuntimeError, match=r"without controller\.after_backward\(\)"):
        optimizer.step()


SPLITS = {
    "by factor": lambda name: name.endswith((".Q", ".P")),
    "by layer": lambda name: name.startswith("layers.1"),
    "adapters and head": lambda name: name.startswith("layers"),
}


def several(split, kind=torch.optim.AdamW, first_kind=None, grows=False, **options):
    """As `setup`, with two optimisers: (net, controller, [first, second])."""
    torch.manual_seed(0)
    net = Net()
    adapters = adarank.adapt(net, "svd", rank=4, train=["head"])
    controller = adarank.RankController(
        adapters,
        score=adarank.scores.adalora(),
        schedule=adarank.schedules.cubic(12 if grows else 24, 12, t_i=5, t_f=10, total=STEPS, interval=3),
        penalty=adarank.penalties.orthogonality(0.1),
        pruned_triplets="frozen" if grows else "trainable",
        allocator=adarank.allocators.prune_expand(2) if grows else None,
        **options,
    )
    named = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    first = [p for name, p in named if split is None or SPLITS[split](name)]
    second = [p for _, p in named if all(p is not other for other in first)]
    optimizers = [(first_kind or kind)(first, lr=1e-2), *([kind(second, lr=1e-2)] if second else [])]
    return net, controller.attach(*optimizers), optimizers


def train(net, controller, optimizers, steps):
    for t in steps:
        x, y = data(t)
        F.cross_entropy(net(x), y).backward()
        controller.after_backward()
        clip_grad_norm_([p for p in net.parameters() if p.requires_grad], CLIP)
        for optimizer in optimizers:
            optimizer.step()
        for optimizer in optimizers:
            optimizer.zero_grad()


COMPACTION = {"compaction": "progressive", "compact_after": 2}
OPTIONS = [{}, {"variant": "paper"}, COMPACTION, {"grows": True}]


@pytest.mark.parametrize(
    ("split", "options"),
    representatives(
        product(SPLITS, OPTIONS),
        [("by layer", {"variant": "paper"}), ("by factor", COMPACTION), ("by layer", OPTIONS[3])],
    ),
)
def test_two_optimisers_give_the_run_of_one(split, options):
    expected_net, expected, one = several(None, **options)
    train(expected_net, expected, one, range(STEPS))
    net, controller, two = several(split, **options)
    train(net, controller, two, range(STEPS))
    assert controller.step == STEPS
    assert torch.equal(controller.bank.weight, expected.bank.weight)
    assert torch.equal(controller.bank.mask, expected.bank.mask)
    assert torch.equal(net.head.weight, expected_net.head.weight)
    assert sum(adarank.ranks(net).values()) == 12
    assert len(set(adarank.ranks(net).values())) > 1
    assert {id(p) for o in two for g in o.param_groups for p in g["params"]} == {
        id(p) for p in net.parameters() if p.requires_grad
    }


@pytest.mark.parametrize(
    ("order", "compaction"),
    representatives(product([(0, 1), (1, 0)], ["off", "progressive"]), [((1, 0), "progressive")]),
)
def test_two_optimisers_resume_exactly_whichever_is_loaded_first(order, compaction, tmp_path):
    options = {"split": "by factor", "compaction": compaction, "compact_after": 2}
    net, controller, optimizers = several(**options)
    train(net, controller, optimizers, range(25))
    state = {"net": net.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
    torch.save(state, tmp_path / "state.pt")
    train(net, controller, optimizers, range(25, STEPS))
    again, resumed, fresh = several(**options)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    for i in order:
        fresh[i].load_state_dict(state["optimizers"][i])
    again.load_state_dict(state["net"])
    assert resumed.step == 25
    train(again, resumed, fresh, range(25, STEPS))
    assert torch.equal(resumed.bank.weight, controller.bank.weight)
    assert resumed.last_allocation.ranks == controller.last_allocation.ranks


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
@pytest.mark.parametrize("compaction", representatives(["off", "final"], ["final"]))
def test_muon_for_the_factors_and_adamw_for_the_rest(compaction):
    net, controller, optimizers = several("by factor", first_kind=torch.optim.Muon, compaction=compaction)
    before = controller.bank.weight.clone()
    train(net, controller, optimizers, range(STEPS))
    assert sum(adarank.ranks(net).values()) == 12
    assert all(torch.isfinite(p).all() for p in net.parameters())
    assert compaction == "final" or not torch.equal(controller.bank.weight, before)


class TestMisuseOfSeveralOptimisers:
    def test_one_that_never_steps(self):
        net, controller, (first, second) = several("by layer")
        for _ in range(2):
            net(data(0)[0]).sum().backward()
            if controller._steps.stepped:
                with pytest.raises(RuntimeError, match=r"optimiser 2 of 2 \(AdamW\) did not step after the last"):
                    controller.after_backward()
                return
            controller.after_backward()
            first.step()
            first.zero_grad()
            second.zero_grad()
        pytest.fail("the first round did not count as begun")

    def test_one_that_steps_twice(self):
        net, controller, (first, second) = several("by layer")
        net(data(0)[0]).sum().backward()
        controller.after_backward()
        first.step()
        with pytest.raises(RuntimeError, match=r"AdamW stepped twice after one controller\.after_backward"):
            first.step()
        second.step()
        assert controller.step == 1
        with pytest.raises(RuntimeError, match=r"without controller\.after_backward"):
            first.step()

    def test_parameters_in_neither_or_in_both(self):
        net = Net()
        adapters = adarank.adapt(net, rank=4)
        controller = adarank.RankController(adapters)
        every = [p for p in net.parameters() if p.requires_grad]
        made = [torch.optim.SGD(part, lr=0.1) for part in (every[:3], every[2:], every[4:])]
        with pytest.raises(RuntimeError, match=r"layers\.0\.up\.P is in 2 of the optimisers"):
            controller.attach(*made[:2])
        with pytest.raises(RuntimeError, match=r"the optimisers lack layers\.0\.down\.Q"):
            controller.attach(made[0], made[2])
        with pytest.raises(RuntimeError, match=r"one optimiser, or several different ones \(got 0\)"):
            controller.attach()
        with pytest.raises(RuntimeError, match=r"one optimiser, or several different ones \(got 2\)"):
            controller.attach(made[0], made[0])
        assert not any(o._optimizer_step_pre_hooks for o in made)
        whole = torch.optim.SGD(every, lr=0.1)
        assert controller.attach(whole) is controller


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_that_skips_one_of_two_optimisers_does_not_end_the_run(fused):
    """The head's gradient overflows once; torch's scaler then skips its optimiser alone."""
    net, controller, optimizers = several(
        "adapters and head", kind=lambda p, lr: torch.optim.AdamW(p, lr=lr, fused=fused)
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    overflows = [3]
    net.head.weight.register_hook(lambda g: g * float("inf") if controller.step in overflows[:1] else g)
    for t in range(STEPS + 1):
        x, y = data(t)
        scaler.scale(F.cross_entropy(net(x), y)).backward()
        if controller.step == 3:
            overflows.clear()
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
        controller.after_backward()
        for optimizer in optimizers:
            scaler.step(optimizer)
        scaler.update()
        for optimizer in optimizers:
            optimizer.zero_grad()
    assert controller.step == (STEPS + 1 if fused else STEPS)  # hooks of a fused optimiser are called, too
    assert all(torch.isfinite(b).all() for b in controller.buffers.values())
    assert sum(adarank.ranks(net).values()) == 12


class Rows(torch.optim.SGD):
    """Keeps one number per row: state that is neither a scalar nor of the parameter's shape."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["row_norms"] = torch.ones(3 * len(p) + 2)


@pytest.mark.parametrize(
    ("options", "operation"),
    [
        ({"compaction": "final"}, "compaction"),
        ({"compaction": "progressive"}, "compaction"),
        ({"pruned_triplets": "frozen"}, "growth"),
    ],
)
def test_state_that_cannot_be_gathered_is_refused_at_the_first_step(options, operation):
    net, _, controller, optimizer = setup(optimizer=Rows, **options)
    with pytest.raises(adarank.SettingError, match=rf"{operation} needs an optimiser whose .* Rows, whose state"):
        run(net, controller, optimizer, range(1))


@pytest.mark.parametrize("options", representatives([{"fused": True}, {"foreach": True}, {"foreach": False}], keep=1))
def test_the_implementations_of_adamw_all_take_a_closure(options):
    net, _, controller, optimizer = setup(optimizer=lambda p, lr: torch.optim.AdamW(p, lr=lr, **options))
    for t in range(STEPS):
        step_with_closure(net, controller, optimizer, t)
    assert sum(adarank.ranks(net).values()) == 12


@pytest.mark.slow
def test_adafactor_trains_and_refuses_compaction_at_its_first_step():
    transformers = pytest.importorskip("transformers")

    def adafactor(parameters, lr):
        return transformers.Adafactor(parameters, lr=lr, relative_step=False, scale_parameter=False)

    net, _, controller, optimizer = setup(optimizer=adafactor)
    run(net, controller, optimizer, range(STEPS))
    assert sum(adarank.ranks(net).values()) == 12
    net, _, controller, optimizer = setup(optimizer=adafactor, compaction="final")
    with pytest.raises(adarank.SettingError, match="Adafactor, whose state 'exp_avg_sq_row' is"):
        run(net, controller, optimizer, range(1))


def test_a_copy_of_the_model_is_not_the_controller_s():
    """Weight averaging copies the model; what is trained afterwards must not depend on the copy."""
    net, _, controller, optimizer = setup()
    run(net, controller, optimizer, range(20))
    copy = deepcopy(net)
    F.cross_entropy(copy(data(1)[0]), data(1)[1]).backward()
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    run(net, controller, optimizer, range(20, STEPS))
    expected_net, _, expected, its_optimizer = setup()
    run(expected_net, expected, its_optimizer, range(STEPS))
    assert torch.equal(controller.bank.weight, expected.bank.weight)
