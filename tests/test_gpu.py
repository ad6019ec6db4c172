"""What only a GPU can show (make test-gpu)."""

import pytest
import torch
from torch.nn import functional as F

import adarank
from tests.test_controller import STEPS, data, setup

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def moved(**options):
    net, adapters, controller, optimizer = setup(**options)
    net.cuda()
    return net, adapters, controller, optimizer


def step(net, controller, optimizer, t, dtype=None):
    x, y = (part.cuda() for part in data(t))
    with torch.autocast("cuda", dtype or torch.bfloat16, enabled=dtype is not None):
        loss = F.cross_entropy(net(x).float(), y)
    loss.backward()
    controller.after_backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_never_waits_for_the_device(fused):
    net, _, controller, optimizer = moved(optimizer=lambda p, lr: torch.optim.AdamW(p, lr=lr, fused=fused))
    step(net, controller, optimizer, 0)
    batches = [tuple(part.cuda() for part in data(t)) for t in range(1, STEPS)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for x, y in batches:
            F.cross_entropy(net(x), y).backward()
            controller.after_backward()
            optimizer.step()
            optimizer.zero_grad()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum(adarank.ranks(net).values()) == 12


def test_the_gpu_does_what_the_cpu_does():
    found = []
    for make in (setup, moved):
        net, _, controller, optimizer = make()
        for t in range(20):
            x, y = (part.to(net.head.weight.device) for part in data(t))
            F.cross_entropy(net(x), y).backward()
            controller.after_backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append(controller.bank.weight.cpu())
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_budget(dtype):
    net, _, controller, optimizer = moved(compaction="final")
    for t in range(STEPS):
        step(net, controller, optimizer, t, dtype)
    assert sum(adarank.ranks(net).values()) == 12
    assert torch.isfinite(controller.bank.weight).all()
