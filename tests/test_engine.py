"""The engine with activation checkpointing, torch.compile, DDP, half-precision bases and copied models."""

import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import adarank
from tests.conftest import Net
from tests.test_controller import STEPS, data, run, setup

ROOT = Path(__file__).resolve().parent.parent


def checkpointed(net, reentrant):
    """The same network, every block recomputed in the backward pass."""
    for layer in net.layers:
        forward = layer.forward
        layer.forward = lambda x, f=forward: checkpoint(f, x, use_reentrant=reentrant)
    net.embed.register_forward_hook(lambda *a: a[-1].requires_grad_())  # reentrant wants an input that needs grad
    return net


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activation_checkpointing_changes_nothing(reentrant, dropout):
    found = []
    for recompute in (False, True):
        net, adapters, controller, optimizer = setup()
        for adapter in adapters.values():
            adapter.dropout = dropout
        if recompute:
            checkpointed(net, reentrant)
        torch.manual_seed(1)
        run(net, controller, optimizer, range(15))
        found.append((controller.bank.weight.clone(), controller.bank.mask.clone()))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.slow
def test_torch_compile_has_no_graph_break_and_recompiles_for_compaction_only():
    from torch._dynamo.testing import CompileCounter

    found, counter = [], CompileCounter()
    for compiled in (False, True):
        net, _, controller, optimizer = setup(compaction="final")
        forward = torch.compile(net, backend=counter, fullgraph=True) if compiled else net
        frames = []
        for t in range(STEPS):
            x, y = data(t)
            F.cross_entropy(forward(x), y).backward()
            controller.after_backward()
            optimizer.step()
            optimizer.zero_grad()
            frames.append(counter.frame_count)
        found.append(controller.bank.weight.clone())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)
    assert frames[0] == frames[STEPS - 11] == 1  # masks changed, nothing was compiled again
    assert frames[-1] == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("safe_bf16")
def test_a_half_precision_base_trains_fp32_factors_and_its_scale_is_no_parameter(dtype, tmp_path):
    """PEFT's P1: there the rank number becomes trainable on such a base, and reloaded logits differ."""
    torch.manual_seed(0)
    net = Net().to(dtype)
    base = deepcopy(net)
    adapters = adarank.adapt(net, rank=4)  # not the head: AdamW on fp16 parameters is no one's recipe
    schedule = adarank.schedules.cubic(24, 12, 5, 10, STEPS, 3)
    controller = adarank.RankController(adapters, score=adarank.scores.adalora(), schedule=schedule)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-3)
    controller.attach(optimizer)
    for t in range(STEPS):
        x, y = data(t)
        F.cross_entropy(net(x.to(dtype)).float(), y).backward()
        controller.after_backward()
        optimizer.step()
        optimizer.zero_grad()
    assert {a.scale for a in adapters.values()} == {2.0}
    assert {p.dtype for a in adapters.values() for p in (a.Q, a.lam, a.P)} == {torch.float32}
    assert all(b.dtype == torch.float32 for b in controller.buffers.values())
    assert sum(adarank.ranks(net).values()) == 12
    adarank.save_adapter(net, tmp_path)
    adarank.load_adapter(base, tmp_path)
    x = data(0)[0].to(dtype)
    assert torch.equal(base.eval()(x), net.eval()(x))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_penalty_acts_whatever_the_loss(smoothing):
    """PEFT's P3: there a custom loss or label smoothing drops it."""
    gaps = []
    for gamma in (0.0, 5.0):
        net, adapters, controller, optimizer = setup(gamma=gamma)
        for t in range(STEPS):
            x, y = data(t)
            (F.cross_entropy(net(x), y, label_smoothing=smoothing) + net(x).abs().mean()).backward()
            controller.after_backward()
            optimizer.step()
            optimizer.zero_grad()
        norms = [torch.linalg.norm(f @ f.T - torch.eye(4)) for a in adapters.values() for f in (a.Q, a.P)]
        gaps.append(torch.stack(norms).mean().item())
    assert gaps[1] < 0.5 * gaps[0]


def test_evaluation_and_training_loss_hold_no_penalty():
    net, _, _, _ = setup(gamma=1e3)
    x, y = data(0)
    with adarank.disabled(net):
        base = F.cross_entropy(net(x), y).item()
    assert F.cross_entropy(net.train()(x), y).item() == pytest.approx(base)
    assert F.cross_entropy(net.eval()(x), y).item() == pytest.approx(base)


def test_a_copied_model_with_its_own_controller_trains_alike():
    net, _, controller, optimizer = setup()
    run(net, controller, optimizer, range(12))
    copy = deepcopy(net)
    adapters = {n: m for n, m in copy.named_modules() if isinstance(m, adarank.adapters.lowrank.LowRank)}
    schedule = adarank.schedules.cubic(24, 12, 5, 10, STEPS, 3)
    penalty = adarank.penalties.orthogonality(0.1)
    second = adarank.RankController(adapters, score=adarank.scores.adalora(), schedule=schedule, penalty=penalty)
    other = torch.optim.AdamW([p for p in copy.parameters() if p.requires_grad], lr=1e-2)
    second.attach(other)
    other.load_state_dict(deepcopy(optimizer.state_dict()))  # torch itself would share the averages
    run(net, controller, optimizer, range(12, STEPS))
    run(copy, second, other, range(12, STEPS))
    assert torch.equal(controller.bank.weight, second.bank.weight)
    assert controller.last_allocation.ranks == second.last_allocation.ranks


class NoSync(torch.overrides.TorchFunctionMode):
    """Every synchronising call on a tensor raises."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        assert name not in ("item", "tolist", "__bool__", "__int__", "__float__", "nonzero", "cpu", "numpy"), name
        if name in ("__getitem__", "__setitem__"):  # a mask as an index hides a nonzero()
            assert getattr(args[1], "dtype", None) != torch.bool, name
        return function(*args, **(kwargs or {}))


def test_a_step_reads_nothing_back_from_the_device():
    net, _, controller, optimizer = setup()
    run(net, controller, optimizer, range(8))

    for t in range(8, STEPS):
        x, y = data(t)
        F.cross_entropy(net(x), y).backward()
        with NoSync():
            controller.after_backward()
            controller._after_step(optimizer)
        controller.step -= 1
        controller._steps.ready = True
        optimizer.step()
        optimizer.zero_grad()


WORKER = """
import json, os, sys, torch, torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP
from tests.test_controller import STEPS, data, setup
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
results = {}
for buckets in ("views", "copies"):
    net, adapters, controller, optimizer = setup(dtype=torch.float64)
    wrapped = DDP(net, gradient_as_bucket_view=buckets == "views")
    masks = []
    for t in range(STEPS):
        x, y = data(t)
        x, y = x.chunk(world)[rank], y.chunk(world)[rank]
        F.cross_entropy(wrapped(x.double()), y).backward()
        controller.after_backward()
        torch.nn.utils.clip_grad_norm_([p for p in net.parameters() if p.requires_grad], 0.5)
        optimizer.step()
        optimizer.zero_grad()
        masks.append(controller.bank.mask.tolist())
    results[buckets] = [None] * world
    dist.all_gather_object(results[buckets], {"masks": masks, "weight": controller.bank.weight.tolist()})
if rank == 0:
    print(json.dumps(results), flush=True)
dist.barrier()
os._exit(0)  # gloo's threads may abort an interpreter that winds down; what is tested is behind us
"""


@pytest.fixture(scope="module")
def of_two_processes():
    """{kind of bucket: what each process found}, from one start."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--no-python", sys.executable, "-c", WORKER]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"views"')))


@pytest.mark.slow
@pytest.mark.parametrize("buckets", ["views", "copies"])
def test_two_ddp_processes_do_what_one_does_with_the_whole_batch(of_two_processes, buckets):
    first, second = of_two_processes[buckets]
    assert first == second
    net, _, controller, optimizer = setup(dtype=torch.float64)
    masks = []
    run(net, controller, optimizer, range(STEPS), clip=0.5, masks=masks)
    assert [m.tolist() for m in masks] == first["masks"]
    torch.testing.assert_close(
        controller.bank.weight, torch.tensor(first["weight"], dtype=torch.float64), rtol=0, atol=1e-9
    )


def test_gradients_reach_the_input_through_every_layer():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    adarank.adapt(net, rank=2)
    x = torch.randn(3, 4, requires_grad=True)
    net(x).sum().backward()
    expected = torch.ones(3, 4) @ net[1].base.weight @ net[0].base.weight
    torch.testing.assert_close(x.grad, expected)
