"""The output score against inputs recorded by hooks and against outputs taken apart."""

import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import adarank
from adarank.adapters.lowrank import LowRank
from adarank.scores import output
from adarank.scores.output import mean_square
from tests.test_controller import STEPS, data, run, setup
from tests.test_engine import checkpointed

BETA = 0.7


def start(**options):
    return setup(score=output(BETA), **{"gamma": 0.0, **options})


def scores_of(controller):
    return controller.score.score(controller.buffers, controller.bank)


def record(adapters):
    """(Q, x) of every training pass, module by module, as NumPy, through ordinary hooks."""
    passes_of = {name: [] for name in adapters}

    def recorder(name):
        def hook(adapter, inputs):
            if adapter.training:
                passes_of[name].append((adapter.Q.detach().numpy().copy(), inputs[0].detach().numpy().copy()))

        return hook

    for name, adapter in adapters.items():
        adapter.register_forward_pre_hook(recorder(name))
    return passes_of


def step_means(passes):
    """The mean of (Q_i·x)² over rows, then over passes, in loops."""
    found = []
    for Q, x in passes:
        rows = x.reshape(-1, x.shape[-1])
        found.append([sum(float(q @ row) ** 2 for row in rows) / len(rows) for q in Q])
    return [sum(values) / len(values) for values in zip(*found, strict=True)]


@pytest.mark.parametrize("kind", ["svd", "lora"])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_it_is_the_direct_computation_before_and_after_compaction(kind, accumulation):
    pruned_triplets = "trainable" if kind == "svd" else "masked"
    net, adapters, controller, optimizer = start(adapter=kind, pruned_triplets=pruned_triplets, dtype=torch.float64)
    passes_of, average = record(adapters), {name: np.zeros(4) for name in adapters}
    for t in range(16):
        if t == 13:
            keep = {name: a.mask.numpy().copy() for name, a in adapters.items()}
            controller.compact()
            average = {name: average[name][keep[name]] for name in adapters}
        run(net, controller, optimizer, [t], accumulation)
        for name, passes in passes_of.items():
            average[name] = BETA * average[name] + (1 - BETA) * np.array(step_means(passes))
            passes.clear()
    expected = [
        a.scale * abs(a.lam[i].item()) * np.linalg.norm(a.P[i].detach().numpy()) * np.sqrt(average[name][i])
        for name, a in adapters.items()
        for i in range(a.rank)
    ]
    assert len(expected) < 24
    torch.testing.assert_close(
        scores_of(controller), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12
    )


class Conv1D(nn.Module):
    """GPT-2's linear: weight [d_in, d_out]."""

    def __init__(self, d_out, d_in):
        super().__init__()
        self.nf = d_out
        self.weight = nn.Parameter(torch.randn(d_in, d_out))
        self.bias = nn.Parameter(torch.randn(d_out))

    def forward(self, x):
        return x @ self.weight + self.bias


LAYERS = {
    "linear": (nn.Linear(5, 7), torch.randn(2, 3, 5), -1),
    "conv1d": (Conv1D(7, 5), torch.randn(2, 3, 5), -1),
    "conv2d": (nn.Conv2d(3, 6, 3, stride=2, padding=1), torch.randn(2, 3, 8, 9), 1),
    "embedding": (nn.Embedding(11, 6), torch.randint(0, 11, (2, 5)), -1),
}


@pytest.mark.parametrize("name", LAYERS)
def test_on_every_kind_of_layer_it_is_the_size_of_what_the_triplet_adds(name):
    base, x, side = LAYERS[name]
    adapter = LowRank(deepcopy(base), "svd", rank=4, scale=1.7).double()
    x = x.double() if x.is_floating_point() else x
    for part in (adapter.Q, adapter.lam, adapter.P):
        part.data.normal_()
    scale, lam, p = adapter.scale, adapter.lam.abs(), adapter.P.norm(dim=1)
    found = scale * lam * p * mean_square(adapter, x).sqrt()
    adapter.eval()
    for i in range(4):
        adapter.mask.fill_(False)
        without = adapter(x)
        adapter.mask[i] = True
        added = (adapter(x) - without).detach()
        expected = added.square().sum(side).mean().sqrt()
        torch.testing.assert_close(found[i], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_records_the_same(reentrant):
    found = []
    for recompute in (False, True):
        net, _, controller, optimizer = start(dtype=torch.float64)
        if recompute:
            checkpointed(net, reentrant)
        run(net, controller, optimizer, range(10), accumulation=2)
        found.append(scores_of(controller))
    assert (found[0] > 0).any()
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)


def test_neither_a_copied_model_nor_evaluation_disturbs_it():
    found = []
    for disturb in (False, True):
        net, _, controller, optimizer = start()
        for t in range(12):
            if disturb:
                copy = deepcopy(net)
                copy.train()(1e3 * data(t)[0])
                net.eval()(1e3 * data(t)[0])
                net.train()
            run(net, controller, optimizer, [t])
        found.append(scores_of(controller))
    assert torch.equal(*found)


def test_a_copied_model_with_a_controller_of_its_own_records_the_same():
    net, _, controller, optimizer = start()
    run(net, controller, optimizer, range(6))
    copy = deepcopy(net)
    adapters = {n: m for n, m in copy.named_modules() if isinstance(m, LowRank)}
    schedule = adarank.schedules.cubic(24, 12, 5, 10, STEPS, 3)
    second = adarank.RankController(adapters, score=output(BETA), schedule=schedule)
    other = torch.optim.AdamW([p for p in copy.parameters() if p.requires_grad], lr=1e-2)
    second.attach(other)
    other.load_state_dict(deepcopy(optimizer.state_dict()))
    run(net, controller, optimizer, range(6, 12))
    run(copy, second, other, range(6, 12))
    assert torch.equal(scores_of(controller), scores_of(second))


def test_resumed_under_accumulation_it_is_bit_identical():
    net, _, controller, optimizer = start()
    run(net, controller, optimizer, range(8), accumulation=4)
    saved = deepcopy((net.state_dict(), optimizer.state_dict()))
    run(net, controller, optimizer, range(8, 20), accumulation=4)
    again, _, resumed, fresh = start()
    again.load_state_dict(saved[0])
    fresh.load_state_dict(saved[1])
    run(again, resumed, fresh, range(8, 20), accumulation=4)
    assert torch.equal(scores_of(resumed), scores_of(controller))
    assert torch.equal(resumed.bank.weight, controller.bank.weight)


def test_activations_that_overflow_leave_the_average_alone():
    net, _, controller, optimizer = start()
    run(net, controller, optimizer, range(4))
    before = controller.buffers["square"].clone()
    net(torch.full((2, 8), torch.inf))  # a step that a gradient scaler then skips
    run(net, controller, optimizer, [4])
    assert torch.equal(controller.buffers["square"], before)
    run(net, controller, optimizer, [5])
    assert not torch.equal(controller.buffers["square"], before)
    assert scores_of(controller).isfinite().all()


WORKER = """
import json, os, torch, torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP
from tests.scores.test_output import data, scores_of, start
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
net, _, controller, optimizer = start(dtype=torch.float64)
wrapped = DDP(net)
for t in range(10):
    x, y = (part.chunk(world)[rank] for part in data(t))
    F.cross_entropy(wrapped(x.double()), y).backward()
    controller.after_backward()
    optimizer.step()
    optimizer.zero_grad()
found = [None] * world
dist.all_gather_object(found, scores_of(controller).tolist())
if rank == 0:
    print(json.dumps(found), flush=True)
dist.barrier()
os._exit(0)  # gloo's threads may abort an interpreter that winds down; what is tested is behind us
"""


@pytest.mark.slow
def test_two_ddp_processes_record_what_one_does_with_the_whole_batch():
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "--no-python", sys.executable, "-c", WORKER]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[[")))
    assert first == second
    net, _, controller, optimizer = start(dtype=torch.float64)
    run(net, controller, optimizer, range(10))
    torch.testing.assert_close(scores_of(controller), torch.tensor(first, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("safe_bf16")
def test_under_autocast_it_is_computed_in_fp32():
    net, adapters, controller, _ = start()
    passes_of = []
    for adapter in adapters.values():
        adapter.register_forward_pre_hook(
            lambda a, inputs: passes_of.append((a.Q.detach(), inputs[0].detach().float()))
        )
    with torch.autocast("cpu", torch.bfloat16):
        F.cross_entropy(net(data(0)[0]), data(0)[1])
    for ours, (Q, x) in zip(controller._recorder.sums, passes_of, strict=True):
        torch.testing.assert_close(ours, (x @ Q.t()).square().mean(0), rtol=1e-5, atol=0)
        assert not torch.allclose(ours, (x.bfloat16() @ Q.t().bfloat16()).float().square().mean(0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_smoothing_factors_outside_the_unit_interval_are_refused(value):
    with pytest.raises(adarank.SettingError, match=rf"score\.beta must be at least 0 and below 1 \(got {value}\)"):
        output(value)


class Experts(nn.Module):
    """Each row goes to one of four experts; some experts get none."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x, chosen):
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            out[chosen == i] = expert(x[chosen == i])
        return out


def test_an_expert_without_rows_keeps_its_score():
    torch.manual_seed(0)
    model = Experts()
    adapters = adarank.adapt(model, "svd", rank=2, targets=r"experts\.\d")
    controller = adarank.RankController(
        adapters, score=output(), schedule=adarank.schedules.cubic(initial=8, final=4, t_i=1, t_f=2, total=8)
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    controller.attach(optimizer)
    x, chosen = torch.randn(6, 8), torch.tensor([0, 0, 1, 1, 1, 3])
    for step in range(8):
        (model(x, chosen if step else torch.arange(6) % 4) - x).square().sum().backward()
        controller.after_backward()
        optimizer.step()
        optimizer.zero_grad()
        assert scores_of(controller).isfinite().all()
    assert sum(adarank.ranks(model).values()) == 4
