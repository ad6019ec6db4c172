"""Gradient scalers, plain and fused optimisers, overflow steps."""

import pytest
import torch
from torch.nn import functional as F

import adarank
from tests.test_controller import STEPS, data, setup

OVERFLOWS = (4, 20)


def steps(net, controller, optimizer, scaler, how, clip=0.05):
    """The loop as it is written with a scaler; `how` is where gradients are unscaled. Steps in OVERFLOWS overflow."""
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    for t in range(STEPS):
        x, y = data(t)
        loss = F.cross_entropy(net(x), y)
        if scaler is None:
            if t in OVERFLOWS:
                continue
            loss.backward()
            controller.after_backward()
            torch.nn.utils.clip_grad_norm_(parameters, clip)
            optimizer.step()
            optimizer.zero_grad()
            continue
        loss = loss * float("inf") if t in OVERFLOWS else loss
        scaler.scale(loss).backward()
        if how == "unscaled first":
            scaler.unscale_(optimizer)
            controller.after_backward()
        else:
            controller.after_backward(grad_scale=scaler.get_scale())
            if how == "unscaled after":
                scaler.unscale_(optimizer)
        if how != "never unscaled":
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()


def plain(p, lr):
    return torch.optim.AdamW(p, lr=lr, fused=False, foreach=False)


def fused(p, lr):
    return torch.optim.AdamW(p, lr=lr, fused=True)


@pytest.mark.parametrize("how", ["unscaled first", "unscaled after"])
def test_a_scaler_gives_the_run_without_one_that_skips_the_overflowed_steps(how):
    found = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=5)):
        net, _, controller, optimizer = setup(optimizer=plain, gamma=1.0, dtype=torch.float64)
        net.float()
        steps(net, controller, optimizer, scaler, how)
        found.append(controller)
    assert [c.step for c in found] == [STEPS - len(OVERFLOWS)] * 2
    torch.testing.assert_close(found[0].bank.weight, found[1].bank.weight, rtol=1e-4, atol=1e-6)
    assert torch.equal(found[0].bank.mask, found[1].bank.mask)


@pytest.mark.parametrize("how", ["unscaled first", "unscaled after", "never unscaled"])
def test_a_fused_optimiser_s_overflow_leaves_parameters_and_averages_alone(how):
    net, _, controller, optimizer = setup(optimizer=fused, gamma=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    before = {}

    def look(*_):
        t = controller.step
        if t in OVERFLOWS:
            before[t] = [b.clone() for b in controller.buffers.values()]

    optimizer.register_step_pre_hook(look)
    after = {}

    def look_again(*_):
        t = controller.step - 1
        if t in OVERFLOWS:
            after[t] = [b.clone() for b in controller.buffers.values()]

    optimizer.register_step_post_hook(look_again)
    steps(net, controller, optimizer, scaler, how, clip=1e9)
    assert set(before) == set(after) == set(OVERFLOWS)
    for t in OVERFLOWS:
        assert all(torch.equal(a, b) for a, b in zip(before[t], after[t], strict=True))
    assert controller.step == STEPS
    assert all(torch.isfinite(b).all() for b in controller.buffers.values())
    assert sum(adarank.ranks(net).values()) == 12


def test_an_overflow_shrinks_no_lam():
    net, _, controller, optimizer = setup(optimizer=fused)
    controller.penalty = adarank.penalties.l1_proximal(1e-4, times_lr=False)
    scaler, moved = torch.amp.GradScaler("cpu", init_scale=2.0**12), []
    for t in range(4):
        loss = F.cross_entropy(net(data(t)[0]), data(t)[1])
        scaler.scale(loss * float("inf") if t == 2 else loss).backward()
        controller.after_backward(grad_scale=scaler.get_scale())
        before = controller.bank.lam.clone()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        moved.append(not torch.equal(controller.bank.lam, before))
    assert moved == [True, True, False, True]


def test_scaled_gradients_are_observed_unscaled():
    found = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**12)):
        net, _, controller, optimizer = setup(optimizer=fused, gamma=1.0)
        for t in range(3):
            loss = F.cross_entropy(net(data(t)[0]), data(t)[1])
            (scaler.scale(loss) if scaler else loss).backward()
            controller.after_backward(grad_scale=scaler.get_scale() if scaler else None)
            if scaler:
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()
            optimizer.zero_grad()
        found.append(controller.score.score(controller.buffers, controller.bank))
    torch.testing.assert_close(*found, rtol=1e-4, atol=0)


def test_paper_mode_asks_for_unscaled_gradients():
    net, _, controller, optimizer = setup(optimizer=fused, variant="paper")
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(F.cross_entropy(net(data(0)[0]), data(0)[1])).backward()
    controller.after_backward(grad_scale=scaler.get_scale())
    with pytest.raises(RuntimeError, match=r"call scaler\.unscale_\(optimizer\) before"):
        scaler.step(optimizer)


def test_fp16_autocast_with_a_scaler_that_overflows_at_first():
    net, _, controller, optimizer = setup(optimizer=plain, lr=3e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30, growth_interval=1000)
    skipped = 0
    for t in range(3 * STEPS):
        x, y = data(t)
        with torch.autocast("cpu", torch.float16):
            loss = F.cross_entropy(net(x).float(), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        controller.after_backward()
        torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
        before = controller.step
        scaler.step(optimizer)
        skipped += controller.step == before
        scaler.update()
        optimizer.zero_grad()
        if controller.step == STEPS:
            break
    assert skipped > 3
    assert controller.step == STEPS
    assert controller.bank.weight.dtype == torch.float32
    assert torch.isfinite(controller.bank.weight).all()
    assert sum(adarank.ranks(net).values()) == 12
